"""
Every order of a few racing steps in which a rule is decided, tried one by one.

A rule hits what matches at the moment of its decision, and nothing else: whatever comes first, whatever comes after,
whether its walk goes a step or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from busq.protocol.scope import Filter, ScopeLook
from busq.protocol.states import State, Verb, is_terminal
from tests.orders.actors import AFTER, STOPPED, Actors, orders, try_all
from tests.store.bench import LEASE_S, Bench, Held

GROUP = "g"


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
FILTERS = {"group": Filter(group=GROUP), "state": Filter(where="state == 'queued'")}


async def _race_rule(bench: Bench, order: Sequence[str], filter: Filter, *, standing: bool) -> None:
    race = RuleRace(bench, filter, standing=standing)
    await race.open()
    for name in order:
        await getattr(race, name)()
        await race.look()
    await race.end()


@pytest.mark.parametrize("standing", [False, True])
@pytest.mark.parametrize("begin", [(), ("start_a",)], ids=["queued", "started"])
@pytest.mark.parametrize("filter", FILTERS)
async def test_a_rule_hits_what_matched_in_every_order_of_three_steps(
    redis_url: str, filter: str, begin: tuple[str, ...], standing: bool
) -> None:
    if standing and filter == "state":
        pytest.skip("a standing rule cannot ask for a state")
    tries = orders(RULE_STEPS, 3, begin, ["decide"])
    await try_all(redis_url, tries, _race_rule, filter=FILTERS[filter], standing=standing)


@pytest.mark.parametrize("first", [name for name in RULE_FEW if name not in AFTER])
async def test_a_rule_hits_what_matched_in_every_order_of_four_steps(redis_url: str, first: str) -> None:
    tries = orders(RULE_FEW, 3, (first,), ["decide"])
    await try_all(redis_url, tries, _race_rule, filter=FILTERS["group"], standing=False)
