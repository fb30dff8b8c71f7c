"""
One walk: the shipped scripts on a real server and the plain model side by side, step by step.

Every method is one step. It tells both, compares what they answer, and then compares every job: its record, and what
a look shows of it. A script may carry out a decision on jobs that it was not asked about (a parent, a child): where a
record says so, and the model holds such a decision against the job, the model follows (`_follow`).
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from busq.protocol.cancel import CancelRequest
from busq.protocol.codec import encode_payload
from busq.protocol.job import decided, job_from_record
from busq.protocol.keys import GROUP
from busq.protocol.scope import Filter
from busq.protocol.states import State, Verb, is_terminal
from busq.store.forms import Delivery, KindTerms, Look, NewJob, Note, Refusal, Renewal, Settlement
from busq.store.scopes import FOR_EVER_MS, Scopes
from busq.store.store import Store
from busq.store.streams import Streams
from tests.model.plain import LIVE, STOPPED, Bus, Job, Rule
from tests.store.bench import LEASE_S, QUEUE, Bench

START_MS = 1_700_000_000_000
RETRIES = MAX_LOSSES = 1
ROUNDS = 30  # in which everything comes to its end
STEPS = 200  # of one settling
KEPT = (
    "dead",
    "job:*",
    "counters",
    "events",
    "queues",
    "scope:*",
    "ended:*",
    "suspects",
    "workers",
    "worker_info",
    "queue:*",
)


class Attempt:
    """What a worker knows of an attempt, or of an entry that it has read (`number` 0)."""

    def __init__(self, by: Store, job: Job, entry: bytes, token: str = "", number: int = 0) -> None:
        self.by, self.job, self.entry, self.token, self.number = by, job, entry, token, number


class Start:
    """One call, as it is sent again word by word when nobody heard its answers."""

    def __init__(
        self, held: Sequence[Attempt], deliveries: list[Delivery], terms: list[KindTerms], adopt: bool
    ) -> None:
        self.held, self.deliveries, self.terms, self.adopt = held, deliveries, terms, adopt


class Walk:
    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.workers = (bench.a, bench.b)
        self.dogs = (bench.dog, bench.a)
        self.streams = {store.by: Streams(store, [QUEUE]) for store in self.workers}

    async def begin(self) -> None:
        """An empty bus, and an empty model."""
        await self.bench.redis.flushall()
        self.bench.clock.now_ms = START_MS
        self.bus = Bus()
        self.bus.now = START_MS
        self.scopes = Scopes(self.bench.dog)
        self.leases = {store.by: 0 for store in self.workers}
        self.entries: list[Attempt] = []
        self.attempts: list[Attempt] = []
        self.unheard: list[Start] = []
        self.looks: dict[Job, Look] = {}
        self._count = itertools.count(1)
        for streams in self.streams.values():
            await streams.open()

    def _fresh(self, what: str) -> str:
        return f"{what}{next(self._count)}"

    # Comparing -------------------------------------------------------------------------------------------

    async def compare(self, *, cascaded: bool = False) -> None:
        await self._look()
        while self._follow() or (cascaded and await self._follow_cascade()):
            await self._look()
        for job in self.bus.jobs:
            found, expected = self._found(job), self._expected(job)
            assert found == expected, f"{job.jid}: {found}, where the model says {expected}"
            if not job.entry and job.state is State.QUEUED:
                job.entry = self.looks[job].record[b"entry"]
        await self._compare_scopes()

    async def _look(self) -> None:
        for job in self.bus.jobs:
            if not job.jid:
                assert job.parent
                (look,) = await self.bench.a.look(0, [job.parent.jid])
                assert b"final" in look.record, f"{job.parent.jid} has no finalizer"
                job.jid = look.record[b"final"].decode()
        jobs = list(self.bus.jobs)
        looks = await self.bench.a.look(0, [job.jid for job in jobs]) if jobs else []
        self.looks = dict(zip(jobs, looks, strict=True))

    def _follow(self) -> bool:
        count = len(self.bus.jobs)
        for job in list(self.bus.jobs):
            raw = self._raw(job)
            if job.is_live and raw not in LIVE and self.bus.wish(job):
                self.bus.touch(job)
        return len(self.bus.jobs) > count  # a finalizer was admitted

    async def _follow_cascade(self) -> bool:
        moved = False
        own = self.bench.a.keys(0)
        for parent in list(self.bus.jobs):
            if parent.state not in STOPPED:
                continue
            for child in [child for child in parent.open if child.policy == "abandon"]:
                if await self.bench.redis.zscore(own.children(parent.jid), child.jid) is None:
                    self.bus.abandon(child)
            if parent.state is State.CANCELLING and self._raw(parent) is State.CANCELLED:
                self.bus.cascaded(parent)
                moved = True
        return moved

    def _raw(self, job: Job) -> State:
        return State(self.looks[job].record[b"state"].decode())

    def _found(self, job: Job) -> dict[str, Any]:
        look = self.looks[job]
        shown = job_from_record(job.jid, look.record)
        kept = shown
        if look.wish:
            cause, reason, source, scope = look.wish
            shown = decided(shown, cause=cause, reason=reason, source=source, scope=scope)
        stops = kept.state in STOPPED or kept.state is State.FAILED
        return {
            "state": kept.state,
            "shown": shown.state,
            "cause": shown.cause if stops or look.wish else None,
            "scope": shown.scope if stops or look.wish else None,
            "attempt": kept.attempt,
            "failures": kept.failures,
            "losses": kept.losses,
            "children": (kept.children, kept.open_children, kept.failed_children),
            "hooked": b"hook" in look.record,
        }

    def _expected(self, job: Job) -> dict[str, Any]:
        wish = self.bus.wish(job)
        cause, scope = (job.cause, job.scope) if job.state in STOPPED or job.state is State.FAILED else (None, None)
        if wish:
            cause, scope = wish[0], wish[1] and wish[1].id
        return {
            "state": job.state,
            "shown": self.bus.shown(job),
            "cause": cause,
            "scope": scope,
            "attempt": job.attempt,
            "failures": job.failures,
            "losses": job.losses,
            "children": (job.kids, len(job.open), job.kids_failed),
            "hooked": job.hooked and job.state is State.CANCELLED,
        }

    async def _compare_scopes(self) -> None:
        if not self.bus.rules:
            return
        pipe = self.bench.redis.pipeline(transaction=False)
        for rule in self.bus.rules:
            pipe.hgetall(self.bench.a.keys(0).scope(rule.id))
        for rule, own in zip(self.bus.rules, await pipe.execute(), strict=True):
            rule.state = own[b"state"].decode()
            counts = {name: int(own.get(f"v:{name}".encode(), 0)) for name in rule.verdicts}
            ended = sum(int(value) for name, value in own.items() if name[:2] == b"e:")
            found = (counts, ended, int(own.get(b"unfinished", 0)))
            assert found == (rule.verdicts, rule.ended, rule.unfinished), f"{rule.id}: {found}, {rule}"

    # Producers -------------------------------------------------------------------------------------------

    async def enqueue(
        self, job: Job, *, delay_ms: int = 0, expires_ms: int = 0, due_ms: int = 0, token: str = ""
    ) -> None:
        """`token`: asked for by that attempt of its parent."""
        job.jid = self._fresh("j")
        fields: list[str | int] = ["on_cancel", "always"] if job.hooked else []
        for name, value in (("group", job.group), ("key", job.key), ("expires", expires_ms), ("due_by", due_ms)):
            fields += [name, value] if value else []
        if job.parent:
            fields += ["parent", job.parent.jid]
            fields += ["policy", job.policy] if job.policy != "cancel" else []
        new = NewJob(job.jid, job.kind, QUEUE, encode_payload((), job.args, 1000), delay_ms, tuple(fields))
        job.due = self.bus.now + delay_ms if delay_ms else 0
        job.expires = self.bus.now + expires_ms if expires_ms else None
        job.due_by = self.bus.now + due_ms if due_ms else None
        call = self._fresh("call")
        expected = self.bus.enqueue(job, token)
        for _ in range(1 if expected == "orphan" else 2):  # the reply is lost, and the call is sent again
            if token and job.parent:
                word = (await self.bench.a.spawn(job.parent.jid, token, new, call=call))[0]
            else:
                word = (await self.bench.a.enqueue([new], call=call))[0][0]
            assert word == expected, f"enqueue answers {word}, {expected} was due"
        await self.compare()

    async def cancel(self, jobs: Sequence[Job], grace_s: float | None = None) -> None:
        before = {job: self._deadline(job) for job in jobs}
        wish, request = CancelRequest(grace_s=grace_s), self._fresh("request")
        answers = await self.bench.b.cancel([job.jid for job in jobs], wish, request=request)
        self._same([answer.verdict for answer in answers], self.bus.cancel, jobs)
        again = await self.bench.b.cancel([job.jid for job in jobs], wish, request=request)  # the reply was lost
        assert [(each.verdict, each.deadline) for each in again] == [(each.verdict, each.deadline) for each in answers]
        await self.compare()
        for job, deadline in before.items():
            assert self._deadline(job) <= deadline, f"a further request puts off the deadline of {job.jid}"

    def _deadline(self, job: Job) -> int:
        return int(self.looks[job].record.get(b"deadline", 2**62))

    async def decide(self, filter: Filter, *, standing_ms: int | None = None) -> None:
        """`standing_ms`: later arrivals match for so long, with 0 for ever."""
        rule = Rule(self._fresh("s"), filter.checked().condition())
        until = None
        if standing_ms is not None:
            rule.until = self.bus.now + standing_ms if standing_ms else FOR_EVER_MS
            until = datetime.fromtimestamp(rule.until / 1000, UTC) if standing_ms else None
        await self.scopes.decide(rule.id, filter, standing=standing_ms is not None, until=until)
        self.bus.decide(rule)
        await self.compare()

    async def revoke(self, rule: Rule) -> None:
        state = await self.scopes.revoke(rule.id)
        assert (state == "revoked") or not rule.live
        self.bus.end_rule(rule)
        await self.compare()

    # Workers ---------------------------------------------------------------------------------------------

    async def read(self, by: Store, count: int) -> None:
        jobs = {job.jid: job for job in self.bus.jobs}
        streams = self.streams[by.by]
        for entry in await streams.read(streams.places, each=count, block_ms=0):
            self.entries.append(Attempt(by, jobs[entry.jid], entry.id))

    async def start(self, held: Sequence[Attempt], *, adopt: bool = False, lost: bool = False) -> None:
        """
        Of entries that one worker has read. `adopt`: where it knows no attempt of them, it looks for its own.

        `lost`: nobody hears the answers, at first.
        """
        adopt = adopt and not any(self._is_known(each) for each in held)
        deliveries = [Delivery(each.entry, each.job.jid, each.job.kind, self._fresh("token")) for each in held]
        kinds = {each.job.kind for each in held}
        terms = [KindTerms(kind, RETRIES, MAX_LOSSES, 5000, 2000) for kind in sorted(kinds)]
        call = Start(held, deliveries, terms, adopt)
        await self.send(call, heard=not lost)
        if lost:
            self.unheard.append(call)

    async def send(self, call: Start, *, heard: bool = True) -> None:
        """A start, for the first time or once more."""
        by = call.held[0].by
        answers = await by.start(0, QUEUE, call.deliveries, call.terms, adopt=call.adopt)
        for each, delivery, answer in zip(call.held, call.deliveries, answers, strict=True):
            expected = self.bus.start(each.job, by.by, each.entry, delivery.token, adopt=call.adopt)
            assert answer.word == expected, f"start of {each.job.jid} answers {answer.word}, {expected} was due"
            if answer.word == "started" and heard:
                self.attempts.append(Attempt(by, each.job, each.entry, delivery.token, answer.attempt))
        await self.compare()

    def _is_known(self, held: Attempt) -> bool:
        """Whether its worker knows of an attempt at this entry, or may still hear of one."""
        return any(each.by is held.by and each.entry == held.entry for each in self.attempts)

    async def resend(self, call: Start) -> None:
        """
        As a client does that heard nothing: before it asks for anything else. What was lost may have been found since
        by the worker's look through its own entries; then that is what it knows.
        """
        self.unheard.remove(call)
        if not any(self._is_known(each) for each in call.held):
            await self.send(call)

    async def refuse(self, held: Sequence[Attempt], *, delay_ms: int = 0, limit: int = 0) -> None:
        """Of entries that one worker has read, as when it has no slot for them, or does not know their kinds."""
        by, unknown = held[0].by, [not self._is_known(each) for each in held]
        how = {"delay_ms": delay_ms, "limit": limit}
        refusals = [
            Refusal(
                jid=each.job.jid, entry=each.entry, why="unknown_kind", most_ms=2**40, error=b"\x01", unknown=own, **how
            )
            for each, own in zip(held, unknown, strict=True)
        ]
        answers = await by.refuse(0, QUEUE, refusals)
        known = dict(zip(held, unknown, strict=True))
        self._same(
            [word for word, _ in answers],
            lambda each: self.bus.refuse(each.job, by.by, each.entry, unknown=known[each], **how),
            held,
        )
        await self.compare()

    async def leave(self, by: Store) -> None:
        """Drain: hand back what runs, give back what was read and not started, and go off the roster."""
        mine = [each for each in self.attempts if each.by is by]
        if mine:
            await self.release(mine)
        self.unheard = [call for call in self.unheard if call.held[0].by is not by]
        read = [each for each in self.entries if each.by is by and not self._is_known(each)]
        if read:
            await self.refuse(read)
        self.attempts = [each for each in self.attempts if each.by is not by]
        self.entries = [each for each in self.entries if each.by is not by]
        assert await by.forget(0, by.by, [QUEUE], own_wish=True) == "forgotten", "it holds something"
        self.leases[by.by] = 0

    async def renew(self, by: Store) -> None:
        mine = [each for each in self.attempts if each.by is by]
        answers = await by.renew(0, [Renewal(each.job.jid, each.token) for each in mine])
        self.leases[by.by] = self.bus.now + round(LEASE_S * 1000)
        for each, answer in zip(mine, answers, strict=True):
            expected = self.bus.renew(each.job, each.token)
            assert answer.word == expected, f"renew of {each.job.jid} answers {answer.word}, {expected} was due"
            if answer.word == "cancelling":
                assert answer.cause == each.job.cause
        await self.compare()

    async def save(self, held: Attempt) -> None:
        note = Note("saved")
        word, _ = await held.by.note(held.job.jid, token=held.token, attempt=held.number, note=note, saved=b"\x01\x01")
        assert (word == "noted") == self.bus.is_current(held.job, held.token)
        await self.compare()

    async def finish(
        self, held: Sequence[Attempt], *, failed: bool = False, finalizer: bool = False, keep: bool = False
    ) -> None:
        outcome = "failed" if failed else "succeeded"
        how = {"finalizer": finalizer, "keep": keep}
        ends = [_settlement(each, outcome, cause="error" if failed else "", result=b"\x01\x01", **how) for each in held]
        await self._settle(
            Verb.FINISH, held, ends, lambda each: self.bus.finish(each.job, each.token, failed=failed, **how)
        )

    async def retry(self, held: Sequence[Attempt], delay_ms: int) -> None:
        ends = [_settlement(each, "failed", cause="error", delay_ms=delay_ms) for each in held]
        await self._settle(Verb.RETRY, held, ends, lambda each: self.bus.retry(each.job, each.token, RETRIES, delay_ms))

    async def release(self, held: Sequence[Attempt]) -> None:
        ends = [_settlement(each, "released") for each in held]
        await self._settle(Verb.RELEASE, held, ends, lambda each: self.bus.release(each.job, each.token))

    async def _settle(
        self, verb: Verb, held: Sequence[Attempt], ends: Sequence[Settlement], judge: Callable[[Attempt], str]
    ) -> None:
        answers = await held[0].by.settle(verb, 0, QUEUE, ends)
        self._same([word for word, _ in answers], judge, held)
        await self.compare()

    # Watchdog --------------------------------------------------------------------------------------------

    async def reclaim(self, held: Sequence[Attempt]) -> None:
        owner = held[0].by.by
        items = [(each.job.jid, each.entry) for each in held]
        answers = await self.bench.dog.reclaim(0, QUEUE, owner, items, owner_gone=False, failure=b"\x01lost")
        if self.leases[owner] > self.bus.now:
            assert {word for word, _ in answers} == {"alive"}
        else:
            self._same(
                [word for word, _ in answers],
                lambda each: self.bus.reclaim(each.job, owner, each.entry, MAX_LOSSES),
                held,
            )
        await self.compare()

    async def promote(self, jobs: Sequence[Job]) -> None:
        answers = await self.bench.dog.promote(0, QUEUE, [job.jid for job in jobs])
        self._same([word for word, _ in answers], self.bus.promote, jobs)
        await self.compare()

    async def expire(self, jobs: Sequence[Job]) -> None:
        answers = await self.bench.dog.expire(0, [job.jid for job in jobs])
        self._same([word for word, _ in answers], self.bus.expire, jobs)
        await self.compare()

    async def finalize(self, jobs: Sequence[Job]) -> None:
        deadlines = {job: int(self.looks[job].record.get(b"deadline", 2**62)) for job in jobs}
        answers = await self.bench.dog.finalize(0, QUEUE, [(job.jid, False) for job in jobs])
        self._same([answer.word for answer in answers], lambda job: self.bus.finalize(job, deadlines[job]), jobs)
        await self.compare()

    async def carry_out(self, dog: Store, step: int) -> str:
        word, _ = await dog.carry_out(0, step=step)
        if word == "idle" and self.looks:
            await self._compare_scopes()
        else:
            await self.compare()
        for rule in [rule for rule in self.bus.rules if rule.live]:
            if rule.state == "settled":
                assert rule.until <= self.bus.now
                left = [job.jid for job in self.bus.jobs if rule in job.against]
                assert not left, f"{rule.id} is settled, and these have not been told: {left}"
                self.bus.end_rule(rule)
        return word

    async def cascade(self, dog: Store, step: int) -> str:
        word, _ = await dog.cascade(0, step=step)
        if word != "idle":
            await self.compare(cascaded=True)
        return word

    def advance(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)
        self.bus.now = self.bench.clock.now_ms

    def _same(self, answers: Sequence[str], judge: Callable[[Any], str], asked: Sequence[Any]) -> None:
        for each, answer in zip(asked, answers, strict=True):
            expected = judge(each)
            assert answer == expected, f"{answer} is answered, {expected} was due"

    # The end ---------------------------------------------------------------------------------------------

    async def come_to_an_end(self) -> None:
        """Watchdogs and one worker do what they always do, until everything has ended and nothing is left over."""
        for _ in range(ROUNDS):
            await self._settle_all()
            if all(is_terminal(job.state) for job in self.bus.jobs) and not await self._leftovers():
                break
            self.advance(100)
            await self._sweep()
        left = [(job.jid, job.state) for job in self.bus.jobs if not is_terminal(job.state)]
        assert not left, f"these never end: {left}"
        assert not await self._leftovers()

    async def _settle_all(self) -> None:
        await self._repeat(self.cascade)
        for job in self.bus.jobs:
            if job.state in STOPPED:
                told = [child.jid for child in job.open if child.is_live and child.policy == "cancel"]
                assert not told, f"{job.jid} was cancelled, and its children {told} were not"
        await self._repeat(self.carry_out)
        await self._repeat(self.cascade)

    async def _repeat(self, work: Callable[[Store, int], Awaitable[str]]) -> None:
        dogs = itertools.cycle(self.dogs)
        for _ in range(STEPS):
            if await work(next(dogs), 5) == "idle":
                return
        raise AssertionError("a watchdog's work goes on and on")

    async def _sweep(self) -> None:
        for verb in (self.finalize, self.expire, self.promote):
            if self.bus.jobs:
                await verb(list(self.bus.jobs))
        for worker in self.workers:
            mine = [each for each in self.entries if each.by is worker]
            if mine:
                await self.reclaim(mine)
        self.entries.clear()
        self.attempts.clear()
        self.unheard.clear()
        await self.read(self.bench.b, 100)
        if self.entries:
            await self.start(self.entries)
        if self.attempts:
            await self.finish(self.attempts)

    async def _leftovers(self) -> list[str]:
        redis, own = self.bench.redis, self.bench.a.keys(0)
        left = []
        for key in await redis.keys("*"):
            name = key.removeprefix(own.prefix).decode()
            if name.endswith("meta") or any(
                name == kept or name.startswith(kept[:-1]) for kept in KEPT if kept[-1] == "*"
            ):
                continue
            if name.startswith("fallen:") and await redis.pttl(key) > 0:
                continue  # of a failed job that had open children: it leaves by itself
            if name in KEPT or (name == "rules" and any(rule.live for rule in self.bus.rules)):
                continue
            left.append(name)
        pending = await redis.xpending(own.stream(QUEUE), GROUP)
        unread = await redis.xlen(own.stream(QUEUE))
        return left + [f"{pending['pending']} pending, {unread} in the queue"] * bool(pending["pending"] or unread)


def _settlement(held: Attempt, outcome: str, **facts: Any) -> Settlement:
    return Settlement(
        jid=held.job.jid, entry=held.entry, token=held.token, attempt=held.number, outcome=outcome, **facts
    )
