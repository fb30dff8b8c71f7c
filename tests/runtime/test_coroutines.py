"""
Coroutine handlers and the fine points of asyncio: a cancel among timeouts, groups of tasks, and calls to Redis.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
from redis.asyncio import Redis

import busq
from busq.protocol.cancel import Cause
from busq.worker.attempt import Attempt
from busq.worker.executors.coroutine import CoroutineExecutor
from tests.roles import as_role
from tests.runtime.bench import PATIENT, UNHURRIED, bench, until

FAR_S = 60.0


# Timeouts inside timeouts -----------------------------------------------------------------------------------


async def test_a_cancel_passes_through_a_handlers_own_timeout_as_a_cancel(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        raised: list[str] = []

        @b.bus.job
        async def patient() -> None:
            try:
                async with asyncio.timeout(FAR_S), asyncio.timeout(FAR_S):
                    await asyncio.sleep(FAR_S)
            except BaseException as error:
                raised.append(type(error).__name__)
                raise

        await b.work()
        handle = await patient.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended, raised) == ("cancelled", "confirmed", ["CancelledError"])


async def test_a_handlers_own_timeout_is_its_own_business(redis_url: str) -> None:
    """Also while the job has one: what runs out first counts, and nothing else was cancelled."""
    async with bench(redis_url) as b:

        @b.bus.job(timeout=FAR_S)
        async def impatient(catches: bool) -> str:
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(FAR_S)
            except TimeoutError:
                if not catches:
                    raise
            await asyncio.sleep(0)
            return "went on"

        await b.work()
        assert await (await impatient.enqueue(True)).result(timeout=10) == "went on"
        job = await (await impatient.enqueue(False)).wait(timeout=10)
        assert job.error is not None
        assert (job.state, job.cause, job.error.type) == ("failed", "error", "TimeoutError")


async def test_the_jobs_timeout_counts_inside_a_handlers_longer_one(redis_url: str) -> None:
    async with bench(redis_url) as b:
        causes: list[Cause | None] = []

        @b.bus.job(timeout=0.05)
        async def patient() -> None:
            try:
                async with asyncio.timeout(FAR_S):
                    await asyncio.sleep(FAR_S)
            finally:
                causes.append(busq.current_job().cause)

        await b.work()
        job = await (await patient.enqueue()).wait(timeout=10)
        assert (job.state, job.cause, causes) == ("failed", "timed_out", [Cause.TIMEOUT])


async def test_a_cancel_in_the_same_moment_as_a_handlers_own_timeout_is_not_lost(redis_url: str) -> None:
    """Both cancel the task before it runs again: the handler hears of the cancel, not of its timeout."""
    async with bench(redis_url, **PATIENT) as b:
        inside, raised = b.gate(), []
        scopes: list[asyncio.Timeout] = []

        @b.bus.job
        async def both() -> None:
            try:
                async with asyncio.timeout(None) as scope:
                    scopes.append(scope)
                    inside.open()
                    await asyncio.sleep(FAR_S)
            except BaseException as error:
                raised.append(type(error).__name__)
                raise

        worker = await b.work()
        handle = await both.enqueue()
        await inside.wait()
        attempt = worker.running[handle.jid]
        executor = worker._runner._executors[attempt.handler.pool]
        ask = executor.ask_to_stop

        def together(each: Any) -> None:
            scopes[0]._on_timeout()
            ask(each)

        executor.ask_to_stop = together  # type: ignore[method-assign]
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended, raised) == ("cancelled", "confirmed", ["CancelledError"])


async def test_clean_up_has_timeouts_and_groups_of_its_own(redis_url: str) -> None:
    """The one cancellation has been delivered: what asyncio counts of it spoils nothing that comes after."""
    async with bench(redis_url, **PATIENT) as b:
        gate, story = b.gate(), []

        @b.bus.job
        async def tidies() -> None:
            try:
                await gate.wait()
            finally:
                try:
                    async with asyncio.timeout(0.01):
                        await asyncio.sleep(FAR_S)
                except TimeoutError:
                    story.append("timed out")
                try:
                    await asyncio.wait_for(asyncio.sleep(FAR_S), 0.01)
                except TimeoutError:
                    story.append("waited for")
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(asyncio.sleep(0.001, n)) for n in range(3)]
                story.append(sum(task.result() for task in tasks))
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(asyncio.sleep(FAR_S))
                        group.create_task(_raise(ValueError("one of them")))
                except* ValueError:
                    story.append("one failed")

        await b.work()
        handle = await tidies.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert story == ["timed out", "waited for", 3, "one failed"]
        assert (job.state, job.ended) == ("cancelled", "confirmed")


async def _raise(error: Exception) -> None:
    raise error


# Groups of tasks --------------------------------------------------------------------------------------------


async def test_a_cancel_reaches_every_task_of_a_handlers_group(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        reached: list[int] = []

        async def one(n: int) -> None:
            try:
                await asyncio.sleep(FAR_S)
            finally:
                reached.append(n)

        @b.bus.job
        async def group() -> None:
            async with asyncio.TaskGroup() as tasks:
                for n in range(5):
                    tasks.create_task(one(n))

        await b.work()
        handle = await group.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert sorted(reached) == [0, 1, 2, 3, 4]
        assert job.evidence is not None
        assert (job.state, job.ended, job.evidence.outcome) == ("cancelled", "confirmed", "cancelled")


ONLY = [
    BaseExceptionGroup("one", [asyncio.CancelledError()]),
    BaseExceptionGroup("two", [busq.Cancelled(Cause.USER), BaseExceptionGroup("three", [asyncio.CancelledError()])]),
]
MIXED = [
    BaseExceptionGroup("one", [asyncio.CancelledError(), ValueError("in its clean-up")]),
    BaseExceptionGroup("two", [ExceptionGroup("three", [ValueError("in its clean-up")]), asyncio.CancelledError()]),
]


@pytest.mark.parametrize(
    ("group", "outcome"), [(g, "cancelled") for g in ONLY] + [(g, "failed") for g in MIXED], ids=str
)
async def test_a_group_is_a_cancellation_when_it_holds_nothing_else(
    redis_url: str, group: BaseExceptionGroup[BaseException], outcome: str
) -> None:
    """Either way the job is cancelled and not retried; what else was raised is evidence."""
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()

        @b.bus.job(retries=3)
        async def waits() -> None:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                raise group from None

        await b.work()
        handle = await waits.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert job.evidence is not None
        assert job.evidence.error is not None
        assert (job.state, job.ended, job.evidence.outcome) == ("cancelled", "confirmed", outcome)
        assert ("in its clean-up" in job.evidence.error.traceback) == (outcome == "failed")


async def test_a_task_of_a_group_that_fails_while_it_is_cancelled_is_evidence(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:

        async def fails_to_tidy() -> None:
            try:
                await asyncio.sleep(FAR_S)
            finally:
                raise ValueError("in its clean-up")

        @b.bus.job(retries=3)
        async def group() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fails_to_tidy())
                tasks.create_task(asyncio.sleep(FAR_S))

        await b.work()
        handle = await group.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert job.evidence is not None
        assert (job.state, job.ended, job.attempt, job.evidence.outcome) == ("cancelled", "confirmed", 1, "failed")


# Force ------------------------------------------------------------------------------------------------------


async def test_force_cancels_every_50_ms_from_the_end_of_the_grace_to_the_end_of_the_force_time(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace_s, force_s = 0.2, 0.5
    interrupt = CoroutineExecutor.ask_to_stop

    def told(self: CoroutineExecutor, attempt: Attempt) -> None:
        at.append(asyncio.get_running_loop().time())
        interrupt(self, attempt)

    monkeypatch.setattr(CoroutineExecutor, "ask_to_stop", told)
    async with bench(redis_url, **UNHURRIED, grace_s=grace_s, force_s=force_s) as b:
        gate, at, heard = b.gate(), [], []

        @b.bus.job
        async def stubborn() -> None:
            while not gate.is_open:
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    heard.append(1)

        worker = await b.work()
        await b.watch()
        handle = await stubborn.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        assert (await handle.wait(timeout=10)).ended == "abandoned"
        await until(lambda: not worker.running)
        times = len(at)
        gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
        assert gaps[0] >= grace_s - 0.01, "one cancellation, and then the grace"
        assert all(gap >= 0.04 for gap in gaps[1:])
        assert 2 <= times <= 2 + force_s / 0.05
        assert heard
        await asyncio.sleep(0.2)
        assert len(at) == times, "an attempt that was given up is left alone"


# Calls to Redis ---------------------------------------------------------------------------------------------

ROUNDS, AT_ONCE = 6, 40


async def _cancel_at_random(b: Any, kind: Any, worker: Any, rng: random.Random) -> None:
    """Start many jobs that talk to Redis all the time, and cancel each at some moment."""
    for _ in range(ROUNDS):
        handles = await b.bus.enqueue_many(kind.spec() for _ in range(AT_ONCE))
        await until(lambda: len(worker.running) == AT_ONCE)

        async def one(handle: Any) -> None:
            await asyncio.sleep(rng.uniform(0, 0.05))
            await handle.cancel()
            assert (await handle.wait(timeout=20)).ended == "confirmed"

        await asyncio.gather(*(one(handle) for handle in handles))


async def test_a_cancel_during_a_call_of_the_handlers_own_redis_client_leaves_no_stray_reply(redis_url: str) -> None:
    """
    The handler checks between its calls: redis-py writes within `asyncio.wait_for`, which on Python 3.11 swallows a
    cancellation that comes together with the end of the write.
    """
    async with bench(redis_url, **PATIENT) as b, Redis.from_url(redis_url, max_connections=200) as redis:
        numbers, wrong = itertools.count(), []

        @b.bus.job
        async def talks() -> None:
            while True:
                asked = b"%d" % next(numbers)
                heard = await redis.echo(asked)  # type: ignore[misc]
                if heard != asked:
                    wrong.append((asked, heard))
                busq.current_job().check_cancelled()

        worker = await b.work()
        await _cancel_at_random(b, talks, worker, random.Random(3))
        for n in range(100):
            assert await redis.echo(f"after {n}") == f"after {n}".encode()  # type: ignore[misc]
        assert wrong == []


async def test_a_cancel_during_a_call_of_busq_in_a_handler_leaves_no_stray_reply(redis_url: str) -> None:
    """The handlers' bus is their own, with connections of its own; its calls are cancelled on their way."""
    async with bench(redis_url, **PATIENT) as b, busq.Bus(as_role(redis_url, "client"), **b.given) as bus:
        numbers, wrong = itertools.count(), []

        @b.bus.job
        async def talks() -> None:
            job = busq.current_job()
            while True:
                n = next(numbers)
                handle = await bus.options(queue="unread", delay=600).enqueue("detached", n)
                found = await bus.get(handle.jid)
                await job.save(n)
                answer = await bus.cancel(handle.jid, reason=str(n))
                if (found.jid, found.args, answer.jid, answer.verdict) != (handle.jid, [n], handle.jid, "cancelled"):
                    wrong.append((n, found, answer))

        worker = await b.work()
        await _cancel_at_random(b, talks, worker, random.Random(4))
        for n in range(50):
            handle = await bus.options(queue="unread").enqueue("detached", n)
            assert (await bus.get(handle.jid)).args == [n]
        assert wrong == []
        pool = (await bus._link()).store.redis.connection_pool
        assert not pool._in_use_connections
