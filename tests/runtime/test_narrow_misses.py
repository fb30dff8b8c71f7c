"""
Situations that once brought a service down or lost a job for as long as its worker lived.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import busq
from busq.errors import BusUnavailable
from busq.protocol.cancel import TripFacts
from busq.store.store import Store
from tests.runtime.bench import PATIENT, bench, until


async def the_store(b: Any) -> Store:
    store: Store = await b.store()
    return store


async def test_an_attempt_whose_start_was_not_heard_of_runs_although_its_slot_went_to_another_job(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it runs, so its worker gives it back: whoever has room takes it."""
    async with bench(redis_url, lease_s=60.0) as b:
        ran: list[int] = []

        @b.bus.job
        async def short(n: int) -> None:
            ran.append(n)

        real, lost = Store.start, []

        async def loses_the_first_answer(self: Store, *args: Any, **kwargs: Any) -> Any:
            answer = await real(self, *args, **kwargs)
            if not lost:
                lost.append(answer)
                raise BusUnavailable("the answer was lost")
            return answer

        monkeypatch.setattr(Store, "start", loses_the_first_answer)
        handles = [await short.enqueue(n) for n in range(3)]
        await b.work(concurrency=1)
        for handle in handles:
            assert (await handle.wait(timeout=10)).state == "succeeded"
        assert sorted(ran) == [0, 1, 2]


async def test_an_ending_does_not_overtake_the_lines_of_its_job(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were put in while an earlier ending was on its way; after its ending nothing is added to a history."""
    async with bench(redis_url, lease_s=60.0, grace_s=30.0) as b:
        on_its_way, arrived, tidy = asyncio.Event(), asyncio.Event(), asyncio.Event()

        @b.bus.job
        async def short() -> None: ...

        @b.bus.job
        async def waits() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await tidy.wait()
                raise

        real = Store.settle

        async def slow(self: Store, *args: Any, **kwargs: Any) -> Any:
            if not arrived.is_set():
                on_its_way.set()
                await arrived.wait()
            return await real(self, *args, **kwargs)

        monkeypatch.setattr(Store, "settle", slow)
        worker = await b.work()
        handle = await waits.enqueue()
        await b.reaches(handle.jid, "running")
        await short.enqueue()
        await on_its_way.wait()
        await handle.cancel()
        await until(lambda: worker._runner.outbox._lines)
        tidy.set()
        await until(lambda: not worker.running)
        arrived.set()
        await handle.wait(timeout=20)
        told = ["enqueued", "started", "requested", "tripped", "observed", "stopped", "finalized"]
        assert await b.names(handle.jid) == told


async def test_a_queue_that_nobody_has_ever_read_does_not_end_the_watchdog(redis_url: str) -> None:
    """It has no group; a worker that died leaves the watchdog to look into every queue."""
    async with bench(redis_url) as b:

        @b.bus.job
        async def short() -> int:
            return 1

        await b.bus.options(queue="a-typo").enqueue("short")
        handle = await short.enqueue()
        store = await the_store(b)
        await store.renew(0, [], info=b"{}")
        await store.redis.zadd(store.keys(0).workers, {b"dead-worker": 1.0})
        watchdog = await b.watch()
        await until(lambda: watchdog.last_pass is not None)
        await b.work()
        assert await handle.result(timeout=10) == 1

        async def is_forgotten() -> bool:
            return await store.redis.zscore(store.keys(0).workers, b"dead-worker") is None

        async with asyncio.timeout(10):
            while not await is_forgotten():  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0)


async def test_one_step_of_a_sweep_that_fails_does_not_keep_the_others_from_being_taken(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url) as b:

        @b.bus.job
        async def short() -> int:
            return 1

        async def broken(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("an odd record")

        monkeypatch.setattr(Store, "finalize", broken)
        monkeypatch.setattr("busq.watchdog.sweep.roster.members", broken)
        await b.work()
        await b.watch()
        assert await (await short.options(delay=0.01).enqueue()).result(timeout=10) == 1


@pytest.mark.parametrize("harm", ["no version", "no hash"])
async def test_a_record_that_no_busq_has_written_takes_nobody_along(redis_url: str, harm: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job
        async def good(n: int) -> int:
            return n

        handles = [await good.enqueue(n) for n in range(5)]
        store = await the_store(b)
        odd = store.job_key(handles[2].jid)
        if harm == "no version":
            await store.redis.hdel(odd, "v")
        else:
            await store.redis.delete(odd)
            await store.redis.set(odd, "not a record")
        worker = await b.work()
        for n in (0, 1, 3, 4):
            assert await handles[n].result(timeout=10) == n
        assert not worker.draining
        if harm == "no hash":
            reader = (await b.bus._link()).reader
            (letter,) = await reader.dead()
            assert letter.reason.startswith("unknown_jid")


@pytest.mark.parametrize("raised", [busq.Cancelled(busq.Cause.USER), SystemExit(3), KeyboardInterrupt()])
async def test_nothing_that_a_trip_callback_raises_stops_the_cancel(redis_url: str, raised: BaseException) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()

        @b.bus.job
        async def listens() -> None:
            def callback(facts: TripFacts) -> None:
                raise raised

            busq.current_job().on_trip(callback)
            await gate.wait()

        await b.work()
        await b.watch()
        handle = await listens.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        assert (await handle.wait(timeout=10)).ended == "confirmed"


async def test_the_limit_of_a_shield_that_was_left_does_not_end_a_later_one(redis_url: str) -> None:
    async with bench(redis_url, grace_s=5.0) as b:
        story: list[str] = []
        inside, go_on = asyncio.Event(), asyncio.Event()

        @b.bus.job
        async def guarded() -> None:
            job = busq.current_job()
            async with job.shield(limit=0.05):
                pass
            async with job.shield():
                inside.set()
                await go_on.wait()
                story.append("the second shield held")

        worker = await b.work()
        handle = await guarded.enqueue()
        await inside.wait()
        await handle.cancel()
        attempt = worker.running[handle.jid]
        await until(lambda: attempt.shut_out)
        await asyncio.sleep(0.1)  # the first one's limit, twice over
        assert attempt.shields == 1
        go_on.set()
        assert (await handle.wait(timeout=10)).ended == "confirmed"
        assert story == ["the second shield held"]


async def test_on_trip_refuses_a_function_that_nobody_would_await(redis_url: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job
        async def listens() -> str:
            async def callback(facts: TripFacts) -> None: ...

            try:
                busq.current_job().on_trip(callback)
            except busq.UsageError as error:
                return str(error)
            return ""

        await b.work()
        assert "async def" in await (await listens.enqueue()).result(timeout=10)
