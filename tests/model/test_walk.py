"""
Long random walks beside the plain model (plain.py): rules, trees and keys over the shipped scripts on a real server.

`BUSQ_WALKS` says how many walks there are. A walk that fails is printed as the steps that it took, and becomes a small
test of its own (test_found.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from busq.protocol.scope import Filter
from tests.model.plain import Job
from tests.model.walk import Attempt, Walk
from tests.store.bench import Bench

WALKS = int(os.environ.get("BUSQ_WALKS", "60"))
STEPS = 50

T = TypeVar("T")

PICK = st.integers(0, 11)
FEW = st.lists(PICK, min_size=1, max_size=3)
GROUPS = st.sampled_from(["g1", "g2", None])
KINDS = st.sampled_from(["k1", "k2"])
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


def one_of(items: Sequence[T], pick: int) -> T:
    """The newest few are what most happens to."""
    return items[-1 - pick % len(items)]


def some_of(items: Sequence[T], picks: Sequence[int]) -> list[T]:
    return list(dict.fromkeys(one_of(items, pick) for pick in picks))


class Walking(RuleBasedStateMachine):
    """Each rule is one step of a `Walk`; which jobs it is about are picked by their place, the newest first."""

    walk: Walk
    run: Callable[[Awaitable[Any]], Any]

    @initialize()
    def begin(self) -> None:
        self.run(self.walk.begin())

    def teardown(self) -> None:
        if hasattr(self.walk, "bus"):
            self.run(self.walk.come_to_an_end())

    # Producers -------------------------------------------------------------------------------------------

    @rule(
        kind=KINDS,
        group=GROUPS,
        n=st.integers(1, 3),
        delay_ms=DELAYS,
        expires_ms=MOMENTS,
        due_ms=MOMENTS,
        hooked=st.booleans(),
    )
    def enqueue(self, kind: str, group: str | None, n: int, hooked: bool, **moments: int) -> None:
        self.run(self.walk.enqueue(Job("", kind, group, args={"n": n}, hooked=hooked), **moments))

    @rule(key=st.sampled_from(["x", "y"]), group=GROUPS, delay_ms=DELAYS)
    def supersede(self, key: str, group: str | None, delay_ms: int) -> None:
        self.run(self.walk.enqueue(Job("", "k1", group, key, args={"n": 1}), delay_ms=delay_ms))

    @precondition(lambda self: self.jobs)
    @rule(
        pick=PICK,
        policy=st.sampled_from(["cancel", "cancel", "wait", "abandon"]),
        group=GROUPS,
        delay_ms=DELAYS,
        due_ms=MOMENTS,
    )
    def bear(self, pick: int, policy: str, group: str | None, **moments: int) -> None:
        """A child of any job."""
        job = Job("", "k2", group, parent=one_of(self.jobs, pick), policy=policy, args={"n": 2})
        self.run(self.walk.enqueue(job, **moments))

    @precondition(lambda self: self.attempts)
    @rule(pick=PICK, policy=st.sampled_from(["cancel", "cancel", "wait", "abandon"]))
    def spawn(self, pick: int, policy: str) -> None:
        """A child that a handler asks for."""
        held = one_of(self.attempts, pick)
        job = Job("", "k1", "g1", parent=held.job, policy=policy, args={"n": 3})
        self.run(self.walk.enqueue(job, token=held.token))

    @precondition(lambda self: self.jobs)
    @rule(picks=FEW)
    def cancel(self, picks: list[int]) -> None:
        self.run(self.walk.cancel(some_of(self.jobs, picks)))

    # Wide cancels ----------------------------------------------------------------------------------------

    @rule(where=WHERES, group=GROUPS)
    def cancel_where(self, where: str, group: str | None) -> None:
        self.run(self.walk.decide(Filter(where=where, group=group)))

    @rule(
        filter=st.sampled_from(
            [
                Filter(group="g1"),
                Filter(kind="k2"),
                Filter(worker="a"),
                Filter(where="args.n == 1"),
                Filter(everything=True),
            ]
        )
    )
    def cancel_many(self, filter: Filter) -> None:
        self.run(self.walk.decide(filter))

    @precondition(lambda self: self.jobs)
    @rule(pick=PICK, group=GROUPS)
    def cancel_descendants(self, pick: int, group: str | None) -> None:
        self.run(self.walk.decide(Filter(descendants_of=one_of(self.jobs, pick).jid, group=group)))

    @rule(
        filter=st.sampled_from([Filter(group="g2"), Filter(where="args.n == 3")]),
        standing_ms=st.sampled_from([0, 5000]),
    )
    def stand(self, filter: Filter, standing_ms: int) -> None:
        self.run(self.walk.decide(filter, standing_ms=standing_ms))

    @precondition(lambda self: self.walk.bus.rules)
    @rule(pick=PICK)
    def revoke(self, pick: int) -> None:
        self.run(self.walk.revoke(one_of(self.walk.bus.rules, pick)))

    # Workers ---------------------------------------------------------------------------------------------

    @rule(who=st.integers(0, 1), count=st.integers(1, 4))
    def read(self, who: int, count: int) -> None:
        self.run(self.walk.read(self.walk.workers[who], count))

    @rule(who=st.integers(0, 1))
    def read_and_start(self, who: int) -> None:
        known = len(self.walk.entries)
        self.run(self.walk.read(self.walk.workers[who], 2))
        if self.walk.entries[known:]:
            self.run(self.walk.start(self.walk.entries[known:]))

    @precondition(lambda self: self.walk.entries)
    @rule(picks=FEW)
    def start(self, picks: list[int]) -> None:
        self.run(self.walk.start(self._of_one(self.walk.entries, picks)))

    @rule(who=st.integers(0, 1))
    def renew(self, who: int) -> None:
        self.run(self.walk.renew(self.walk.workers[who]))

    @precondition(lambda self: self.attempts)
    @rule(pick=PICK)
    def save(self, pick: int) -> None:
        self.run(self.walk.save(one_of(self.attempts, pick)))

    @precondition(lambda self: self.attempts)
    @rule(picks=FEW, failed=st.sampled_from([False, False, True]), finalizer=st.booleans(), keep=st.booleans())
    def finish(self, picks: list[int], **how: bool) -> None:
        self.run(self.walk.finish(self._of_one(self.attempts, picks), **how))

    @precondition(lambda self: self.attempts)
    @rule(picks=FEW, delay_ms=st.sampled_from([0, 2000]))
    def retry(self, picks: list[int], delay_ms: int) -> None:
        self.run(self.walk.retry(self._of_one(self.attempts, picks), delay_ms))

    @precondition(lambda self: self.attempts)
    @rule(picks=FEW)
    def release(self, picks: list[int]) -> None:
        self.run(self.walk.release(self._of_one(self.attempts, picks)))

    # Watchdogs -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.walk.entries)
    @rule(picks=FEW)
    def reclaim(self, picks: list[int]) -> None:
        self.run(self.walk.reclaim(self._of_one(self.walk.entries, picks)))

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
        return self.walk.bus.jobs if hasattr(self.walk, "bus") else []

    @property
    def attempts(self) -> list[Attempt]:
        return self.walk.attempts

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
