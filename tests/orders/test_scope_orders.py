"""
Every order of a few racing steps in which a rule is decided, or a parent cancelled, tried one by one.

A rule hits what matches at the moment of its decision, and nothing else: whatever comes first, whatever comes after,
whether its walk goes a step or not. A parent's cancel goes down to its children, as each one's policy says. After each
step, and after everybody has come to an end, what must hold in every order is looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from busq.protocol.job import Job, decided, job_from_record
from busq.protocol.scope import Filter, ScopeLook
from busq.protocol.states import State, Verb, is_terminal
from busq.store.forms import Settlement
from busq.store.scopes import Scopes
from busq.store.store import Store
from tests.store.bench import DEADLINE_S, KIND, LEASE_S, QUEUE, Bench, Held

GROUP = "g"
RETRIES = 2
ROUNDS = 12
SETTLING = 50
STOPPED = (State.CANCELLING, State.CANCELLED)
LEFT = ("deadlines", "scheduled", "timers", "waiting", "cascades", "walk", "rules", "cancelled")


class Actors:
    """Two workers, a client and a watchdog on one bench; every job that they know of, and the promises to each."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.scopes = Scopes(bench.dog)
        self.scope = bench.fresh("scope")
        self.jids: list[str] = []
        self.doomed: set[str] = set()  # promised: it stops, and does not start
        self.spared: set[str] = set()  # promised: nothing here stops it
        self.held: dict[str, Held] = {}  # by worker `a`

    async def admit(self, **fields: Any) -> str:
        jid = await self.bench.enqueue(**fields)
        self.jids.append(jid)
        return jid

    async def start(self, by: Store, held: Held) -> None:
        answer = await self.bench.begin(held, by, retries=RETRIES)
        if answer.word == "started":
            assert held.jid not in self.doomed, f"{held.jid} is started after it was decided to stop"

    async def start_new(self, by: Store) -> None:
        """Whatever nobody has read yet."""
        for entry in await self.bench.read(by):
            await self.start(by, Held(entry.jid, entry.id))

    async def carry_out(self) -> str:
        return (await self.bench.dog.carry_out(0, step=1))[0]

    async def cascade(self) -> str:
        return (await self.bench.dog.cascade(0, step=1))[0]

    async def settle_all(self) -> None:
        for work in (self.carry_out, self.cascade):
            for _ in range(SETTLING):
                if await work() == "idle":
                    break
            else:
                raise AssertionError(f"{work.__name__} goes on and on")

    async def look(self) -> None:
        """What must hold after every step."""
        for jid, job in (await self.all_shown()).items():
            if jid in self.doomed:
                assert job.state in STOPPED, f"{jid} was decided to stop, and is shown as {job.state}"
            if jid in self.spared:
                assert job.state not in STOPPED, f"{jid} was hit, and nothing was decided about it"

    async def all_shown(self) -> dict[str, Job]:
        """Every job as a look shows it; the count of its open children is that of their set."""
        pipe = self.bench.redis.pipeline(transaction=False)
        for jid in self.jids:
            pipe.zcard(self.bench.a.keys(0).children(jid))
        found: dict[str, Job] = {}
        looks = await self.bench.a.look(0, self.jids)
        for jid, look, children in zip(self.jids, looks, await pipe.execute(), strict=True):
            job = job_from_record(jid, look.record)
            if look.wish:
                cause, reason, source, scope = look.wish
                job = decided(job, cause=cause, reason=reason, source=source, scope=scope)
            assert job.open_children == children, f"{jid}: its open children are miscounted"
            found[jid] = job
        return found

    async def come_to_an_end(self) -> None:
        """Everybody does what they always do, until every job has ended; nothing is left behind then."""
        for _ in range(ROUNDS):
            await self.settle_all()
            await self.look()
            self.bench.clock.advance(LEASE_S + DEADLINE_S)
            await self.bench.dog.finalize(0, QUEUE, [(jid, False) for jid in self.jids])
            await self.bench.dog.promote(0, QUEUE, self.jids)
            for entry, owner in (await self.bench.pending()).items():
                jid = await self._jid_of(entry)
                await self.bench.reclaim(Held(jid, entry), owner=owner.decode())
            for entry in await self.bench.read(self.bench.b):
                held = Held(entry.jid, entry.id)
                await self.start(self.bench.b, held)
                await self.bench.settle(Verb.FINISH, held, by=self.bench.b)
            if all(job.is_terminal for job in (await self.all_shown()).values()):
                break
        await self.settle_all()
        await self.look()
        for jid, job in (await self.all_shown()).items():
            assert job.is_terminal, f"{jid} does not end"
        await self._nothing_is_left()

    async def _jid_of(self, entry: bytes) -> str:
        ((_, fields),) = await self.bench.redis.xrange(self.bench.a.keys(0).stream(QUEUE), entry, entry)
        return str(fields[b"jid"].decode())

    async def _nothing_is_left(self) -> None:
        own = self.bench.a.keys(0)
        assert await self.bench.entries() == []
        assert await self.bench.pending() == {}
        pipe = self.bench.redis.pipeline(transaction=False)
        for name in LEFT:
            pipe.exists(getattr(own, name))
        assert [name for name, left in zip(LEFT, await pipe.execute(), strict=True) if left] == []
        assert not any(job.open_children for job in (await self.all_shown()).values())


Step = Callable[[Any], Awaitable[Any]]


# A rule ----------------------------------------------------------------------------------------------------


class RuleRace(Actors):
    """A job that matches and one that arrives meanwhile, a rule, its walk, and what workers and a watchdog do."""

    def __init__(self, bench: Bench, filter: Filter, *, standing: bool) -> None:
        super().__init__(bench)
        self.filter, self.standing = filter, standing
        self.at_decision: set[str] | None = None
        self.revoked = False

    async def open(self) -> None:
        jid = await self.admit(group=GROUP)
        self.a = await self.bench.take(jid)
        self.b = Held(jid, self.a.entry)

    async def enqueue(self) -> None:
        """One more job that matches, or would have."""
        jid = await self.admit(group=GROUP)
        if self.at_decision is None or self.revoked:
            return
        (self.doomed if self.standing else self.spared).add(jid)

    async def decide(self) -> None:
        before = {jid: await self.bench.state(jid) for jid in self.jids}
        self.at_decision = set()
        for jid, state in before.items():
            matches = self.filter.where is None or state is State.QUEUED
            if matches and state is not None and not is_terminal(state):
                self.at_decision.add(jid)
            elif state is not None:
                self.spared.add(jid)
        self.doomed |= self.at_decision
        await self.scopes.decide(self.scope, self.filter, standing=self.standing)

    async def revoke(self) -> None:
        """What its record does not say yet is not decided any more."""
        if self.at_decision is None or self.revoked:
            return
        for jid in list(self.doomed):
            if await self.bench.state(jid) not in STOPPED:
                self.doomed.remove(jid)
                self.spared.add(jid)
        self.revoked = await self.scopes.revoke(self.scope) == "revoked"

    async def start_a(self) -> None:
        await self.start(self.bench.a, self.a)

    async def start_b(self) -> None:
        await self.start_new(self.bench.b)

    async def finish_a(self) -> None:
        await self.bench.settle(Verb.FINISH, self.a)

    async def retry_a(self) -> None:
        await self.bench.settle(Verb.RETRY, self.a, cause="error", delay_s=1)

    async def release_a(self) -> None:
        await self.bench.settle(Verb.RELEASE, self.a)

    async def renew_a(self) -> None:
        before = await self.bench.record(self.a.jid)
        (answer,) = await self.bench.beat(held=[self.a])
        if (
            self.a.jid in self.doomed
            and before.get(b"token") == self.a.token.encode()
            and before[b"state"] == b"running"
        ):
            assert answer.word == "cancelling", "a running job is told at its worker's next beat"
            assert answer.cause == "scope"

    async def reclaim(self) -> None:
        self.bench.clock.advance(LEASE_S)
        await self.bench.reclaim(self.a)

    async def promote(self) -> None:
        self.bench.clock.advance(1)
        await self.bench.promote(self.a.jid)

    async def end(self) -> None:
        await self.settle_all()
        hit = self.doomed
        for jid in hit:
            job = await self.bench.job(jid)
            assert job.state in STOPPED, "once the walk is over the record itself says so"
            assert (job.cause, job.scope) == ("scope", self.scope)
        if self.standing and not self.revoked:
            self.revoked = await self.scopes.revoke(self.scope) == "revoked"
        await self.come_to_an_end()
        for jid in self.jids:
            assert (await self.bench.state(jid) is State.CANCELLED) == (jid in hit)
        look = await self.scopes.look(self.scope)
        if self.at_decision is not None:
            assert look
            self._counts_add_up(look)

    def _counts_add_up(self, look: ScopeLook) -> None:
        assert sum(look.counts.values()) == sum(look.endings.values()) == len(self.doomed)
        assert look.unfinished == 0
        assert look.done


RULE_STEPS = (
    "decide", "enqueue", "start_a", "start_b", "finish_a", "retry_a", "release_a", "renew_a", "reclaim", "promote",
    "carry_out", "revoke",
)  # fmt: skip
RULE_FEW = ("decide", "enqueue", "start_a", "retry_a", "renew_a", "carry_out", "promote")
AFTER = dict.fromkeys(("finish_a", "retry_a", "release_a", "renew_a"), "start_a") | dict.fromkeys(
    ("finish_child", "fail_child", "retry_child", "renew_child"), "start_child"
)
FILTERS = {"group": Filter(group=GROUP), "state": Filter(where="state == 'queued'")}


async def _race_rule(bench: Bench, order: Sequence[str], filter: Filter, *, standing: bool) -> None:
    race = RuleRace(bench, filter, standing=standing)
    await race.open()
    for name in order:
        await getattr(race, name)()
        await race.look()
    await race.end()


def _orders(steps: Sequence[str], more: int, begin: tuple[str, ...], deciding: Sequence[str]) -> list[tuple[str, ...]]:
    """Without those in which somebody ends an attempt that has not begun: it is told so, and nothing else happens."""
    others = [name for name in steps if name not in begin]
    orders = [(*begin, *rest) for rest in itertools.permutations(others, more)]
    return [order for order in orders if any(name in deciding for name in order) and _makes_sense(order)]


def _makes_sense(order: tuple[str, ...]) -> bool:
    return all(AFTER.get(name, order[0]) in order[: k + 1] for k, name in enumerate(order))


async def _try_all(
    url: str, orders: Sequence[tuple[str, ...]], race: Callable[..., Awaitable[None]], **how: Any
) -> None:
    async with Bench(url) as bench:
        for order in orders:
            try:
                await race(bench, order, **how)
            except AssertionError as error:
                raise AssertionError(f"in the order {', '.join(order)}: {error}") from error


@pytest.mark.parametrize("standing", [False, True])
@pytest.mark.parametrize("begin", [(), ("start_a",)], ids=["queued", "started"])
@pytest.mark.parametrize("filter", FILTERS)
async def test_a_rule_hits_what_matched_in_every_order_of_three_steps(
    redis_url: str, filter: str, begin: tuple[str, ...], standing: bool
) -> None:
    if standing and filter == "state":
        pytest.skip("a standing rule cannot ask for a state")
    orders = _orders(RULE_STEPS, 3, begin, ["decide"])
    await _try_all(redis_url, orders, _race_rule, filter=FILTERS[filter], standing=standing)


@pytest.mark.parametrize("first", [name for name in RULE_FEW if name not in AFTER])
async def test_a_rule_hits_what_matched_in_every_order_of_four_steps(redis_url: str, first: str) -> None:
    orders = _orders(RULE_FEW, 3, (first,), ["decide"])
    await _try_all(redis_url, orders, _race_rule, filter=FILTERS["group"], standing=False)


# A family --------------------------------------------------------------------------------------------------


class FamilyRace(Actors):
    """A running parent and its child, a second one that may be born meanwhile, and a cancel that comes down."""

    def __init__(self, bench: Bench, policy: str) -> None:
        super().__init__(bench)
        self.policy: Mapping[str, str] = {} if policy == "cancel" else {"policy": policy}
        self.cancelled = False  # the parent has been asked to stop

    async def open(self) -> None:
        self.parent = await self.bench.run(await self.admit(), retries=RETRIES)
        self.child = await self.bench.take(await self.admit(parent=self.parent.jid, **self.policy), self.bench.b)

    async def _promise(self) -> None:
        """The parent was asked to stop: so were its open children, if they are to be cancelled with it."""
        self.cancelled = True
        for jid in self.jids[1:]:
            if (await self.bench.job(jid)).is_terminal:
                continue
            if (await self.bench.job(jid)).on_parent_cancel == "cancel":
                self.doomed.add(jid)
            elif await self.bench.state(jid) not in STOPPED:
                self.spared.add(jid)

    async def cancel_parent(self) -> None:
        verdict = (await self.bench.cancel(self.parent.jid)).verdict
        if verdict in ("signalled", "cancelled"):
            await self._promise()

    async def decide_parent(self) -> None:
        """The same by a rule, which asks for nothing of the child."""
        live = not is_terminal((await self.all_shown())[self.parent.jid].state)
        await self.scopes.decide(self.scope, Filter(jid_prefix=self.parent.jid))
        if live:
            await self._promise()

    async def cancel_child(self) -> None:
        await self.bench.cancel(self.child.jid)
        self.spared.discard(self.child.jid)

    async def spawn(self) -> None:
        jid = self.bench.fresh("child")
        word, _, _ = await self.bench.spawn(self.parent, jid)
        if word == "enqueued":
            assert not self.cancelled, "a cancelled parent gains no children"
            self.jids.append(jid)

    async def bear(self) -> None:
        """A child that somebody else enqueues."""
        jid = self.bench.fresh("child")
        word, _ = await self.bench.admit(jid, parent=self.parent.jid, **self.policy)
        if word == "enqueued":
            assert not self.cancelled, "a cancelled parent gains no children"
            self.jids.append(jid)

    async def start_child(self) -> None:
        await self.start(self.bench.b, self.child)

    async def finish_child(self) -> None:
        await self.bench.settle(Verb.FINISH, self.child, by=self.bench.b)

    async def fail_child(self) -> None:
        await self.bench.settle(Verb.FINISH, self.child, "failed", by=self.bench.b, cause="error")

    async def retry_child(self) -> None:
        await self.bench.settle(Verb.RETRY, self.child, by=self.bench.b, cause="error", delay_s=1)

    async def renew_child(self) -> None:
        before = await self.bench.record(self.child.jid)
        (answer,) = await self.bench.beat(self.bench.b, [self.child])
        mine = before.get(b"token") == self.child.token.encode() and before[b"state"] == b"running"
        if self.child.jid in self.doomed and mine:
            assert answer.word == "cancelling", "a running child is told at its worker's next beat"

    async def finish_parent(self) -> None:
        end = Settlement(
            jid=self.parent.jid, entry=self.parent.entry, token=self.parent.token, attempt=1, outcome="succeeded",
            finalizer=True,
        )  # fmt: skip
        await self.bench.a.settle(Verb.FINISH, 0, QUEUE, [end])
        await self._learn_of_finalizer()

    async def _learn_of_finalizer(self) -> None:
        final = (await self.bench.record(self.parent.jid)).get(b"final", b"").decode()
        if final and final not in self.jids:
            assert not self.cancelled, "a cancelled parent is not finalized"
            self.jids.append(final)

    async def fail_parent(self) -> None:
        await self.bench.settle(Verb.FINISH, self.parent, "failed", cause="error")

    async def look(self) -> None:
        await super().look()
        await self._learn_of_finalizer()
        if self.cancelled:
            assert (await self.all_shown())[self.parent.jid].state in STOPPED

    async def settle_all(self) -> None:
        await super().settle_all()
        if self.cancelled:
            for jid in self.jids[1:]:
                job = await self.bench.job(jid)
                assert job.is_terminal or job.state in STOPPED or job.on_parent_cancel != "cancel", (
                    "the cascade is over"
                )

    async def start(self, by: Store, held: Held) -> None:
        """A finalizer has a kind of its own."""
        if held.jid == self.jids[0] or not (await self.bench.job(held.jid)).finalize_of:
            await super().start(by, held)
            return
        answer = await self.bench.begin(held, by, kind=f"{KIND}/finalize")
        assert answer.word == "stale" or not self.cancelled, "a cancelled parent is not finalized"

    async def end(self) -> None:
        await self.come_to_an_end()
        parent = await self.bench.job(self.parent.jid)
        others = [await self.bench.job(jid) for jid in self.jids[1:]]
        if self.cancelled:
            assert parent.state is State.CANCELLED
        if parent.state is State.SUCCEEDED:
            assert all(job.state is not State.CANCELLED for job in others), "a cancelled child is no success"
            assert any(job.finalize_of for job in others), "its finalizer has run"


FAMILY_STEPS = (
    "cancel_parent", "decide_parent", "cascade", "carry_out", "start_child", "finish_child", "fail_child",
    "retry_child", "renew_child", "spawn", "bear", "finish_parent", "fail_parent", "cancel_child",
)  # fmt: skip
OTHER_POLICIES = (
    "cancel_parent", "cascade", "start_child", "finish_child", "fail_child", "bear", "finish_parent", "cancel_child",
)  # fmt: skip
FAMILY_FEW = ("cancel_parent", "cascade", "finish_child", "retry_child", "bear", "finish_parent", "renew_child")


async def _race_family(bench: Bench, order: Sequence[str], policy: str) -> None:
    race = FamilyRace(bench, policy)
    await race.open()
    for name in order:
        await getattr(race, name)()
        await race.look()
    await race.end()


@pytest.mark.parametrize("begin", [(), ("start_child",)], ids=["queued", "started"])
@pytest.mark.parametrize("policy", ["cancel", "wait", "abandon"])
async def test_a_cancel_comes_down_in_every_order_of_three_steps(
    redis_url: str, policy: str, begin: tuple[str, ...]
) -> None:
    steps = FAMILY_STEPS if policy == "cancel" else OTHER_POLICIES
    orders = _orders(steps, 3 - len(begin), begin, ["cancel_parent", "decide_parent"])
    await _try_all(redis_url, orders, _race_family, policy=policy)


@pytest.mark.parametrize("second", FAMILY_FEW)
async def test_a_cancel_comes_down_in_every_order_of_four_steps_after_a_start(redis_url: str, second: str) -> None:
    orders = _orders(FAMILY_FEW, 3, ("start_child", second), ["cancel_parent"])
    await _try_all(redis_url, orders, _race_family, policy="cancel")
