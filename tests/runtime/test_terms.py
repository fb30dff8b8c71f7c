"""
Timeouts, expiry and deadlines of jobs as their handlers live through them; the store's rules are in test_moments.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import busq
from busq.protocol.cancel import Cause
from tests.roles import as_role
from tests.runtime import process_handlers
from tests.runtime.bench import CANCELLATIONS, EXECUTORS, PATIENT, UNHURRIED, Bench, Wait, bench, declare, until

Steps = Generator[Any, Any, Any]
LATE_S = 0.05  # past a moment that a story waits for
START_S = 3.0  # long enough to be started within, on a busy machine too

every_executor = pytest.mark.parametrize("executor", EXECUTORS)


# Expiry -----------------------------------------------------------------------------------------------------


async def test_a_job_that_nobody_starts_in_time_is_cancelled_at_its_moment(redis_url: str) -> None:
    """The watchdog wakes for it: its interval is far longer than the wait."""
    async with bench(redis_url, watchdog_interval_s=60.0) as b:
        first = await b.bus.options(expires=START_S).enqueue("unserved")
        await b.watch()  # its first pass finds the first one's moment, and its second comes then
        handles = [
            first,
            await b.bus.options(expires=LATE_S).enqueue("unserved"),
            await b.bus.options(expires=LATE_S, delay=LATE_S / 2).enqueue("unserved"),
        ]
        for handle in handles:
            job = await handle.wait(timeout=10)
            assert (job.state, job.ended, job.cause, job.attempt) == ("cancelled", "before_start", "expired", 0)
            assert job.expires_at is not None
            assert job.finished_at is not None
            assert job.finished_at >= job.expires_at


async def test_without_any_watchdog_a_worker_starts_nothing_that_is_too_old(redis_url: str) -> None:
    async with bench(redis_url) as b:
        ran: list[int] = []

        @b.bus.job
        async def short(n: int) -> None:
            ran.append(n)

        old = await short.options(expires=LATE_S).enqueue(1)
        overdue = await short.options(deadline=LATE_S).enqueue(2)
        await until(lambda: _is_past(b, old.jid, overdue.jid))
        young = await short.enqueue(3)
        await b.work()
        await young.result(timeout=10)
        assert ran == [3]
        assert [(await b.bus.wait(each.jid, timeout=10)).cause for each in (old, overdue)] == ["expired", "deadline"]


async def _is_past(b: Bench, *jids: str) -> bool:
    from busq.store import watch

    store = (await b.bus._link()).store
    jobs = [await b.bus.get(jid) for jid in jids]
    now_ms = await watch.server_now_ms(store)
    return all((job.expires_at or job.due_by).timestamp() * 1000 < now_ms for job in jobs)  # type: ignore[union-attr]


async def test_a_handlers_own_expires_counts_for_producers_without_its_code(redis_url: str) -> None:
    async with bench(redis_url) as b:
        ran: list[int] = []

        @b.bus.job(expires=LATE_S)
        async def short() -> None:
            ran.append(1)

        async with busq.Bus(as_role(redis_url, "client"), **b.given) as far:
            handle = await far.enqueue("short")
        await asyncio.sleep(LATE_S * 2)  # so old it has to be
        await b.work()
        job = await b.bus.wait(handle.jid, timeout=10)
        assert (job.cause, job.ended, ran) == ("expired", "before_start", [])


# Deadlines --------------------------------------------------------------------------------------------------


@every_executor
async def test_a_handler_that_runs_past_the_jobs_deadline_is_asked_to_stop(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate, causes = b.gate(), []

        def waits() -> Steps:
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                causes.append(busq.current_job().cause)
                raise

        kind = declare(b.bus, executor, waits, retries=5, deadline=START_S)
        await b.work()
        await b.watch()
        handle = await kind.enqueue()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended, job.cause, job.attempt) == ("cancelled", "confirmed", "deadline", 1)
        assert causes == [Cause.DEADLINE]
        assert await b.names(handle.jid) == [
            "enqueued", "started", "requested", "tripped", "observed", "stopped", "finalized",
        ]  # fmt: skip


async def test_a_deadline_counts_over_all_attempts(redis_url: str) -> None:
    async with bench(redis_url) as b:
        attempts: list[int] = []

        @b.bus.job(retries=1_000_000)
        async def fails() -> None:
            attempts.append(busq.current_job().attempt)
            raise ValueError

        await b.work()
        await b.watch()
        job = await (await fails.options(deadline=START_S).enqueue()).wait(timeout=10)
        assert (job.state, job.cause) == ("cancelled", "deadline")
        assert job.attempt > 1
        told = len(attempts)
        assert told in (job.attempt - 1, job.attempt), "the last one may have been cancelled before its first step"
        await asyncio.sleep(b.settings.backoff_max_s * 2)  # nothing more comes, however long one waits
        assert len(attempts) == told


async def test_a_job_that_waits_for_its_retry_ends_at_its_deadline(redis_url: str) -> None:
    async with bench(redis_url, backoff_s=60.0, backoff_max_s=60.0) as b:

        @b.bus.job(retries=3, deadline=START_S)
        async def fails() -> None:
            raise ValueError

        await b.work()
        await b.watch()
        job = await (await fails.enqueue()).wait(timeout=10)
        assert (job.state, job.ended, job.cause, job.attempt) == ("cancelled", "before_start", "deadline", 1)


async def test_a_handler_that_does_not_stop_is_abandoned_by_the_cancels_own_deadline(redis_url: str) -> None:
    async with bench(redis_url) as b:
        gate = b.gate()

        @b.bus.job(deadline=START_S)
        def deaf() -> None:
            gate.block()

        await b.work()
        await b.watch()
        job = await (await deaf.enqueue()).wait(timeout=10)
        assert (job.state, job.ended, job.cause) == ("cancelled", "abandoned", "deadline")
        assert job.finished_at is not None
        assert job.deadline is not None
        assert job.due_by is not None
        slack_s = b.settings.beat_s + b.settings.grace_s + b.settings.force_s
        assert (job.deadline - job.due_by).total_seconds() >= slack_s
        assert job.finished_at >= job.deadline


@pytest.mark.parametrize(("kind", "ended"), [("checks", "confirmed"), ("deaf", "killed")])
async def test_a_child_process_is_stopped_at_the_jobs_deadline(
    redis_url: str, tmp_path: Path, kind: str, ended: str
) -> None:
    more = ["to SIGTERM"] if kind == "deaf" else []
    async with bench(redis_url, **(PATIENT if kind == "checks" else UNHURRIED)) as b:
        await b.work(handlers=process_handlers.bus.handlers, concurrency=1)
        await b.watch()
        assert await (await b.bus.enqueue("pid_of")).result(timeout=20)  # its start does not count then
        job = await (await b.bus.options(deadline=START_S).enqueue(kind, str(tmp_path), *more)).wait(timeout=20)
        assert (job.state, job.ended, job.cause) == ("cancelled", ended, "deadline")
        if kind == "checks":
            assert (tmp_path / "why").read_text() == "deadline  True"


async def test_a_job_that_ends_in_time_leaves_nothing_for_the_watchdog(redis_url: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job(expires=60, deadline=60)
        async def short() -> int:
            return 1

        await b.work()
        assert await (await short.enqueue()).result(timeout=10) == 1
        store = (await b.bus._link()).store
        assert await store.redis.exists(store.keys(0).timers) == 0


# Timeouts ---------------------------------------------------------------------------------------------------


@every_executor
async def test_a_cancel_that_comes_after_a_timeout_is_a_cancel(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate, told, go_on, causes = b.gate(), b.gate(), b.gate(), []

        def lingers() -> Steps:
            job = busq.current_job()
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                causes.append(job.cause)
                told.open()
                yield Wait(go_on, checking=False)
                causes.append(job.cause)
                raise

        kind = declare(b.bus, executor, lingers, timeout=0.05, retries=3)
        worker = await b.work()
        handle = await kind.enqueue()
        await until(lambda: told.is_open)
        await handle.cancel(reason="enough")
        attempt = worker.running[handle.jid]
        await until(lambda: attempt.token.facts is not None and attempt.token.facts.cause is Cause.USER)
        go_on.open()
        job = await handle.wait(timeout=10)
        assert causes == [Cause.TIMEOUT, Cause.USER]
        assert (job.state, job.ended, job.cause, job.reason) == ("cancelled", "confirmed", "user", "enough")
        assert (job.failures, job.attempt) == (0, 1)
