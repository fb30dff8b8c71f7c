"""
Watchdogs beside live workers: bounded cancelling, and clocks that jump.
"""

from __future__ import annotations

import asyncio
import pkgutil
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

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
    Gate,
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
    async with bench(redis_url, beat_s=1.0) as b:  # silent after three of them
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

        def five_beats() -> bool:  # well over the silence that would make it lost
            beats.add(worker._control._last_answer)
            return len(beats) > 5

        await until(five_beats)
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


async def test_an_odd_key_where_it_looks_who_is_there_keeps_no_job_from_being_looked_after(redis_url: str) -> None:
    with capture_logs() as lines:
        async with bench(redis_url) as b:
            ran = asyncio.Event()

            @b.bus.job
            async def short() -> None:
                ran.set()

            await b.work()
            await b.watch()
            store = await b.store()
            await store.redis.delete(store.keys(0).birth)
            await store.redis.set(store.keys(0).birth, "somebody else's")
            await until(lambda: any(line.get("step") == "be_seen" for line in lines))
            await short.options(delay=0.05).enqueue()
            await ran.wait()


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


# What must come in time ---------------------------------------------------------------------------------------


async def _running(b: Bench, *, owner: str, lease_ms: float, jids: list[str], queue: str = "default") -> None:
    """Jobs that run, as far as Redis knows, at a worker of this name with a lease until then."""
    settings = b.settings_of("tester")
    store = Store(settings, by=owner)
    await store.open()
    streams = Streams(store, [queue])
    await streams.open()
    await store.enqueue([NewJob(jid, "k", queue, b"p") for jid in jids], call=f"{queue}{jids[0]}")
    entries = await streams.read(streams.places, each=len(jids), block_ms=0)
    terms = KindTerms("k", retries=0, max_losses=5, grace_ms=0, slack_ms=100)
    await store.start(0, queue, [Delivery(each.id, each.jid, "k", f"of {each.jid}") for each in entries], [terms])
    await store.redis.zadd(store.keys(0).workers, {owner: lease_ms})
    await store.close()


@pytest.mark.parametrize(
    "endless",
    [
        "busq.store.store.Store.reclaim",
        "busq.store.store.Store.promote",
        "busq.store.store.Store.keep_able",
        "busq.store.lineage.Lineage.look",
        "busq.watchdog.watchdog.mend.mend",
    ],
)
async def test_no_other_work_of_a_watchdog_keeps_an_overdue_cancel_waiting(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, endless: str
) -> None:
    """
    Each kind of work in turn takes as long as it likes, as with a dead worker's ten thousands of entries, or a search
    through all records: until the cancel that falls due meanwhile has been finalized.
    """
    async with bench(redis_url) as b:
        begun, finalized = asyncio.Event(), b.gate()
        await _running(b, owner="alive", lease_ms=9e15, jids=["overdue"])
        await _running(b, owner="dead", lease_ms=1.0, jids=["left"])
        await b.bus.options(delay=0.01).enqueue("scheduled")
        if not endless.endswith("keep_able"):  # which must have been through once before anything else
            await _hold(monkeypatch, endless, begun, finalized)
        dog = Watchdog(b.settings_of("watchdog"))
        watching = asyncio.create_task(dog.run())
        if endless.endswith("keep_able"):
            await until(lambda: dog.last_pass is not None)
            await _hold(monkeypatch, endless, begun, finalized)
        async with asyncio.timeout(NEVER_SO_LONG_S):
            await begun.wait()
        await b.bus.cancel("overdue", grace=0)
        job = await b.reaches("overdue", "cancelled")
        assert job.ended == "abandoned"
        finalized.open()
        await b.reaches("left", "queued")
        dog.stop()
        await watching


async def _hold(monkeypatch: pytest.MonkeyPatch, what: str, begun: asyncio.Event, gate: Gate) -> None:
    place, _, name = what.rpartition(".")
    owner = pkgutil.resolve_name(place.replace(".Store", ":Store").replace(".Lineage", ":Lineage"))
    real = getattr(owner, name)

    async def held(*args: Any, **named: Any) -> Any:
        begun.set()
        await gate.wait()
        return await real(*args, **named)

    monkeypatch.setattr(owner, name, held)


async def test_looks_for_overdue_cancels_go_on_while_a_pass_takes_as_long_as_it_likes(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turn by turn of the loop, with nothing between two looks that anybody has to wait for."""
    async with bench(redis_url) as b:
        begun, looks = asyncio.Event(), 0

        async def look(self: Sweeper) -> None:
            nonlocal looks
            looks += 1

        async def sweep(self: Sweeper) -> None:
            begun.set()
            await b.gate().wait()

        monkeypatch.setattr(Sweeper, "finalize", look)
        monkeypatch.setattr(Sweeper, "sweep", sweep)
        monkeypatch.setattr(Watchdog, "_sleep", lambda *_: asyncio.sleep(0))
        dog = Watchdog(b.settings_of("watchdog"))
        watching = asyncio.create_task(dog.run())
        async with asyncio.timeout(NEVER_SO_LONG_S):
            await begun.wait()
        before = looks
        for _ in range(50):
            await asyncio.sleep(0)
        assert looks > before + 10
        dog.stop()
        for gate in b.gates:
            gate.open()
        await watching


class SlowClock(SystemClock):
    """Each look at it takes a second, so that the share of every kind of work is over after one step."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("watchdogs", [1, 2, 16])
async def test_a_take_over_goes_on_in_the_next_pass_when_its_share_of_one_is_over(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, watchdogs: int
) -> None:
    """Pass by pass all that a dead worker held is taken over, and in the same passes what is due is queued."""
    monkeypatch.setattr("busq.store.watch.STEP", 1)
    async with bench(redis_url) as b:
        left = {queue: [f"{queue}-{n}" for n in range(3)] for queue in ("first", "second")}
        for queue, jids in left.items():
            await _running(b, owner="dead", lease_ms=1.0, jids=jids, queue=queue)
        store = await b.store()
        sweepers = [Sweeper(b.settings, store, 0, SlowClock()) for _ in range(watchdogs)]
        await b.bus.options(delay=0.001, jid="due", queue="third").enqueue("k")
        await until(lambda: _is_over(store.redis, "due", "scheduled"))
        assert await sweepers[0].sweep() == 0.0
        states = [(await b.bus.get(jid)).state for jids in left.values() for jid in jids]
        assert Counter(states) == {"running": 5, "queued": 1}, "one step, the oldest entry of the first queue"
        assert states[0] == "queued"
        assert (await b.bus.get("due")).state == "queued"

        async def forgotten() -> bool:
            return await store.redis.zscore(store.keys(0).workers, "dead") is None

        passes = 0
        while not await forgotten():
            await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers))
            passes += 1
            assert passes < 20
        states = [(await b.bus.get(jid)).state for jids in left.values() for jid in jids]
        assert set(states) == {"queued"}
        assert await store.redis.xlen(store.keys(0).stream("first")) == 3


async def test_entries_that_stay_where_they_are_keep_none_behind_them_from_being_taken_over(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of the entries is of a job that runs elsewhere, so it is not taken over and not removed either."""
    monkeypatch.setattr("busq.store.watch.STEP", 1)
    async with bench(redis_url, watchdog_interval_s=60.0) as b:
        await _running(b, owner="dead", lease_ms=1.0, jids=["elsewhere", "left"])
        store = await b.store()
        await store.redis.hset(store.job_key("elsewhere"), "owner", "alive")
        sweeper = Sweeper(b.settings, store, 0, SlowClock())
        for _ in range(6):
            await sweeper.sweep()
        assert (await b.bus.get("left")).state == "queued"
        assert (await b.bus.get("elsewhere")).state == "running"


async def test_a_worker_that_is_heard_of_again_in_the_middle_of_a_take_over_keeps_the_rest(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all leases are over by the server's clock, as a step of that clock makes them."""
    monkeypatch.setattr("busq.store.watch.STEP", 1)
    async with bench(redis_url, beat_s=3.0) as b:
        await _running(b, owner="slow", lease_ms=1.0, jids=["taken", "kept"])
        store = await b.store()
        sweeper = Sweeper(b.settings, store, 0, SlowClock())
        while (await b.bus.get("taken")).state == "running":
            await sweeper.sweep()
        assert [(await b.bus.get(jid)).state for jid in ("taken", "kept")] == ["queued", "running"]
        lease_ms = 2.0
        for _ in range(5):
            await store.redis.zadd(store.keys(0).workers, {"slow": lease_ms})
            await sweeper.sweep()
            lease_ms += 1.0
        assert (await b.bus.get("kept")).state == "running"


async def _is_over(redis: Any, jid: Any, index: str) -> bool:
    """Whether the moment of this one has come, and with it that of those before it in this index."""
    seconds, micros = await redis.time()
    return bool(await redis.zscore(f"busq:{{0}}:{index}", jid) < seconds * 1000 + micros / 1000)
