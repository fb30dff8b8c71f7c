"""
Watchdogs beside live workers: bounded cancelling, and clocks that jump.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import busq
from busq.clock import SystemClock
from busq.protocol.cancel import CancelRequest, Ended
from busq.store.forms import Delivery, KindTerms, NewJob
from busq.store.store import Store
from busq.store.streams import Streams
from busq.store.watch import Due
from busq.watchdog.sweep import Sweeper
from busq.watchdog.watchdog import Watchdog
from busq.worker.attempt import Attempt
from busq.worker.control import Control
from tests.runtime.bench import (
    BUSY_S,
    CANCELLATIONS,
    EXECUTORS,
    NEVER_SO_LONG_S,
    Bench,
    Wait,
    bench,
    declare,
    until,
)


@pytest.mark.parametrize("watchdogs", [1, 2, 4])
@pytest.mark.parametrize("executor", EXECUTORS)
async def test_an_overdue_cancel_is_finalized_by_its_deadline_plus_the_interval(
    redis_url: str, executor: str, watchdogs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker lives and beats: a good lease does not protect a job from its own cancel."""
    monkeypatch.setattr("busq.worker.ladder.WATCHDOG_PATIENCE_S", NEVER_SO_LONG_S)  # the worker is not to do it itself
    async with bench(redis_url, lease_s=60.0) as b:
        gate = b.gate()

        def deaf() -> Any:
            while not gate.is_open:
                try:
                    yield Wait(gate)
                except CANCELLATIONS:
                    continue

        kind = declare(b.bus, executor, deaf)
        await b.work(concurrency=5)
        for _ in range(watchdogs):
            await b.watch()
        handles = await b.bus.enqueue_many(kind.spec() for _ in range(5))
        for handle in handles:
            await b.reaches(handle.jid, "running")
        answers = await b.bus.cancel_many(handle.jid for handle in handles)
        latest = timedelta(seconds=b.settings.watchdog_interval_s + BUSY_S)
        for handle, answer in zip(handles, answers, strict=True):
            job = await handle.wait(timeout=10)
            assert (job.state, job.ended) == ("cancelled", Ended.ABANDONED)
            assert answer.deadline is not None
            assert job.finished_at is not None
            assert answer.deadline <= job.finished_at <= answer.deadline + latest
            assert (await b.names(handle.jid)).count("finalized") == 1
        gate.open()


async def test_without_any_watchdog_the_worker_finalizes_in_the_end(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("busq.worker.ladder.WATCHDOG_PATIENCE_S", 0.1)
    async with bench(redis_url) as b:
        gate = b.gate()

        @b.bus.job
        def deaf() -> None:
            gate.block()

        await b.work()
        handle = await deaf.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended) == ("cancelled", "abandoned")
        assert job.deadline is not None
        assert job.finished_at is not None
        assert job.finished_at >= job.deadline
        await until(lambda: _suspects(b, 1))
        gate.open()
        await until(lambda: _suspects(b, 0))


async def _suspects(b: Bench, count: int) -> bool:
    return (await b.bus.stats()).suspects == count


class SteppedClock(SystemClock):
    """Sees the server an hour ahead: as after a step of its clock, for everything that was written before."""

    def stamp_ms(self) -> int:
        return round((time.time() + 3600) * 1000)


async def test_a_step_of_the_servers_clock_takes_no_job_from_a_live_worker(redis_url: str) -> None:
    """Every lease looks over at once; that the worker goes on renewing is the second opinion."""
    async with bench(redis_url) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> int:
            await gate.wait()
            return busq.current_job().attempt

        worker = await b.work()
        handle = await waits.enqueue()
        await b.reaches(handle.jid, "running")
        dog = Watchdog(b.settings_of("watchdog"), clock=SteppedClock())
        watching = asyncio.create_task(dog.run())
        beats: set[float] = set()

        def six_beats() -> bool:  # well over the silence that would make it lost
            beats.add(worker._control._last_answer)
            return len(beats) > 6

        await until(six_beats)
        dog.stop()
        await watching
        job = await handle.get()
        assert (job.state, job.attempt, job.losses) == ("running", 1, 0)
        gate.open()
        assert await handle.result(timeout=10) == 1


async def test_after_a_step_back_of_the_servers_clock_nothing_waits_for_hours(redis_url: str) -> None:
    """An hour was written ahead of now: a worker died, a cancel was accepted, a job was delayed. A watchdog comes."""
    async with bench(redis_url, lease_s=2.0, grace_s=0.1, force_s=0.1) as b:
        ahead = Store(b.settings_of("tester"), by="dead", clock=SteppedClock())
        await ahead.open()
        await ahead.renew(0, [], info=b"{}")
        jobs = [NewJob(jid, "k", "default", b"\x01", delay) for jid, delay in (("a", 0), ("b", 0), ("c", 500))]
        await ahead.enqueue(jobs, call="call")
        streams = Streams(ahead, ["default"])
        await streams.open()
        entries = await streams.read(streams.places, each=10, block_ms=0)
        terms = KindTerms("k", 0, 5, 100, 100)
        begun = [Delivery(each.id, each.jid, "k", each.jid) for each in entries]
        assert [answer.word for answer in await ahead.start(0, "default", begun, [terms])] == ["started"] * 2
        await ahead.cancel(["a"], CancelRequest(), request="request")
        seconds, _ = await ahead.redis.time()
        await ahead.redis.xadd(ahead.keys(0).events, {"0": "later"}, id=f"{(seconds + 3600) * 1000}-0")
        await b.watch()
        await b.reaches("a", "cancelled")
        await b.reaches("b", "queued")
        await b.reaches("c", "queued")
        assert "hastened" in await b.names("a")
        assert (await b.bus.get("b")).losses == 1
        await ahead.close()


async def test_a_job_that_is_due_starts_and_a_retry_too(redis_url: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job(retries=1)
        async def second_time_lucky() -> int:
            if busq.current_job().attempt == 1:
                raise ValueError
            return busq.current_job().attempt

        await b.work()
        await b.watch()
        handle = await second_time_lucky.options(delay=0.1).enqueue()
        assert handle.state == "scheduled"
        assert await handle.result(timeout=10) == 2
        first = (await b.bus.history(handle.jid))[0].at
        started = next(event.at for event in await b.bus.history(handle.jid) if event.name == "started")
        assert first is not None
        assert started is not None
        assert started - first >= timedelta(seconds=0.1)


async def test_a_finalized_attempt_that_never_heard_of_its_cancel_is_told_to_stop(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a long freeze: the first thing the worker hears is that the job has ended without it."""
    frozen = True
    async with bench(redis_url) as b:
        gate, causes = b.gate(), []

        @b.bus.job
        async def waits() -> None:
            try:
                await gate.wait()
            finally:
                causes.append(busq.current_job().cause)

        monkeypatch.setattr("busq.worker.control.Control._ask", _deaf_until(lambda: not frozen))
        worker = await b.work()
        handle = await waits.enqueue()
        await b.reaches(handle.jid, "running")
        await b.watch()
        await handle.cancel(grace=0)
        assert (await handle.wait(timeout=10)).ended == "abandoned"
        assert causes == []
        frozen = False
        await until(lambda: causes)
        assert causes == [busq.Cause.LEASE_LOST]
        await until(lambda: worker.leftovers == 0)
        assert "late_result" in await until(lambda: _with(b, handle.jid, "late_result"))
        await until(lambda: _suspects(b, 0))
        assert (await handle.get()).ended == "abandoned"


def _deaf_until(ready: Callable[[], bool]) -> Callable[..., Any]:
    ask = Control._ask

    async def perhaps(self: Control, shard: int, attempts: list[Attempt], heard_by: str, *, info: bytes = b"") -> None:
        await ask(self, shard, attempts if ready() else [], heard_by, info=info)

    return perhaps


async def _with(b: Bench, jid: str, name: str) -> list[str]:
    names = await b.names(jid)
    return names if name in names else []


# Bounds ------------------------------------------------------------------------------------------------------


async def test_a_pass_prunes_all_that_has_expired_although_each_step_is_bounded(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of each pass would be outrun by a bus that ends more jobs than that: its indexes would grow for ever."""
    monkeypatch.setattr("busq.watchdog.sweep.PRUNE_LIMIT", 2)
    async with bench(redis_url, watchdog_interval_s=60.0) as b:  # steps stop where their share of a pass is over
        await b.bus.cancel_many([f"nobody-{n}" for n in range(9)], tombstone=0.01)
        redis = (await b.bus._link()).store.redis
        [(newest, _)] = await redis.zrange("busq:{0}:cancelled", -1, -1, withscores=True)
        await until(lambda: _is_over(redis, newest, "cancelled"))
        await Watchdog(b.settings_of("watchdog")).sweep_once()
        assert await redis.zcard("busq:{0}:cancelled") == 0


@pytest.mark.parametrize("slow", [False, True])
async def test_a_flood_of_jobs_whose_moment_has_come_does_not_keep_overdue_cancels_waiting(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """A pass looks for overdue cancels first; where a step takes long it takes few, and says that the next is due."""

    class OurClock(SystemClock):
        """Each look at it takes a second, or no time at all."""

        now = 0.0

        def monotonic(self) -> float:
            self.now += 1.0 if slow else 0.0
            return self.now

    monkeypatch.setattr("busq.store.watch.STEP", 1)
    async with bench(redis_url) as b:
        past, later = b.bus.options(expires=0.01), b.bus.options(delay=0.01)
        handles = await b.bus.enqueue_many(each.spec("k") for each in (past, past, past, later, later, later))
        store = await b.store()
        await until(lambda: _is_over(store.redis, handles[-1].jid, "scheduled"))
        sweeper = Sweeper(b.settings, store, 0, OurClock())
        for left in (2, 1, 0) if slow else (0,):
            assert await sweeper.sweep() == (0.0 if slow else None)
            states = Counter([(await b.bus.get(handle.jid)).state for handle in handles])
            assert states == Counter(cancelled=3 - left, queued=3, scheduled=left)


@pytest.mark.parametrize("shards", [1, 8])
async def test_a_pass_over_every_shard_is_over_within_the_interval_although_all_of_them_have_more_to_do(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    """What becomes overdue meanwhile is looked for in the next pass, and is to be finalized within the interval."""

    class OurClock(SystemClock):
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, step_s = OurClock(), 0.002

    def endless(answer: Any) -> Callable[..., Any]:
        async def step(*_: Any, **__: Any) -> Any:
            clock.now += step_s
            return answer

        return step

    for kind, answer in (("carry_out", ("more", 1)), ("cascade", ("more", 1)), ("prune", 500)):
        monkeypatch.setattr(f"busq.store.store.Store.{kind}", endless(answer))
    monkeypatch.setattr("busq.watchdog.sweep.watch.due", endless(Due([("jid", "q", "")], None)))
    monkeypatch.setattr(Sweeper, "_finalize_overdue", endless(None))
    async with bench(redis_url, shards=shards, watchdog_interval_s=0.5) as b:
        await Watchdog(b.settings_of("watchdog"), clock=clock).sweep_once()
        assert b.settings.watchdog_interval_s / 2 < clock.now <= b.settings.watchdog_interval_s


async def _is_over(redis: Any, jid: Any, index: str) -> bool:
    """Whether the moment of this one has come, and with it that of those before it in this index."""
    seconds, micros = await redis.time()
    return bool(await redis.zscore(f"busq:{{0}}:{index}", jid) < seconds * 1000 + micros / 1000)
