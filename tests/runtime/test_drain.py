"""
Drain is not cancel: a worker that stops hands back what it cannot finish, spends nothing, and still hears users.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import busq
from busq.store import drains
from busq.store.drains import Whole
from busq.store.store import Store
from busq.worker.reception import Reception
from tests.runtime.bench import CANCELLATIONS, EXECUTORS, NEVER_SO_LONG_S, Bench, Wait, bench, declare, taken, until


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_drain_hands_unfinished_jobs_back_without_spending_anything(redis_url: str, executor: str) -> None:
    async with bench(redis_url) as b:
        gate, causes = b.gate(), []

        def waits() -> Any:
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                causes.append(busq.current_job().cause)
                raise
            return busq.current_job().attempt

        kind = declare(b.bus, executor, waits)
        worker = await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        await b.end(worker)
        job = await handle.get()
        assert (job.state, job.attempt, job.failures, job.losses, job.cause) == ("queued", 1, 0, 0, None)
        assert causes == [busq.Cause.SHUTDOWN]
        assert "handed_back" in await b.names(handle.jid)
        assert [member.name for member in await b.bus.workers()] == []
        gate.open()
        await b.work()
        assert await handle.result(timeout=10) == 2


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_job_that_ends_during_the_drain_is_recorded(redis_url: str, executor: str) -> None:
    async with bench(redis_url, shutdown_timeout_s=20.0) as b:
        gate = b.gate()

        def waits() -> Any:
            yield Wait(gate)
            return "in time"

        kind = declare(b.bus, executor, waits)
        worker = await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        worker.stop()
        await until(lambda: worker.draining)
        later = await kind.enqueue()
        gate.open()
        await b.ended(worker)
        assert (await handle.get()).result == "in time"
        assert (await later.get()).state == "queued", "a draining worker takes nothing new"


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_users_cancel_during_the_drain_is_honoured(redis_url: str, executor: str) -> None:
    async with bench(redis_url, shutdown_timeout_s=20.0, grace_s=5.0) as b:
        gate, causes = b.gate(), []

        def waits() -> Any:
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                causes.append(busq.current_job().cause)
                raise

        kind = declare(b.bus, executor, waits)
        worker = await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        worker.stop()
        await until(lambda: worker.draining)
        assert (await handle.cancel(reason="no longer wanted")).verdict == "signalled"
        await b.ended(worker)
        job = await handle.get()
        assert (job.state, job.ended, job.cause, job.reason) == ("cancelled", "confirmed", "user", "no longer wanted")
        assert causes == [busq.Cause.USER]


async def test_a_users_cancel_after_the_handler_was_told_to_stop_is_honoured_too(redis_url: str) -> None:
    """Its clean-up never looks again, so nobody can say that it learned of the cancel."""
    async with bench(redis_url, cleanup_s=10.0, shutdown_timeout_s=0.0) as b:
        told, gate = b.gate(), b.gate()

        @b.bus.job
        async def tidies() -> None:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                told.open()
                await gate.wait()
                raise

        worker = await b.work()
        handle = await tidies.enqueue()
        await b.reaches(handle.jid, "running")
        worker.stop()
        await told.wait()
        assert (await handle.cancel()).verdict == "signalled"
        gate.open()
        await b.ended(worker)
        job = await handle.get()
        assert (job.state, job.ended, job.cause) == ("cancelled", "completed", "user")
        assert "handed_back" not in await b.names(handle.jid)


async def test_a_drained_worker_leaves_a_thread_that_does_not_listen(redis_url: str) -> None:
    async with bench(redis_url) as b:
        gate = b.gate()

        @b.bus.job
        def deaf() -> str:
            gate.block()
            return "late"

        worker = await b.work()
        handle = await deaf.enqueue()
        await b.reaches(handle.jid, "running")
        await b.end(worker)
        assert worker.leftovers == 1
        job = await handle.get()
        assert (job.state, job.attempt, job.failures, job.losses) == ("queued", 1, 0, 0)
        gate.open()
        await b.work()
        assert await handle.result(timeout=10) == "late"
        assert (await handle.get()).attempt == 2


async def test_a_cancelled_thread_that_outlives_the_drain_is_not_said_to_have_stopped(redis_url: str) -> None:
    async with bench(redis_url, grace_s=30.0) as b:
        gate = b.gate()

        @b.bus.job
        def deaf() -> None:
            gate.block()

        worker = await b.work()
        handle = await deaf.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        await b.end(worker)
        job = await handle.get()
        assert (job.state, job.ended) == ("cancelled", "abandoned")


async def test_a_second_request_to_stop_hurries(redis_url: str) -> None:
    async with bench(redis_url, shutdown_timeout_s=600.0) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> None:
            await gate.wait()

        worker = await b.work()
        handle = await waits.enqueue()
        await b.reaches(handle.jid, "running")
        worker.stop()
        await until(lambda: worker.draining)
        worker.stop()
        await b.ended(worker)
        assert (await handle.get()).state == "queued"


async def test_what_was_read_and_not_started_is_given_back(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that arrives while the worker stops: the entries bear its name and nobody else would get them."""
    async with bench(redis_url) as b:
        ran: list[int] = []

        @b.bus.job
        async def one(n: int) -> None:
            ran.append(n)

        read: list[str] = []
        real = Reception.take

        async def forget(self: Reception, entries: list[Any], **how: Any) -> set[str]:
            read.extend(entry.jid for entry in entries)
            return set()

        monkeypatch.setattr(Reception, "take", forget)
        worker = await b.work()
        handles = await b.bus.enqueue_many(one.spec(n) for n in range(5))
        await until(lambda: len(read) == 5)
        await b.end(worker)
        for handle in handles:
            job = await handle.get()
            assert (job.state, job.attempt, job.failures, job.losses) == ("queued", 0, 0, 0)
        assert list(await b.bus.workers()) == []
        monkeypatch.setattr(Reception, "take", real)
        await b.work()
        for handle in handles:
            await handle.wait(timeout=10)
        assert sorted(ran) == [0, 1, 2, 3, 4]


async def test_a_stop_while_a_start_is_on_its_way_loses_and_spends_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url) as b:
        gate, started, go_on = b.gate(), asyncio.Event(), asyncio.Event()

        @b.bus.job
        async def waits() -> int:
            await gate.wait()
            return busq.current_job().attempt

        start = Store.start

        async def slow(self: Store, *args: Any, **how: Any) -> Any:
            answer = await start(self, *args, **how)
            started.set()
            await go_on.wait()
            return answer

        monkeypatch.setattr(Store, "start", slow)
        worker = await b.work()
        handle = await waits.enqueue()
        await started.wait()
        worker.stop()
        await until(lambda: worker.draining)
        go_on.set()
        await b.ended(worker)
        job = await handle.get()
        assert (job.state, job.attempt, job.failures, job.losses) == ("queued", 1, 0, 0)
        assert list(await b.bus.workers()) == []


async def test_many_jobs_in_a_drain_are_all_finished_or_queued(redis_url: str) -> None:
    async with bench(redis_url, shutdown_timeout_s=0.05, cleanup_s=0.05) as b:
        ran: list[int] = []

        @b.bus.job
        async def short(n: int) -> int:
            await asyncio.sleep(0.001 * (n % 40))
            ran.append(n)
            return n

        handles = await b.bus.enqueue_many(short.spec(n) for n in range(300))
        worker = await b.work(concurrency=20)
        await until(lambda: len(ran) > 50)
        await b.end(worker)
        states = [(await handle.get()) for handle in handles]
        assert {job.state for job in states} <= {"succeeded", "queued"}
        assert {(job.failures, job.losses) for job in states} == {(0, 0)}
        await b.work()
        assert [await handle.result(timeout=20) for handle in handles] == list(range(300))


async def test_a_worker_shows_on_the_roster_that_it_drains(redis_url: str) -> None:
    async with bench(redis_url, shutdown_timeout_s=20.0) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> None:
            await gate.wait()

        worker = await b.work()
        await waits.enqueue()
        await until(lambda: worker.running)
        worker.stop()
        await until(lambda: _draining(b))
        gate.open()
        await b.ended(worker)
        assert not worker.ready


async def _draining(b: Bench) -> bool:
    return any(member.card is not None and member.card.draining for member in await b.bus.workers())


# Asked through the bus ---------------------------------------------------------------------------------------


async def test_a_worker_that_is_asked_to_drain_does_so_and_what_follows_as_sigterm_hurries_nothing(
    redis_url: str,
) -> None:
    """A pod that is deleted is asked to drain first, and gets its SIGTERM then."""
    async with bench(redis_url, shutdown_timeout_s=NEVER_SO_LONG_S) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> str:
            await gate.wait()
            return "in time"

        worker, other = await b.work(), await b.work(queues=["other"])
        handle = await waits.enqueue()
        await taken(worker, handle.jid)
        assert await drains.ask(worker._store, worker.name, Whole.WORKER) == "asked"
        await until(lambda: worker.draining)
        later = await waits.enqueue()
        worker.stop()
        assert not worker._hurry_asked.is_set()
        gate.open()
        await b.ended(worker)
        assert (await handle.get()).result == "in time"
        assert (await later.get()).state == "queued"
        assert not other.draining
        assert not worker.empties_pod
        assert await drains.asked(other._store, worker.name) is None, "the wish leaves with the worker"


async def test_a_second_signal_after_the_wish_to_drain_hurries(redis_url: str) -> None:
    async with bench(redis_url, shutdown_timeout_s=NEVER_SO_LONG_S) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> None:
            await gate.wait()

        worker = await b.work()
        handle = await waits.enqueue()
        await taken(worker, handle.jid)
        await drains.ask(worker._store, worker.name, Whole.POD)
        await until(lambda: worker.draining)
        assert worker.empties_pod
        worker.stop()
        worker.stop()
        await b.ended(worker)
        assert (await handle.get()).state == "queued"
