"""
How a worker hears of a cancel: by a notice, and without one; and that a notice alone is powerless.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from typing import Any

import pytest
from redis.asyncio import Redis

import busq
from busq.client.jobs import AsyncJob
from busq.protocol.cancel import Verdict
from busq.worker.attempt import Attempt
from busq.worker.control import Control
from tests.runtime.bench import BUSY_S, PATIENT, Bench, bench, until
from tests.servers import RedisServer

SLOWER_THAN_ANY_TEST_S = 20.0


def waiting_kind(b: Bench) -> AsyncJob[[], None]:
    gate = b.gate()

    @b.bus.job
    async def waits() -> None:
        await gate.wait()

    return waits


async def heard_by(b: Bench, jid: str) -> str:
    """How the worker heard of the cancel: what it wrote into the history."""
    return next(event.facts for event in await b.bus.history(jid) if event.name == "tripped")


async def test_a_notice_is_heard_long_before_the_beat(redis_url: str) -> None:
    async with bench(redis_url, grace_s=5.0, beat_s=SLOWER_THAN_ANY_TEST_S, lease_s=60.0) as b:
        kind = waiting_kind(b)
        worker = await b.work()
        handle = await kind.enqueue()
        await until(lambda: any(attempt.watched for attempt in worker.running.values()))
        await handle.cancel()
        job = await handle.wait(timeout=SLOWER_THAN_ANY_TEST_S / 2)
        assert job.ended == "confirmed"
        assert await heard_by(b, handle.jid) in ("pubsub", "resync")


async def test_without_any_notice_a_cancel_is_heard_within_the_beat(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker never subscribes: only the beat's look at the record is left."""
    monkeypatch.setattr(Control, "watch", lambda self, attempts: None)
    monkeypatch.setattr(Control, "unwatch", lambda self, attempts: None)
    # The listener's first confirmation asks about all jobs, perhaps late: that is not meant here.
    monkeypatch.setattr(Control, "_ask_about_all", lambda self: None)
    async with bench(redis_url, **PATIENT) as b:
        kind = waiting_kind(b)
        await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        asked = time.monotonic()
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert time.monotonic() - asked < b.settings.beat_s + BUSY_S
        assert job.ended == "confirmed"
        assert await heard_by(b, handle.jid) == "beat"


async def test_a_worker_whose_subscriptions_are_killed_all_the_time_hears_within_the_beat(
    own_server: RedisServer,
) -> None:
    async with bench(own_server.url, **PATIENT) as b:
        kind = waiting_kind(b)
        await b.work()
        with own_server.client() as client:
            ended = False

            async def cut() -> None:
                while not ended:
                    client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                    await asyncio.sleep(0.001)

            cutting = asyncio.create_task(cut())
            for _ in range(10):
                handle = await kind.enqueue()
                await b.reaches(handle.jid, "running")
                asked = time.monotonic()
                await handle.cancel()
                await b.reaches(handle.jid, "cancelled")
                assert time.monotonic() - asked < b.settings.beat_s + BUSY_S
            ended = True
            await cutting


async def test_forged_notices_cancel_nothing(redis_url: str) -> None:
    """Whatever their body: the worker asks the record, and the record says running."""
    async with bench(redis_url, **PATIENT) as b, Redis.from_url(redis_url) as redis:
        gate = b.gate()

        @b.bus.job
        async def waits() -> bool:
            await gate.wait()
            return busq.current_job().cancelled

        worker = await b.work()
        handle = await waits.enqueue()
        await until(lambda: worker._control._listener.healthy and any(a.watched for a in worker.running.values()))
        channel = b"cancel:" + handle.jid.encode()
        await until(lambda: _heard(redis, channel))
        for body in (b"cancel", b"", b"\xff\xfe\x00", b"x" * 100_000, b"hasten", b"finalized"):
            assert await redis.publish(channel, body) == 1
        asked = worker._control._last_answer
        await until(lambda: worker._control._last_answer > asked)  # the next beat: everything before it was heard
        assert (await handle.get()).state == "running"
        gate.open()
        assert await handle.result(timeout=10) is False
        assert await b.names(handle.jid) == ["enqueued", "started", "finalized"]


async def _heard(redis: Any, channel: bytes) -> bool:
    return bool((await redis.pubsub_numsub(channel))[0][1])


async def test_a_cancel_between_the_start_and_the_subscription_is_not_missed(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held back: the subscription. The cancel's notice finds no listener; what is confirmed is asked for once more."""
    held: list[tuple[Control, list[Attempt]]] = []
    watch = Control.watch

    def hold_back(self: Control, attempts: Iterable[Attempt]) -> None:
        held.append((self, list(attempts)))

    monkeypatch.setattr(Control, "watch", hold_back)
    monkeypatch.setattr(Control, "_ask_about_all", lambda self: None)  # as above
    async with bench(redis_url, grace_s=5.0, beat_s=SLOWER_THAN_ANY_TEST_S, lease_s=60.0) as b:
        kind = waiting_kind(b)
        await b.work()
        handle = await kind.enqueue()
        await until(lambda: held)
        assert (await handle.cancel()).verdict == "signalled"
        monkeypatch.setattr(Control, "watch", watch)
        watch(*held[0])
        job = await handle.wait(timeout=SLOWER_THAN_ANY_TEST_S / 2)
        assert job.ended == "confirmed"
        assert await heard_by(b, handle.jid) == "resync"


async def test_a_cancel_while_the_listener_is_down_is_heard_when_it_is_back(own_server: RedisServer) -> None:
    """Without any help of the beat."""
    async with bench(own_server.url, grace_s=5.0, beat_s=SLOWER_THAN_ANY_TEST_S, lease_s=60.0) as b:
        kind = waiting_kind(b)
        worker = await b.work()
        handle = await kind.enqueue()
        await until(lambda: any(attempt.watched for attempt in worker.running.values()))
        await until(lambda: worker._control.hearing)
        with own_server.client() as client:
            for _ in range(20):  # the first tries to come back are cut as well
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await handle.cancel()
        job = await b.reaches(handle.jid, "cancelled", timeout=SLOWER_THAN_ANY_TEST_S / 2)
        assert job.ended == "confirmed"


async def test_short_jobs_cost_no_subscription(own_server: RedisServer) -> None:
    async with bench(own_server.url) as b:

        @b.bus.job
        async def short(n: int) -> None: ...

        await b.work()
        for n in range(50):  # one by one: what is wanted at the same time travels in one command
            await b.reaches((await short.enqueue(n)).jid, "succeeded")
        with own_server.client() as client:
            stats = client.info("commandstats")
        assert stats.get("cmdstat_subscribe", {"calls": 0})["calls"] <= 10, "nearly all ended before they were watched"


async def test_what_is_watched_is_forgotten_when_it_ends(own_server: RedisServer) -> None:
    async with bench(own_server.url) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> None:
            await gate.wait()

        await b.work()
        handles = await b.bus.enqueue_many(waits.spec() for _ in range(20))
        with own_server.client() as client:
            await until(lambda: len(client.pubsub_channels("cancel:*")) == 20)
            gate.open()
            for handle in handles:
                await b.reaches(handle.jid, "succeeded")
            await until(lambda: len(client.pubsub_channels("cancel:*")) == 0)


async def test_a_cancel_before_the_start_keeps_the_handler_from_running(redis_url: str) -> None:
    async with bench(redis_url) as b:
        gate, ran = b.gate(), []

        @b.bus.job
        async def one(name: str) -> None:
            ran.append(name)
            if name == "first":
                await gate.wait()

        await b.work(concurrency=1)
        await b.watch()
        first = await one.enqueue("first")
        await b.reaches(first.jid, "running")
        queued = await one.enqueue("queued")
        scheduled = await one.options(delay=0.05).enqueue("scheduled")
        for handle, before in ((queued, "queued"), (scheduled, "scheduled")):
            assert (await handle.get()).state == before
            assert (await handle.cancel()).verdict == "cancelled"
        last = await one.enqueue("last")
        gate.open()
        await last.wait(timeout=10)
        assert ran == ["first", "last"]
        for handle in (queued, scheduled):
            job = await handle.get()
            assert (job.state, job.ended, job.attempt) == ("cancelled", "before_start", 0)


async def test_a_cancel_while_a_job_waits_for_its_retry_ends_it(redis_url: str) -> None:
    async with bench(redis_url, backoff_s=30.0, backoff_max_s=30.0) as b:

        @b.bus.job(retries=3)
        async def fails() -> None:
            raise ValueError

        await b.work()
        handle = await fails.enqueue()
        await b.reaches(handle.jid, "scheduled")
        assert (await handle.cancel()).verdict == "cancelled"
        job = await handle.get()
        assert (job.ended, job.attempt, job.failures) == ("before_start", 1, 1)


CONSISTENT: dict[Verdict, set[tuple[str, str | None]]] = {
    # verdict -> what may have become of the job: state and ended
    Verdict.CANCELLED: {("cancelled", "before_start")},
    Verdict.SIGNALLED: {("cancelled", "confirmed"), ("cancelled", "completed")},
    Verdict.ALREADY_FINISHED: {("succeeded", None), ("failed", None)},
}


async def test_a_thousand_cancels_near_the_end_leave_no_contradiction(redis_url: str) -> None:
    rng = random.Random(7)
    async with bench(redis_url, **PATIENT) as b:

        @b.bus.job
        async def short(seconds: float) -> str:
            await asyncio.sleep(seconds)
            if seconds > 0.008:
                raise ValueError("long ones fail")
            return "done"

        await b.work()
        verdicts: dict[str, Verdict] = {}

        async def one(n: int) -> None:
            # However slow the machine is, one of them runs for long enough and one is cancelled after its end.
            handle = await short.enqueue(60.0 if n == 0 else rng.uniform(0, 0.01))
            if n == 0:
                await b.reaches(handle.jid, "running")
            elif n == 1:
                await handle.wait(timeout=20)
            else:
                await asyncio.sleep(rng.uniform(0, 0.02))
            verdicts[handle.jid] = (await handle.cancel()).verdict

        for _ in range(10):
            await asyncio.gather(*(one(n) for n in range(100)))
        for jid, verdict in verdicts.items():
            job = await b.bus.wait(jid, timeout=10)
            assert (job.state, job.ended) in CONSISTENT[verdict], (verdict, job)
            names = await b.names(jid)
            assert names.count("finalized") == 1
            assert names[-1] == "finalized"
            assert ("requested" in names) == (verdict is not Verdict.ALREADY_FINISHED)
            assert ("observed" in names) == (job.ended == "confirmed")
            assert (job.evidence is not None) == (verdict is Verdict.SIGNALLED)
            assert "retried" not in names
        assert len(verdicts) == 1000
        assert set(verdicts.values()) >= {Verdict.SIGNALLED, Verdict.ALREADY_FINISHED}, "the dice covered too little"
