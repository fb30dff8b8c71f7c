"""
A cancel that comes while an attempt is being stopped for another reason: it is a cancel, and it counts anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import busq
from busq.protocol.cancel import Cause
from busq.worker.control import Control
from busq.worker.executors.process import ProcessExecutor
from busq.worker.worker import Worker
from tests.runtime import process_handlers
from tests.runtime.bench import CANCELLATIONS, EXECUTORS, PATIENT, Wait, bench, declare, taken, until

Steps = Generator[Any, Any, Any]
DRAINING: dict[str, Any] = {**PATIENT, "shutdown_timeout_s": 0.0, "cleanup_s": 20.0}
SILENT: dict[str, Any] = {**DRAINING, "beat_s": 20.0, "lease_s": 60.0}


async def heard(worker: Worker, jid: str, cause: Cause) -> None:
    """Wait until the ladder of this attempt goes by this cause."""
    attempt = await taken(worker, jid)
    await until(lambda: attempt.heeded is not None and attempt.heeded.cause is cause)


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_handler_in_a_drains_clean_up_can_tell_a_users_cancel_from_the_shutdown(
    redis_url: str, executor: str
) -> None:
    async with bench(redis_url, **DRAINING) as b:
        gate, told, go_on, story = b.gate(), b.gate(), b.gate(), []

        def tidies() -> Steps:
            job = busq.current_job()
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                story.append(job.cause)
                told.open()
                try:
                    yield Wait(go_on, checking=False)
                except CANCELLATIONS:
                    story.append("interrupted again")
                story.extend((job.cause, job.reason))
                raise

        kind = declare(b.bus, executor, tidies)
        worker = await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        worker.stop()
        await until(lambda: told.is_open)
        assert (await handle.cancel(reason="no longer wanted")).verdict == "signalled"
        await heard(worker, handle.jid, Cause.USER)
        go_on.open()
        await b.ended(worker)
        assert story == [Cause.SHUTDOWN, Cause.USER, "no longer wanted"]
        job = await handle.get()
        assert (job.state, job.ended, job.cause, job.reason) == ("cancelled", "confirmed", "user", "no longer wanted")
        names = await b.names(handle.jid)
        assert "handed_back" not in names
        assert names.count("tripped") == 2
        assert names[-3:] == ["observed", "stopped", "finalized"]


@pytest.mark.parametrize("looks", [True, False])
async def test_a_child_process_hears_a_users_cancel_in_a_drains_clean_up(
    redis_url: str, tmp_path: Path, looks: bool
) -> None:
    async with bench(redis_url, **DRAINING) as b:
        worker = await b.work(handlers=process_handlers.bus.handlers, concurrency=1)
        handle = await b.bus.enqueue("tidies", str(tmp_path), "till it changes" if looks else "")
        await until(lambda: (tmp_path / "running").exists(), 20)
        worker.stop()
        await until(lambda: (tmp_path / "told").exists())
        await handle.cancel(reason="no longer wanted")
        await heard(worker, handle.jid, Cause.USER)
        (tmp_path / "go on").touch()
        await b.ended(worker)
        assert (tmp_path / "told").read_text() == "shutdown"
        job = await handle.get()
        assert (job.state, job.cause) == ("cancelled", "user")
        assert job.ended == ("confirmed" if looks else "completed")
        if looks:
            assert (tmp_path / "knows").read_text() == "user no longer wanted"


async def test_a_child_process_that_ended_before_it_heard_of_the_cancel_has_not_learned_of_it(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learned of the shutdown, and says so at its end; the frame that tells it more is still on its way."""
    monkeypatch.setattr(ProcessExecutor, "tell_anew", lambda self, attempt: None)
    async with bench(redis_url, **DRAINING) as b:
        worker = await b.work(handlers=process_handlers.bus.handlers, concurrency=1)
        handle = await b.bus.enqueue("tidies", str(tmp_path), "once")
        await until(lambda: (tmp_path / "running").exists(), 20)
        worker.stop()
        await until(lambda: (tmp_path / "told").exists())
        await handle.cancel()
        await heard(worker, handle.jid, Cause.USER)
        (tmp_path / "go on").touch()
        await b.ended(worker)
        assert (tmp_path / "knows").read_text().split()[0] == "shutdown"
        job = await handle.get()
        assert (job.state, job.ended, job.cause) == ("cancelled", "completed", "user")


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_cancel_that_the_worker_never_heard_of_is_not_confirmed_by_the_shutdown(
    redis_url: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither notice nor beat arrives; the script that takes the hand-back finds the cancel in the record."""
    monkeypatch.setattr(Control, "watch", lambda self, attempts: None)
    monkeypatch.setattr(Control, "unwatch", lambda self, attempts: None)
    async with bench(redis_url, **SILENT) as b:
        gate, told, go_on = b.gate(), b.gate(), b.gate()

        def tidies() -> Steps:
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                told.open()
                yield Wait(go_on, checking=False)
                raise

        kind = declare(b.bus, executor, tidies)
        worker = await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        worker.stop()
        await until(lambda: told.is_open)
        await handle.cancel()
        go_on.open()
        await b.ended(worker)
        job = await handle.get()
        assert (job.state, job.ended, job.cause) == ("cancelled", "completed", "user")


async def test_a_deaf_thread_that_a_user_cancels_during_the_drain_is_cancelled_and_not_handed_back(
    redis_url: str,
) -> None:
    async with bench(redis_url, **{**DRAINING, "cleanup_s": 0.5}) as b:
        gate = b.gate()

        @b.bus.job
        def deaf() -> None:
            gate.block()

        worker = await b.work()
        handle = await deaf.enqueue()
        await b.reaches(handle.jid, "running")
        worker.stop()
        await heard(worker, handle.jid, Cause.SHUTDOWN)
        await handle.cancel()
        await b.ended(worker)
        job = await handle.get()
        assert (job.state, job.ended, job.cause) == ("cancelled", "abandoned", "user")
        assert "handed_back" not in await b.names(handle.jid)


async def test_a_deaf_child_process_that_a_user_cancels_during_the_drain_is_killed(
    redis_url: str, tmp_path: Path
) -> None:
    async with bench(redis_url, **DRAINING) as b:
        worker = await b.work(handlers=process_handlers.bus.handlers, concurrency=1)
        handle = await b.bus.enqueue("deaf", str(tmp_path), "to SIGTERM")
        await until(lambda: (tmp_path / "running").exists(), 20)
        worker.stop()
        await heard(worker, handle.jid, Cause.SHUTDOWN)
        await handle.cancel(grace=0.05)
        await b.ended(worker)
        job = await handle.get()
        assert (job.state, job.ended, job.cause) == ("cancelled", "killed", "user")
        assert "handed_back" not in await b.names(handle.jid)


async def test_a_cancel_with_a_short_grace_brings_force_nearer(redis_url: str) -> None:
    """At once, and not with the next beat."""
    async with bench(redis_url, **SILENT) as b:
        gate, told, story = b.gate(), b.gate(), []

        @b.bus.job
        async def lingers() -> None:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                told.open()
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    story.append(busq.current_job().cause)
                    raise

        worker = await b.work()
        handle = await lingers.enqueue()
        await until(lambda: any(attempt.watched for attempt in worker.running.values()))
        await until(lambda: worker._control.hearing)
        worker.stop()
        await told.wait()
        await handle.cancel(grace=0.05)
        async with asyncio.timeout(SILENT["cleanup_s"] / 2):
            await b.ended(worker)
        assert story == [Cause.USER]
        assert (await handle.get()).ended == "confirmed"


async def test_a_cancel_with_a_long_grace_puts_nothing_off(redis_url: str) -> None:
    """It comes after a timeout whose grace is short: the handler keeps what is left of that one."""
    async with bench(redis_url, lease_s=15.0) as b:
        gate, told, story = b.gate(), b.gate(), []

        @b.bus.job(timeout=0.05, grace=2.0)
        async def lingers() -> None:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                told.open()
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    story.append(busq.current_job().cause)
                    raise

        worker = await b.work()
        handle = await lingers.enqueue()
        await told.wait()
        attempt = worker.running[handle.jid]
        assert attempt.force_timer is not None
        before = attempt.force_timer.when()
        await handle.cancel(grace=60)
        await heard(worker, handle.jid, Cause.USER)
        assert attempt.force_timer.when() == before
        job = await handle.wait(timeout=10)
        assert (job.ended, job.cause, story) == ("confirmed", "user", [Cause.USER])


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_deadline_during_a_drains_clean_up_is_a_cancel_too(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **DRAINING) as b:
        gate, told, go_on = b.gate(), b.gate(), b.gate()

        def tidies() -> Steps:
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                told.open()
                yield Wait(go_on, checking=False)
                busq.current_job().check_cancelled()

        kind = declare(b.bus, executor, tidies)
        worker = await b.work()
        await b.watch()
        handle = await kind.options(deadline=2.0).enqueue()
        await b.reaches(handle.jid, "running")
        worker.stop()
        await until(lambda: told.is_open)
        await heard(worker, handle.jid, Cause.DEADLINE)
        go_on.open()
        await b.ended(worker)
        job = await handle.get()
        assert (job.state, job.ended, job.cause) == ("cancelled", "confirmed", "deadline")


async def test_a_cancel_waiting_outside_a_shield_is_the_newest_one(redis_url: str) -> None:
    async with bench(redis_url, **DRAINING) as b:
        inside, entered, story = b.gate(), b.gate(), []

        @b.bus.job
        async def shields() -> None:
            job = busq.current_job()
            try:
                async with job.shield():
                    entered.open()
                    await inside.wait()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                story.append(job.cause)
                raise

        worker = await b.work()
        handle = await shields.enqueue()
        await entered.wait()
        worker.stop()
        await heard(worker, handle.jid, Cause.SHUTDOWN)
        await handle.cancel()
        await heard(worker, handle.jid, Cause.USER)
        assert story == []
        inside.open()
        await b.ended(worker)
        assert story == [Cause.USER]
        assert (await handle.get()).ended == "confirmed"
