"""Which steps a walk may take. Each rule here is one step of a `Walk` (walk.py)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec import structs

from busq.protocol.cancel import Cause
from busq.protocol.scope import Filter
from busq.store.drains import Whole
from tests.model.choices import (
    AFTER_A_LOST_START,
    CAUSES,
    DELAYS,
    FEW,
    FILTERS,
    FOR_SO_LONG,
    GROUPS,
    KINDS,
    MOMENTS,
    OCCASIONS,
    PARENTS,
    PICK,
    POLICIES,
    READ,
    SECONDS,
    SHARD,
    SHARDS,
    STOPPED,
    one_of,
    some_of,
)  # fmt: skip
from tests.model.job import Job
from tests.model.walk import Walk
from tests.model.working import HOOKED, Attempt
from tests.store.bench import LEASE_S


class Walking(RuleBasedStateMachine):
    """`walks`: where a walk may go, by number of shards. `run` waits for what a step awaits."""

    walks: dict[int, Walk]
    walk: Walk
    run: Callable[[Awaitable[Any]], Any]

    @initialize(
        shards=st.sampled_from(SHARDS),
        plan=st.lists(st.tuples(PARENTS, POLICIES, GROUPS, st.integers(1, 3)), min_size=3, max_size=8),
        read=READ,
        alive=st.sampled_from([(0, 1), (0,), (1,)]),
    )
    def begin(
        self,
        shards: int,
        plan: list[tuple[int, str, str | None, int]],
        read: tuple[int, int],
        alive: tuple[int, ...],
    ) -> None:
        """`alive`: the workers whose lease is good; the other has not beaten yet."""
        self.walk = self.walks[shards]
        self.run(self.walk.begin())
        for who in alive:
            self.run(self.walk.renew(self.walk.workers[who]))
        for place, policy, group, n in plan:
            parent = self.jobs[place] if place < len(self.jobs) else None
            job = Job("", HOOKED if n == 3 else "k1", group, parent=parent, policy=policy if parent else "cancel")
            job.args = {"n": n}
            self.run(self.walk.enqueue(job))
        for who, count in enumerate(read):
            self.run(self._read_and_start(who, count))

    def teardown(self) -> None:
        if hasattr(self, "walk"):
            self.run(self.walk.come_to_an_end())

    # Producers -------------------------------------------------------------------------------------------

    @rule(
        kind=KINDS,
        group=GROUPS,
        n=st.integers(1, 3),
        occasion=OCCASIONS,
        delay_ms=DELAYS,
        expires_ms=MOMENTS,
        due_ms=MOMENTS,
    )
    def enqueue(self, kind: str, group: str | None, n: int, occasion: str, **moments: int) -> None:
        self.run(self.walk.enqueue(Job("", kind, group, args={"n": n}, occasion=occasion), **moments))

    @precondition(lambda self: self.walk.promised)
    @rule(pick=PICK, kind=KINDS, occasion=OCCASIONS, parent=PICK | st.none())
    def enqueue_as_promised(self, pick: int, kind: str, occasion: str, parent: int | None) -> None:
        """A job whose jid was cancelled beforehand; perhaps a child of another one in its shard."""
        jid = one_of(self.walk.promised, pick)
        self.walk.promised.remove(jid)
        shard = self.walk.bench.a.shard_of(jid)
        near = [job for job in self.parents if job.shard == shard]
        above = None if parent is None or not near else one_of(near, parent)
        self.run(self.walk.enqueue(Job(jid, kind, "g1", parent=above, args={"n": 2}, occasion=occasion)))

    @rule(key=st.sampled_from(["x", "y"]), group=GROUPS, delay_ms=DELAYS, n=st.integers(1, 3))
    def supersede(self, key: str, group: str | None, delay_ms: int, n: int) -> None:
        self.run(self.walk.enqueue(Job("", "k1", group, key, args={"n": n}), delay_ms=delay_ms))

    @precondition(lambda self: self.parents)
    @rule(pick=PICK, policy=POLICIES, group=GROUPS, delay_ms=DELAYS, due_ms=MOMENTS)
    def bear(self, pick: int, policy: str, group: str | None, **moments: int) -> None:
        """A child of any job."""
        job = Job("", HOOKED, group, parent=one_of(self.parents, pick), policy=policy, args={"n": 2})
        self.run(self.walk.enqueue(job, **moments))

    @precondition(lambda self: any(not each.job.hook_of for each in self.attempts))
    @rule(pick=PICK, policy=POLICIES)
    def spawn(self, pick: int, policy: str) -> None:
        """A child that a handler asks for."""
        held = one_of([each for each in self.attempts if not each.job.hook_of], pick)
        job = Job("", "k1", "g1", parent=held.job, policy=policy, args={"n": 3})
        self.run(self.walk.enqueue(job, token=held.token))

    # Cancels ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.jobs)
    @rule(picks=FEW, grace_s=st.sampled_from([None, None, 0.0, 1.0, 60.0]))
    def cancel(self, picks: list[int], grace_s: float | None) -> None:
        self.run(self.walk.cancel(some_of(self.jobs, picks), grace_s))

    @rule(fresh=st.sampled_from([True, False, False]), pick=PICK, seconds=FOR_SO_LONG, cause=CAUSES)
    def cancel_beforehand(self, fresh: bool, pick: int, seconds: float, cause: Cause) -> None:
        promised = self.walk.promised
        jid = self.walk.fresh("p") if fresh or not promised else one_of(promised, pick)
        self.run(self.walk.entomb(jid, seconds, cause))

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
    @rule(picks=FEW, finalizer=st.booleans(), keep=st.booleans(), stopped=STOPPED)
    def succeed(self, picks: list[int], **how: Any) -> None:
        self.run(self.walk.finish(self._of_one(self.attempts, picks), **how))

    @precondition(lambda self: self.attempts)
    @rule(
        picks=FEW,
        how=st.sampled_from(["fail", "retry", "retry", "release"]),
        delay_ms=st.sampled_from([0, 2000]),
        stopped=STOPPED,
    )
    def do_not_succeed(self, picks: list[int], how: str, delay_ms: int, stopped: str) -> None:
        held = self._of_one(self.attempts, picks)
        if how == "fail":
            self.run(self.walk.finish(held, failed=True, stopped=stopped))
        elif how == "retry":
            self.run(self.walk.retry(held, delay_ms, stopped))
        else:
            self.run(self.walk.release(held, stopped))

    @rule(kind=KINDS, occasion=OCCASIONS, keep_s=st.sampled_from([0.0, 10.0]))
    def declare(self, kind: str, occasion: str, keep_s: float) -> None:
        self.run(self.walk.declare(kind, occasion, keep_s))

    @rule(who=st.integers(0, 1), whole=st.sampled_from(list(Whole)))
    def ask_to_drain(self, who: int, whole: Whole) -> None:
        self.run(self.walk.ask_to_drain(self.walk.workers[who], whole))

    # Watchdogs -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.walk.entries)
    @rule(picks=FEW, lost=st.booleans(), gone=st.booleans(), forgotten=st.booleans())
    def reclaim(self, picks: list[int], lost: bool, gone: bool, forgotten: bool) -> None:
        held = self._of_one(self.walk.entries, picks)
        if lost:
            self.walk.advance(LEASE_S)
        self.run(self.walk.reclaim(held, gone=gone))
        if forgotten:
            for shard in self.walk.shards:
                self.run(self.walk.forget(self.walk.bench.dog, shard, held[0].by.by))

    @precondition(lambda self: self.jobs)
    @rule(picks=FEW, verb=st.sampled_from(["promote", "expire"]))
    def look_after(self, picks: list[int], verb: str) -> None:
        self.run(getattr(self.walk, verb)(some_of(self.jobs, picks)))

    @precondition(lambda self: self.jobs)
    @rule(picks=FEW, gone=st.booleans())
    def finalize(self, picks: list[int], gone: bool) -> None:
        self.run(self.walk.finalize(some_of(self.jobs, picks), gone=gone))

    @rule(shard=SHARD)
    def prune(self, shard: int) -> None:
        self.run(self.walk.prune(self._of(shard)))

    @rule(who=st.integers(0, 1), shard=SHARD, step=st.integers(1, 4), times=st.integers(1, 8))
    def carry_out(self, who: int, shard: int, step: int, times: int) -> None:
        for _ in range(times):
            if self.run(self.walk.carry_out(self.walk.dogs[who], self._of(shard), step)) == "idle":
                break

    @rule(who=st.integers(0, 1), shard=SHARD, step=st.integers(1, 3))
    def cascade(self, who: int, shard: int, step: int) -> None:
        self.run(self.walk.cascade(self.walk.dogs[who], self._of(shard), step))

    @rule(seconds=SECONDS)
    def advance(self, seconds: float) -> None:
        self.walk.advance(seconds)
        self.run(self.walk.compare())

    # Picking ---------------------------------------------------------------------------------------------

    @property
    def jobs(self) -> list[Job]:
        return self.walk.bus.jobs

    @property
    def parents(self) -> list[Job]:
        """A clean-up bears no children."""
        return [job for job in self.jobs if not job.hook_of]

    def _of(self, shard: int) -> int:
        return shard % len(self.walk.shards)

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
