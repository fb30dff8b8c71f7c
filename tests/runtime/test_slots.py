"""
Slots: never more jobs at once than there are, and none of them lost, whatever happens to the jobs in them.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import busq
from busq.callables import Pool
from busq.errors import BusUnavailable
from busq.store.store import Store
from busq.worker.worker import Worker
from tests.runtime.bench import CANCELLATIONS, EXECUTORS, Bench, Wait, bench, declare, until


class Peak:
    """How many were inside at once, at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0
        self.entered = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            self.entered += 1
            self.most = max(self.most, self._inside)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1


def used(worker: Worker) -> int:
    return worker._slots.used


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_never_more_jobs_run_than_there_are_slots(redis_url: str, executor: str) -> None:
    async with bench(redis_url) as b:
        peak, gate = Peak(), b.gate()

        def counted() -> Any:
            with peak:
                yield Wait(gate)

        kind = declare(b.bus, executor, counted)
        worker = await b.work(concurrency=3)
        handles = await b.bus.enqueue_many(kind.spec() for _ in range(40))
        await until(lambda: peak.entered == 3)
        assert used(worker) == 3
        gate.open()
        for handle in handles:
            await handle.wait(timeout=20)
        assert (peak.most, peak.entered) == (3, 40)
        await until(lambda: used(worker) == 0)


@pytest.mark.parametrize("shards", [1, 4])
async def test_many_endings_of_every_sort_leave_no_slot_behind(redis_url: str, shards: int) -> None:
    """Several queues and shards, both pools in one of the queues; every slot is free again at the end."""
    async with bench(redis_url, shards=shards) as b:
        peaks = {"coroutine": Peak(), "thread": Peak()}

        @b.bus.job(queue="mixed", retries=1)
        async def awaits(n: int) -> int:
            with peaks["coroutine"]:
                await asyncio.sleep(0.001)
                if n % 5 == 0:
                    raise ValueError
                return n

        @b.bus.job(queue="mixed", retries=1)
        def blocks(n: int) -> int:
            with peaks["thread"]:
                if n % 5 == 0:
                    raise ValueError
                return n

        @b.bus.job(queue="other")
        async def other(n: int) -> int:
            with peaks["coroutine"]:
                return n

        worker = await b.work(concurrency=4)
        await b.watch()
        specs = [kind.spec(n) for n in range(40) for kind in (awaits, blocks, other)]
        handles = await b.bus.enqueue_many(specs)
        await b.bus.cancel_many(handle.jid for handle in handles[::7])
        ends = [await handle.wait(timeout=30) for handle in handles]
        for n, job in enumerate(ends):
            fails = n // 3 % 5 == 0 and job.kind != "other"
            assert job.state in ("cancelled" if n % 7 == 0 else "", "failed" if fails else "succeeded")
        assert {job.state for job in ends} == {"succeeded", "failed", "cancelled"}
        assert all(peak.most <= 4 for peak in peaks.values())
        await until(lambda: used(worker) == 0 and not worker.running)


async def test_a_full_thread_pool_does_not_starve_the_coroutines_of_its_queue(redis_url: str) -> None:
    async with bench(redis_url) as b:
        gate = b.gate()

        @b.bus.job
        def blocks() -> None:
            gate.block()

        @b.bus.job
        async def quick(n: int) -> int:
            return n

        worker = await b.work(concurrency=2)
        stuck = await b.bus.enqueue_many(blocks.spec() for _ in range(6))
        await until(lambda: len(worker.running) == 2)
        handles = await b.bus.enqueue_many(quick.spec(n) for n in range(10))
        assert [await handle.result(timeout=20) for handle in handles] == list(range(10))
        gate.open()
        for handle in stuck:
            assert (await handle.wait(timeout=20)).state == "succeeded"


async def test_a_thread_that_ignores_its_cancel_keeps_its_slot_until_it_is_counted_as_a_suspect(
    redis_url: str,
) -> None:
    """And not a moment longer, nor shorter: in between nothing else starts."""
    async with bench(redis_url, grace_s=0.2, force_s=0.2) as b:
        gate, starts = b.gate(), []

        @b.bus.job
        def deaf(n: int) -> None:
            starts.append(n)
            if n == 0:
                gate.block()

        worker = await b.work(concurrency=1)
        await b.watch()
        first = await deaf.enqueue(0)
        await b.reaches(first.jid, "running")
        second = await deaf.enqueue(1)
        await first.cancel()

        job = await first.wait(timeout=10)
        assert job.ended == "abandoned"
        assert job.deadline is not None
        assert (await b.bus.stats()).suspects == 1
        await second.wait(timeout=10)
        assert starts == [0, 1]
        began = next(event.at for event in await second.history() if event.name == "started")
        assert began is not None
        assert job.finished_at is not None
        assert began >= job.finished_at, "the slot was given away while the code in it ran and was not counted"
        gate.open()
        await until(lambda: worker.leftovers == 0)
        await until(lambda: _suspects(b, 0))


async def test_a_timed_out_thread_that_runs_on_is_a_suspect_too(redis_url: str) -> None:
    async with bench(redis_url, grace_s=0.05, force_s=0.05) as b:
        gate = b.gate()

        @b.bus.job(timeout=0.05, grace=0.05)
        def deaf() -> None:
            gate.block()

        worker = await b.work(concurrency=1)
        handle = await deaf.enqueue()
        job = await handle.wait(timeout=10)
        assert (job.state, job.cause) == ("failed", "timed_out")
        assert job.error is not None
        assert "could not be stopped" in job.error.message
        assert worker.leftovers == 1
        await until(lambda: _suspects(b, 1))
        gate.open()
        await until(lambda: _suspects(b, 0))


async def test_a_cancel_of_a_timed_out_thread_that_runs_on_claims_no_stop(redis_url: str) -> None:
    """It is cancelled while its timeout's grace runs, and given up with its code running: abandoned, not completed."""
    async with bench(redis_url, grace_s=1.0, force_s=0.05) as b:
        gate = b.gate()

        @b.bus.job(timeout=0.02, grace=1.0)
        def deaf() -> None:
            gate.block()

        worker = await b.work(concurrency=1)
        handle = await deaf.enqueue()
        await until(lambda: any(attempt.token.tripped for attempt in worker.running.values()))
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended) == ("cancelled", "abandoned")
        await until(lambda: _suspects(b, 1))


async def _suspects(b: Bench, count: int) -> bool:
    return (await b.bus.stats()).suspects == count


async def test_a_read_that_finds_a_full_pool_gives_back_without_spending_anything(redis_url: str) -> None:
    async with bench(redis_url) as b:
        gate = b.gate()

        @b.bus.job
        def blocks() -> int:
            gate.block()
            return busq.current_job().attempt

        @b.bus.job
        async def quick() -> None: ...

        await b.work(concurrency=2)
        handles = await b.bus.enqueue_many(blocks.spec() for _ in range(10))
        await until(lambda: _held_back(b, [handle.jid for handle in handles]))
        gate.open()
        jobs = [await handle.wait(timeout=20) for handle in handles]
        assert {(job.attempt, job.failures, job.losses, job.result) for job in jobs} == {(1, 0, 0, 1)}


async def _held_back(b: Bench, jids: list[str]) -> bool:
    for jid in jids:
        if "handed_back" in await b.names(jid):
            return True
    return False


@pytest.mark.parametrize("fails", ["start", "bury"])
async def test_no_slot_leaks_when_redis_fails_in_the_middle_of_a_take(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The call took effect and its answer was lost; what it started is taken up again."""
    async with bench(redis_url) as b:
        gate = b.gate()

        @b.bus.job
        async def waits(n: int) -> int:
            await gate.wait()
            return n

        @b.bus.job(queue="second")
        async def also(n: int) -> int:
            await gate.wait()
            return n

        await b.bus.stats()
        store = (await b.bus._link()).store
        handles = await b.bus.enqueue_many([*(waits.spec(n) for n in range(3)), *(also.spec(n) for n in range(3))])
        for queue in ("default", "second"):
            await store.redis.xadd(store.keys(0).stream(queue), {"no": "job"})
            await store.redis.xadd(store.keys(0).stream(queue), {"jid": "never-enqueued", "kind": "waits"})
        failed: list[str] = []
        whole = getattr(Store, fails)

        async def once(self: Store, *args: Any, **kwargs: Any) -> Any:
            answer = await whole(self, *args, **kwargs)
            if not failed:
                failed.append(fails)
                raise BusUnavailable("the answer was lost")
            return answer

        monkeypatch.setattr(Store, fails, once)
        worker = await b.work(concurrency=50)
        await until(lambda: failed)
        await until(lambda: len(worker.running) == 6)
        assert worker._slots._used[Pool.COROUTINE] == 6
        gate.open()
        assert [await handle.result(timeout=10) for handle in handles] == [0, 1, 2] * 2
        await until(lambda: used(worker) == 0)


async def test_an_entry_of_a_job_whose_end_is_not_told_yet_is_not_started_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Redis was away: the intake looks through its own pending entries before the outbox has told of the ending.
    """
    async with bench(redis_url, lease_s=15.0) as b:
        told, ran = b.gate(), []

        @b.bus.job
        async def once() -> str:
            ran.append(1)
            return "done"

        settle = Store.settle

        async def later(self: Store, *args: Any, **kwargs: Any) -> Any:
            await told.wait()
            return await settle(self, *args, **kwargs)

        monkeypatch.setattr(Store, "settle", later)
        worker = await b.work()
        handle = await once.enqueue()
        await until(lambda: ran and not worker.running)
        await worker._intake.reconcile()
        told.open()
        assert await handle.result(timeout=10) == "done"
        job = await handle.get()
        assert (len(ran), job.attempt) == (1, 1)


async def test_a_job_whose_handler_swallows_everything_frees_its_coroutine_slot(redis_url: str) -> None:
    async with bench(redis_url) as b:
        gate = b.gate()

        def deaf() -> Any:
            while not gate.is_open:
                try:
                    yield Wait(gate)
                except CANCELLATIONS:
                    continue

        kind = declare(b.bus, "coroutine", deaf)
        worker = await b.work(concurrency=2)
        await b.watch()
        handles = await b.bus.enqueue_many(kind.spec() for _ in range(2))
        await until(lambda: len(worker.running) == 2)
        await b.bus.cancel_many(handle.jid for handle in handles)
        for handle in handles:
            assert (await handle.wait(timeout=10)).ended == "abandoned"
        await until(lambda: used(worker) == 0)
        assert worker.leftovers == 2
