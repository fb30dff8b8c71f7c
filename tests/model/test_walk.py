"""
Long random walks beside the plain model (plain.py): rules, trees and keys over the shipped scripts on a real server.

`BUSQ_WALKS` says how many walks there are. Without it they are the same every time. A walk that fails is printed as the
steps that it took, and becomes a small test of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec import structs

from busq.protocol.scope import Filter
from tests.model.plain import Job
from tests.model.walk import Attempt, Walk
from tests.store.bench import LEASE_S, Bench

WALKS = int(os.environ.get("BUSQ_WALKS", "50"))
STEPS = 50

T = TypeVar("T")

PICK = st.integers(0, 11)
FEW = st.lists(PICK, min_size=1, max_size=3)
GROUPS = st.sampled_from(["g1", "g2", None])
KINDS = st.sampled_from(["k1", "k2"])
POLICIES = st.sampled_from(["cancel", "cancel", "wait", "abandon"])
AFTER_A_LOST_START = ("sent again", "found", "given back", "left as it is")
PARENTS = st.integers(0, 11)  # a place that is not there: none
READ = st.tuples(st.integers(0, 3), st.integers(0, 3))
SECONDS = st.sampled_from([0.5, 3, 8, 20])
DELAYS = st.sampled_from([0, 0, 0, 4000])
MOMENTS = st.sampled_from([0, 0, 0, 6000, 12000])
WHERES = st.sampled_from(
    [
        "state == 'queued'",
        "state in ['running', 'waiting']",
        "state != 'running'",
        "attempt >= 1",
        "attempt == 0",
        "failures > 0 or losses > 0",
        "losses == 0 and failures == 0 and attempt > 0",
        "age > 5",
        "args.n >= 2",
        "parent == null",
        "parent != null and not group == 'g1'",
        "kind $= '/finalize'",
    ]
)


FILTERS = (
    st.builds(Filter, group=st.sampled_from(["g1", "g2"]), where=WHERES | st.none())
    | st.builds(Filter, where=WHERES)
    | st.builds(Filter, worker=st.sampled_from(["a", "b"]))
    | st.builds(Filter, kind=st.just("k2"))
    | st.just(Filter(everything=True))
)


def one_of(items: Sequence[T], pick: int) -> T:
    """The newest few are what most happens to."""
    return items[-1 - pick % len(items)]


def some_of(items: Sequence[T], picks: Sequence[int]) -> list[T]:
    return list(dict.fromkeys(one_of(items, pick) for pick in picks))


class Walking(RuleBasedStateMachine):
    """Each rule is one step of a `Walk`; which jobs it is about are picked by their place, the newest first."""

    walk: Walk
    run: Callable[[Awaitable[Any]], Any]

    @initialize(
        plan=st.lists(st.tuples(PARENTS, POLICIES, GROUPS, st.integers(1, 3)), min_size=3, max_size=8), read=READ
    )
    def begin(self, plan: list[tuple[int, str, str | None, int]], read: tuple[int, int]) -> None:
        self.run(self.walk.begin())
        for place, policy, group, n in plan:
            parent = self.jobs[place] if place < len(self.jobs) else None
            job = Job("", "k1", group, parent=parent, policy=policy if parent else "cancel", args={"n": n})
            self.run(self.walk.enqueue(job))
        for who, count in enumerate(read):
            self.run(self._read_and_start(who, count))

    def teardown(self) -> None:
        if hasattr(self.walk, "bus"):
            self.run(self.walk.come_to_an_end())

    # Producers -------------------------------------------------------------------------------------------

    @rule(
        kind=KINDS,
        group=GROUPS,
        n=st.integers(1, 3),
        hooked=st.booleans(),
        delay_ms=DELAYS,
        expires_ms=MOMENTS,
        due_ms=MOMENTS,
    )
    def enqueue(self, kind: str, group: str | None, n: int, hooked: bool, **moments: int) -> None:
        self.run(self.walk.enqueue(Job("", kind, group, args={"n": n}, hooked=hooked), **moments))

    @rule(key=st.sampled_from(["x", "y"]), group=GROUPS, delay_ms=DELAYS, n=st.integers(1, 3))
    def supersede(self, key: str, group: str | None, delay_ms: int, n: int) -> None:
        self.run(self.walk.enqueue(Job("", "k1", group, key, args={"n": n}), delay_ms=delay_ms))

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK, policy=POLICIES, group=GROUPS, delay_ms=DELAYS, due_ms=MOMENTS)
    def bear(self, pick: int, policy: str, group: str | None, **moments: int) -> None:
        """A child of any job."""
        job = Job("", "k2", group, parent=one_of(self.jobs, pick), policy=policy, args={"n": 2})
        self.run(self.walk.enqueue(job, **moments))

    @precondition(lambda self: self.attempts)
    @rule(pick=PICK, policy=POLICIES)
    def spawn(self, pick: int, policy: str) -> None:
        """A child that a handler asks for."""
        held = one_of(self.attempts, pick)
        job = Job("", "k1", "g1", parent=held.job, policy=policy, args={"n": 3})
        self.run(self.walk.enqueue(job, token=held.token))

    # Cancels ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.jobs)
    @rule(picks=FEW, grace_s=st.sampled_from([None, None, 0.0, 1.0, 60.0]))
    def cancel(self, picks: list[int], grace_s: float | None) -> None:
        self.run(self.walk.cancel(some_of(self.jobs, picks), grace_s))

    @precondition(lambda self: self.jobs)
    @rule(filter=FILTERS, below=PICK | st.none())
    def cancel_where(self, filter: Filter, below: int | None) -> None:
        """`below`: only descendants of that job."""
        if below is not None:
            filter = structs.replace(filter, descendants_of=one_of(self.jobs, below).jid)
        self.run(self.walk.decide(filter))

    @rule(
        filter=st.sampled_from([Filter(group="g2"), Filter(where="args.n == 3")]),
        standing_ms=st.sampled_from([0, 5000]),
        revoked=PICK | st.none(),
    )
    def stand_or_revoke(self, filter: Filter, standing_ms: int, revoked: int | None) -> None:
        if revoked is not None and self.walk.bus.rules:
            self.run(self.walk.revoke(one_of(self.walk.bus.rules, revoked)))
        else:
            self.run(self.walk.decide(filter, standing_ms=standing_ms))

    # Workers ---------------------------------------------------------------------------------------------

    @rule(who=st.integers(0, 1), count=st.integers(1, 3))
    def read_and_start(self, who: int, count: int) -> None:
        self.run(self._read_and_start(who, count))

    @rule(who=st.integers(0, 1), count=st.integers(1, 3))
    def read(self, who: int, count: int) -> None:
        self.run(self.walk.read(self.walk.workers[who], count))

    @precondition(lambda self: self.walk.entries)
    @rule(picks=FEW, adopt=st.booleans(), lost=st.booleans())
    def start(self, picks: list[int], **how: bool) -> None:
        self.run(self.walk.start(self._of_one(self.walk.entries, picks), **how))

    @precondition(lambda self: self.walk.unheard)
    @rule(pick=PICK)
    def resend(self, pick: int) -> None:
        self.run(self.walk.resend(one_of(self.walk.unheard, pick)))

    @rule(
        who=st.integers(0, 1), count=st.integers(1, 3), then=st.sampled_from(AFTER_A_LOST_START), pick=PICK | st.none()
    )
    def lose_a_start(self, who: int, count: int, then: str, pick: int | None) -> None:
        """Its answers are lost; perhaps one of its jobs is cancelled before its worker learns what it runs."""
        known = len(self.walk.entries)
        self.run(self.walk.read(self.walk.workers[who], count))
        held = self.walk.entries[known:]
        if not held:
            return
        self.run(self.walk.start(held, lost=True))
        if pick is not None:
            self.run(self.walk.cancel([one_of(held, pick).job]))
        if then == "sent again":
            self.run(self.walk.resend(self.walk.unheard[-1]))
        elif then == "found":
            self.run(self.walk.start(held, adopt=True))
        elif then == "given back":
            self.run(self.walk.refuse(held))

    @rule(who=st.integers(0, 1), delay_ms=st.sampled_from([0, 2000]), limit=st.integers(0, 1), times=st.integers(1, 2))
    def refuse(self, who: int, times: int, **how: int) -> None:
        """Again and again where it counts: then a job fails in the end."""
        for _ in range(times):
            known = len(self.walk.entries)
            self.run(self.walk.read(self.walk.workers[who], 2))
            if self.walk.entries[known:]:
                self.run(self.walk.refuse(self.walk.entries[known:], **how))

    @rule(who=st.integers(0, 1))
    def leave(self, who: int) -> None:
        self.run(self.walk.leave(self.walk.workers[who]))

    @rule(who=st.integers(0, 1), saved=PICK)
    def beat(self, who: int, saved: int) -> None:
        self.run(self.walk.renew(self.walk.workers[who]))
        if self.attempts:
            self.run(self.walk.save(one_of(self.attempts, saved)))

    @precondition(lambda self: self.attempts)
    @rule(picks=FEW, finalizer=st.booleans(), keep=st.booleans())
    def succeed(self, picks: list[int], **how: bool) -> None:
        self.run(self.walk.finish(self._of_one(self.attempts, picks), **how))

    @precondition(lambda self: self.attempts)
    @rule(picks=FEW, how=st.sampled_from(["fail", "retry", "retry", "release"]), delay_ms=st.sampled_from([0, 2000]))
    def do_not_succeed(self, picks: list[int], how: str, delay_ms: int) -> None:
        held = self._of_one(self.attempts, picks)
        if how == "fail":
            self.run(self.walk.finish(held, failed=True))
        elif how == "retry":
            self.run(self.walk.retry(held, delay_ms))
        else:
            self.run(self.walk.release(held))

    # Watchdogs -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.walk.entries)
    @rule(picks=FEW, lost=st.booleans())
    def reclaim(self, picks: list[int], lost: bool) -> None:
        held = self._of_one(self.walk.entries, picks)
        if lost:
            self.walk.advance(LEASE_S)
        self.run(self.walk.reclaim(held))

    @precondition(lambda self: self.jobs)
    @rule(picks=FEW, verb=st.sampled_from(["promote", "expire", "finalize"]))
    def look_after(self, picks: list[int], verb: str) -> None:
        self.run(getattr(self.walk, verb)(some_of(self.jobs, picks)))

    @rule(who=st.integers(0, 1), step=st.integers(1, 4), times=st.integers(1, 8))
    def carry_out(self, who: int, step: int, times: int) -> None:
        for _ in range(times):
            if self.run(self.walk.carry_out(self.walk.dogs[who], step)) == "idle":
                break

    @rule(who=st.integers(0, 1), step=st.integers(1, 3))
    def cascade(self, who: int, step: int) -> None:
        self.run(self.walk.cascade(self.walk.dogs[who], step))

    @rule(seconds=SECONDS)
    def advance(self, seconds: float) -> None:
        self.walk.advance(seconds)
        self.run(self.walk.compare())

    # Picking ---------------------------------------------------------------------------------------------

    @property
    def jobs(self) -> list[Job]:
        return self.walk.bus.jobs

    @property
    def attempts(self) -> list[Attempt]:
        return self.walk.attempts

    async def _read_and_start(self, who: int, count: int) -> None:
        known = len(self.walk.entries)
        await self.walk.read(self.walk.workers[who], count)
        if self.walk.entries[known:]:
            await self.walk.start(self.walk.entries[known:])

    @staticmethod
    def _of_one(items: Sequence[Attempt], picks: Sequence[int]) -> list[Attempt]:
        """What one worker holds."""
        picked = some_of(items, picks)
        return [each for each in picked if each.by is picked[0].by]


def test_every_walk_agrees_with_the_plain_model(redis_url: str) -> None:
    bench = Bench(redis_url)
    with asyncio.Runner() as runner:
        runner.run(bench.__aenter__())

        class OnThisServer(Walking):
            walk = Walk(bench)
            run = staticmethod(runner.run)

        try:
            run_state_machine_as_test(
                OnThisServer,
                settings=settings(
                    max_examples=WALKS,
                    stateful_step_count=STEPS,
                    deadline=None,
                    derandomize="BUSQ_WALKS" not in os.environ,
                    database=None,
                    print_blob=False,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(bench.__aexit__())
