"""
A bench to try the store's verbs on: one bus, two workers and a watchdog, and a clock that is moved by hand.

Every job is reached by real verbs. The scripts obey the bench's clock, so a lease or a deadline is over when a test
says so; only stream ids and expiries of keys follow the server's own time.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from busq.clock import ManualClock
from busq.config import Settings
from busq.protocol.cancel import CancelAnswer, CancelRequest, Cause
from busq.protocol.jids import child_jid
from busq.protocol.job import Event, Job, history_from_record, job_from_record
from busq.protocol.keys import GROUP
from busq.protocol.scope import Filter, ScopeLook
from busq.protocol.states import State, Verb, is_terminal
from busq.store.forms import Delivery, KindTerms, NewJob, Note, Renewal, RenewAnswer, Settlement, StartAnswer
from busq.store.scopes import Scopes
from busq.store.store import Store
from busq.store.streams import Entry, Streams
from tests.store.residue import complaints

QUEUE = "q"
KIND = "k"
DELAY_S = 60.0
GRACE_S = 5.0
SLACK_S = 2.0
DEADLINE_S = GRACE_S + SLACK_S
LEASE_S = 15.0
CHILD_DELAY_S = 86_400.0  # longer than any test
NO_ENTRY = b"1-1"


@dataclass
class Held:
    """What a worker knows of a job that it holds; `entry` and `token` stand for nothing where there is no attempt."""

    jid: str
    entry: bytes = NO_ENTRY
    token: str = "no-token"
    attempt: int = 0
    settled: bool = False
    queue: str = QUEUE


class Bench:
    """
    `a` and `b` are workers, `dog` is a watchdog; all share `clock`.

    Settings are the defaults but for what is given here. At the end of a test that went well, keys that should not be
    there, or have a wrong expiry, fail it; `strict` False: not where the test itself writes over keys.
    """

    def __init__(self, url: str, *, strict: bool = True, **settings: Any) -> None:
        self.strict = strict
        self.clock = ManualClock()
        # So patient that a machine which stalls is no server that is away.
        self.settings = Settings.load({}, url=url, **{"command_timeout_s": 60.0, **settings})
        self._fresh = itertools.count(1)
        self.a, self.b, self.dog = (Store(self.settings, by=name, clock=self.clock) for name in ("a", "b", "dog"))
        self.scopes = Scopes(self.b)
        self.redis: Any = self.a.redis  # for looking and for what no verb does

    async def __aenter__(self) -> Self:
        for store in (self.a, self.b, self.dog):
            await store.open()
        await Streams(self.a, [QUEUE]).open()
        return self

    async def __aexit__(self, error: object = None, *_: object) -> None:
        found = await complaints(self.redis) if self.strict and error is None else []
        for store in (self.a, self.b, self.dog):
            await store.close()
        assert found == []

    def fresh(self, what: str) -> str:
        """A name that nothing on this bench has yet."""
        return f"{what}-{next(self._fresh)}"

    # Looking -------------------------------------------------------------------------------------------

    async def record(self, jid: str) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = await self.redis.hgetall(self.a.job_key(jid))
        return found

    async def state(self, jid: str) -> State | None:
        record = await self.record(jid)
        return State(record[b"state"].decode()) if record else None

    async def job(self, jid: str) -> Job:
        return job_from_record(jid, await self.record(jid))

    async def history(self, jid: str) -> list[Event]:
        return history_from_record(await self.record(jid))

    async def events(self, jid: str) -> list[str]:
        return [event.name for event in await self.history(jid)]

    async def entries(self, queue: str = QUEUE) -> list[bytes]:
        """Ids of every entry that stands in this queue, read or not, over all shards."""
        found: list[bytes] = []
        for shard in range(self.a.shards):
            found += [entry for entry, _ in await self.redis.xrange(self.a.keys(shard).stream(queue))]
        return found

    async def pending(self, queue: str = QUEUE) -> dict[bytes, bytes]:
        """Entry -> consumer, for every entry that was delivered and not acknowledged."""
        found: dict[bytes, bytes] = {}
        for shard in range(self.a.shards):
            listed = await self.redis.xpending_range(self.a.keys(shard).stream(queue), GROUP, "-", "+", 1000)
            found.update({each["message_id"]: each["consumer"] for each in listed})
        return found

    async def is_marked(self, jid: str) -> bool:
        """Whether the cancelled set names this job."""
        own = self.a.keys(self.a.shard_of(jid))
        return await self.redis.zscore(own.cancelled, jid) is not None

    async def snapshot(self) -> dict[bytes, object]:
        """
        Everything that the server holds, to be compared; of expiries only whether there is one.

        But for the count of what askers were told: that somebody asked is no change.
        """
        redis = self.redis
        held: dict[bytes, object] = {}
        for key in sorted(await redis.keys("*")):
            kind = await redis.type(key)
            value: object
            if kind == b"hash":
                fields = await redis.hgetall(key)
                value = {name: each for name, each in fields.items() if not name.startswith(b"verdict:")}
                if not value:
                    continue
            elif kind == b"zset":
                value = await redis.zrange(key, 0, -1, withscores=True)
            elif kind == b"set":
                value = await redis.smembers(key)
            else:
                value = await redis.xrange(key)
            held[key] = (kind, await redis.pttl(key) > 0, value)
        held[b"pending"] = await self.pending()
        return held

    # Doing ---------------------------------------------------------------------------------------------

    async def enqueue(
        self,
        jid: str | None = None,
        *,
        delay_s: float = 0,
        call: str | None = None,
        kind: str = KIND,
        queue: str = QUEUE,
        payload: bytes = b"\x01payload",
        **fields: Any,
    ) -> str:
        """Admit a job and give its jid back; `fields` are further fields of its record."""
        jid = jid or self.fresh("job")
        await self.admit(jid, delay_s=delay_s, call=call, kind=kind, queue=queue, payload=payload, **fields)
        return jid

    async def admit(
        self,
        jid: str,
        *,
        delay_s: float = 0,
        call: str | None = None,
        kind: str = KIND,
        queue: str = QUEUE,
        payload: bytes = b"\x01payload",
        **fields: Any,
    ) -> tuple[str, State | None]:
        more = tuple(itertools.chain.from_iterable(fields.items()))
        job = NewJob(jid, kind, queue, payload, round(delay_s * 1000), more)
        (answer,) = await self.a.enqueue([job], call=call or self.fresh("call"))
        return answer

    async def spawn(self, held: Held, jid: str, *, call: str | None = None, **wrong: str) -> tuple[str, str, str]:
        """A child of a running attempt; `wrong` names another parent or token."""
        parent_jid, token = wrong.get("parent", held.jid), wrong.get("token", held.token)
        job = NewJob(jid, KIND, QUEUE, b"\x01payload", fields=("parent", parent_jid))
        return await self.a.spawn(parent_jid, token, job, call=call or self.fresh("call"))

    async def read(self, by: Store | None = None, count: int = 1000, queue: str = QUEUE) -> list[Entry]:
        """Take what stands in the queue and nobody has read yet."""
        streams = Streams(by or self.a, [queue])
        await streams.open()
        return await streams.read(streams.places, each=count, block_ms=0)

    async def take(self, jid: str, by: Store | None = None, *, queue: str = QUEUE) -> Held:
        """Read entries until that of this job, which then is held and not started."""
        for entry in await self.read(by, queue=queue):
            if entry.jid == jid:
                return Held(jid, entry.id, queue=queue)
        raise AssertionError(f"no unread entry of {jid}")

    async def begin(
        self,
        held: Held,
        by: Store | None = None,
        *,
        token: str | None = None,
        retries: int = 0,
        max_losses: int = 5,
        kind: str = KIND,
        adopt: bool = False,
        occasion: str = "",
        expires_s: float | None = None,
        deadline_s: float | None = None,
    ) -> StartAnswer:
        """Start what was taken; `held` is brought up to date when that works."""
        store = by or self.a
        token = token or self.fresh("token")
        terms = KindTerms(
            kind,
            retries,
            max_losses,
            round(GRACE_S * 1000),
            round(SLACK_S * 1000),
            expires_ms=None if expires_s is None else round(expires_s * 1000),
            deadline_ms=None if deadline_s is None else round(deadline_s * 1000),
            occasion=occasion,
        )
        (answer,) = await store.start(
            store.shard_of(held.jid), held.queue, [Delivery(held.entry, held.jid, kind, token)], [terms], adopt=adopt
        )
        if answer.word == "started":
            held.token, held.attempt = token, answer.attempt
        return answer

    async def start_all(self, entries: Sequence[Entry]) -> list[StartAnswer]:
        """Begin what was read from one queue of one shard, all in one call."""
        terms = KindTerms(KIND, 0, 5, round(GRACE_S * 1000), round(SLACK_S * 1000))
        deliveries = [Delivery(each.id, each.jid, each.kind, self.fresh("token")) for each in entries]
        return await self.a.start(entries[0].shard, entries[0].queue, deliveries, [terms])

    async def run(
        self,
        jid: str | None = None,
        by: Store | None = None,
        *,
        retries: int = 0,
        max_losses: int = 5,
        **fields: Any,
    ) -> Held:
        """A running attempt: of a new job, or of a queued one."""
        if jid is None:
            jid = await self.enqueue(**fields)
        held = await self.take(jid, by)
        answer = await self.begin(held, by, retries=retries, max_losses=max_losses)
        assert answer.word == "started", answer
        return held

    async def settle(
        self,
        verb: Verb,
        held: Held,
        outcome: str = "",
        *,
        by: Store | None = None,
        token: str | None = None,
        observed: bool = False,
        keep: bool = False,
        result: bytes = b"",
        error: bytes = b"",
        cause: str = "",
        delay_s: float = 0.0,
        hook: str = "",
        finalizer: bool = False,
        stopped: bool = True,
        notes: Sequence[Note] = (),
    ) -> tuple[str, str]:
        store = by or self.a
        word = outcome or {Verb.FINISH: "succeeded", Verb.RETRY: "failed"}.get(verb, "released")
        end = Settlement(
            jid=held.jid,
            entry=held.entry,
            token=token or held.token,
            attempt=held.attempt,
            outcome=word,
            observed=observed,
            keep=keep,
            result=result,
            error=error,
            cause=cause,
            delay_ms=round(delay_s * 1000),
            hook=hook,
            finalizer=finalizer,
            stopped=stopped,
            notes=tuple(notes),
        )
        (answer,) = await store.settle(verb, store.shard_of(held.jid), held.queue, [end])
        return answer

    async def cancel(
        self, jid: str, *, request: str | None = None, cause: Cause = Cause.USER, **wish: Any
    ) -> CancelAnswer:
        (answer,) = await self.b.cancel(
            [jid], CancelRequest(cause=cause, **wish), request=request or self.fresh("request")
        )
        return answer

    async def beat(self, by: Store | None = None, held: Sequence[Held] = ()) -> list[RenewAnswer]:
        """One beat of a worker in every shard that it has to do with; answers for `held`, all of one shard."""
        store = by or self.a
        shard = store.shard_of(held[0].jid) if held else 0
        return await store.renew(shard, [Renewal(each.jid, each.token) for each in held], info=b"info")

    async def finalize(self, jid: str, *, gone: bool = False, queue: str = QUEUE) -> tuple[str, str]:
        ((word, state, _),) = await self.dog.finalize(self.dog.shard_of(jid), queue, [(jid, gone)])
        return word, state

    async def reclaim(self, held: Held, *, owner: str = "a", gone: bool = False) -> tuple[str, str]:
        (answer,) = await self.dog.reclaim(
            self.dog.shard_of(held.jid),
            held.queue,
            owner,
            [(held.jid, held.entry)],
            owner_gone=gone,
            failure=b"\x01lost",
        )
        return answer

    async def expire(self, jid: str) -> tuple[str, str]:
        (answer,) = await self.dog.expire(self.dog.shard_of(jid), [jid])
        return answer

    async def decide(self, scope: str | None = None, *, how: Mapping[str, Any] | None = None, **filter: Any) -> str:
        """A rule for the jobs that fit; `how` it is decided goes to `Scopes.decide`. Gives its id back."""
        scope = scope or self.fresh("scope")
        await self.scopes.decide(scope, Filter(**filter), **(how or {}))
        return scope

    async def look(self, scope: str) -> ScopeLook:
        found = await self.scopes.look(scope)
        assert found is not None
        return found

    async def walk(self, *, step: int = 100) -> int:
        """Settle every rule that is there. Answers how many jobs that stopped."""
        return await self._work_off(self.dog.carry_out, step)

    async def pass_on(self, *, step: int = 100) -> int:
        """Pass every cancel of a parent on to its children. Answers how many of them that stopped."""
        return await self._work_off(self.dog.cascade, step)

    async def _work_off(self, verb: Callable[..., Awaitable[tuple[str, int]]], step: int) -> int:
        stopped = 0
        for shard in range(self.dog.shards):
            word = ""
            while word != "idle":
                word, hit = await verb(shard, step=step)
                stopped += hit
        return stopped

    async def timer(self, jid: str) -> float | None:
        """In how many seconds the job's next moment comes; None when it has no timer."""
        at = await self.redis.zscore(self.a.keys(self.a.shard_of(jid)).timers, jid)
        return None if at is None else (float(at) - self.clock.now_ms) / 1000

    async def promote(self, jid: str) -> tuple[str, str]:
        (answer,) = await self.dog.promote(self.dog.shard_of(jid), QUEUE, [jid])
        return answer


def but_history(record: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """A record without the lines of its history and their count."""
    return {k: v for k, v in record.items() if k != b"n" and not (k[:1] == b"e" and k[1:].isdigit())}


async def put_in(
    bench: Bench,
    state: State | None,
    *,
    retries: int = 0,
    max_losses: int = 5,
    child: str | None = None,
    **fields: Any,
) -> Held:
    """
    Bring a fresh job into this state.

    Worker `a` holds the entry, where there is one. `settled` says that the attempt has been settled by its token.
    `child`: the jid of a child that it got while it ran, which stays scheduled whatever becomes of it; none for a job
    that has ended.
    """
    if state is None:
        return Held(bench.fresh("unknown"))
    if state is State.SCHEDULED:
        return Held(await bench.enqueue(delay_s=DELAY_S, **fields))
    if state is State.QUEUED:
        return await bench.take(await bench.enqueue(**fields))
    held = await bench.run(retries=retries, max_losses=max_losses, **fields)
    if state is State.WAITING or (child and not is_terminal(state)):
        child = child or child_jid(held.jid)
        await bench.enqueue(child, delay_s=CHILD_DELAY_S, parent=held.jid, policy="wait")
    if state is State.WAITING:
        await bench.settle(Verb.FINISH, held, result=b"\x01result")
        held.settled = True
    elif state in (State.SUCCEEDED, State.FAILED):
        await bench.settle(Verb.FINISH, held, state, cause="error" if state is State.FAILED else "")
        held.settled = True
    elif state in (State.CANCELLING, State.CANCELLED):
        await bench.cancel(held.jid)
        if state is State.CANCELLED:
            await bench.settle(Verb.FINISH, held, "failed", observed=True)
            held.settled = True
    assert await bench.state(held.jid) is state
    return held


NEAR = ["near", {"f": "place"}, {"v": [52.5, 13.4]}]
"""A condition of a busq that is yet to come."""


async def make_newer(bench: Bench, scope: str, **change: Any) -> Callable[[], Awaitable[None]]:
    """Write the live rule of a scope as a newer busq might; what comes back puts it as it was."""
    return await rewrite_rule(bench.a, scope, **(change or {"condition": ["and", NEAR]}))


async def rewrite_rule(store: Store, scope: str, **change: Any) -> Callable[[], Awaitable[None]]:
    """Change the live rule of a scope, in every shard; what comes back puts it as it was."""
    redis: Any = store.redis
    shards = []
    for shard in range(store.shards):
        own = store.keys(shard)
        number = await redis.hget(own.scope(scope), "number")
        before = await redis.hget(own.rules, number)
        head, rest = before.split(b"\n", 1)
        *words, version, condition = head.split(b" ", 4)
        if "version" in change:
            version = str(change["version"]).encode()
        if "condition" in change:
            condition = msgspec.json.encode(change["condition"])
        await redis.hset(own.rules, number, b" ".join([*words, version, condition]) + b"\n" + rest)
        shards.append((own.rules, number, before))

    async def back() -> None:
        for key, number, before in shards:
            await redis.hset(key, number, before)

    return back
