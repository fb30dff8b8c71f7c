"""
Real worker processes that are killed, frozen past their lease, and told to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import busq
from tests.fault.process import Child, declare
from tests.runtime.bench import BUSY_S, QUICK, SHORT_LEASE, Bench, bench, until

Start = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a worker or a watchdog in a process of its own; all end with the test."""
    children: list[Child] = []

    def start(role: str, url: str, concurrency: int | None = None, **settings: Any) -> Child:
        child = Child(role, url, tmp_path, {**QUICK, **settings}, concurrency=concurrency)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()


def lines(folder: Path, jid: str, suffix: str) -> list[str]:
    trace = folder / f"{jid}.{suffix}"
    return trace.read_text().splitlines() if trace.exists() else []


async def running(b: Bench, folder: Path, handle: Any, starts: int = 1) -> busq.Job:
    """The record, once the handler is in its code for the `starts`-th time."""
    await until(lambda: len(lines(folder, handle.jid, "ran")) >= starts, timeout=20)
    return await b.reaches(handle.jid, "running")


async def test_a_killed_workers_job_is_reclaimed_and_runs_again(redis_url: str, tmp_path: Path, start: Start) -> None:
    async with bench(redis_url) as b:
        hold, _, _ = declare(b.bus, tmp_path)
        first = start("worker", redis_url, **SHORT_LEASE)
        handle = await hold.enqueue()
        await running(b, tmp_path, handle)
        first.kill()  # before anybody watches: on a busy machine it may lose its lease while it lives
        for _ in range(2):
            await b.watch()
        await b.work()
        await until(lambda: len(lines(tmp_path, handle.jid, "ran")) == 2)
        (tmp_path / f"{handle.jid}.open").touch()
        assert await handle.result(timeout=10) == 2
        job = await handle.get()
        assert (job.losses, job.failures, job.attempt) == (1, 0, 2)
        names = await b.names(handle.jid)
        assert names == ["enqueued", "started", "reclaimed", "started", "finalized"], "with two watchdogs, too"
        await until(lambda: _members(b, 3))  # the dead one has left the roster


async def _members(b: Bench, count: int) -> bool:
    return len(await b.bus.workers()) == count


async def test_a_killed_worker_whose_job_was_cancelled_leaves_it_killed(
    redis_url: str, tmp_path: Path, start: Start
) -> None:
    """Its process is known to be gone: no code is running, and the record may say so."""
    async with bench(redis_url) as b:
        _, _, deaf = declare(b.bus, tmp_path)
        child = start("worker", redis_url)
        handle = await deaf.enqueue()
        await running(b, tmp_path, handle)
        await b.work()
        child.freeze()
        answer = await handle.cancel()
        child.kill()
        await b.watch()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended) == ("cancelled", "killed")
        assert answer.deadline is not None
        assert job.finished_at is not None
        assert job.finished_at <= answer.deadline + timedelta(seconds=b.settings.watchdog_interval_s + BUSY_S)
        assert len(lines(tmp_path, handle.jid, "ran")) == 1, "it never starts again"
        assert (await b.bus.stats()).suspects == 0


async def test_a_job_whose_workers_die_too_often_is_lost(redis_url: str, tmp_path: Path, start: Start) -> None:
    async with bench(redis_url) as b:
        hold, _, _ = declare(b.bus, tmp_path)
        handle = await hold.options(max_losses=1).enqueue()
        for death in (1, 2):
            child = start("worker", redis_url, **SHORT_LEASE)
            await running(b, tmp_path, handle, starts=death)
            child.kill()
            dog = await b.watch()
            await b.reaches(handle.jid, "queued", "failed")
            await b.end(dog)  # the next worker shall be lost when it is killed, and not before
        job = await handle.wait(timeout=10)
        assert (job.state, job.cause, job.losses, job.failures) == ("failed", "lost", 2, 0)


@pytest.mark.parametrize("kind", ["hold", "hold_thread"])
async def test_a_frozen_worker_is_fenced_off_when_it_wakes(
    redis_url: str, tmp_path: Path, start: Start, kind: str
) -> None:
    """Its job was reclaimed meanwhile: it hears `lease_lost`, and its ending is one line of history."""
    async with bench(redis_url) as b:
        handlers = {each.kind: each for each in declare(b.bus, tmp_path)}
        child = start("worker", redis_url, **SHORT_LEASE)
        handle = await handlers[kind].enqueue()
        await running(b, tmp_path, handle)
        child.freeze()
        await b.watch()
        await b.work()
        await running(b, tmp_path, handle, starts=2)
        child.thaw()
        await until(lambda: lines(tmp_path, handle.jid, "tripped"), timeout=20)
        assert lines(tmp_path, handle.jid, "tripped") == ["lease_lost"]
        await until(lambda: _with(b, handle.jid, "late_result"))
        assert (await handle.get()).state == "running", "the second attempt goes on"
        (tmp_path / f"{handle.jid}.open").touch()
        assert await handle.result(timeout=10) == 2
        assert (await b.names(handle.jid)).count("finalized") == 1


async def _with(b: Bench, jid: str, name: str) -> bool:
    return name in await b.names(jid)


async def test_a_late_finish_of_a_frozen_worker_is_stale(redis_url: str, tmp_path: Path, start: Start) -> None:
    """Both attempts run to their ends; the first one's result comes second and is not applied."""
    async with bench(redis_url, grace_s=20.0) as b:
        _, _, deaf = declare(b.bus, tmp_path)
        child = start("worker", redis_url, grace_s=20.0, **SHORT_LEASE)
        handle = await deaf.enqueue()
        await running(b, tmp_path, handle)
        child.freeze()
        await b.watch()
        await b.work()
        await running(b, tmp_path, handle, starts=2)
        (tmp_path / f"{handle.jid}.open").touch()
        await handle.wait(timeout=10)
        child.thaw()
        await until(lambda: _with(b, handle.jid, "late_result"), timeout=20)
        job = await handle.get()
        assert (job.state, job.attempt, job.losses) == ("succeeded", 2, 1)


async def test_a_frozen_workers_cancel_is_finalized_in_time(redis_url: str, tmp_path: Path, start: Start) -> None:
    """It may wake at any moment, so nothing claims that its code has stopped, until it has."""
    async with bench(redis_url) as b:
        hold, _, _ = declare(b.bus, tmp_path)
        child = start("worker", redis_url)
        handle = await hold.enqueue()
        await running(b, tmp_path, handle)
        child.freeze()
        await b.watch()
        answer = await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended) == ("cancelled", "abandoned")
        assert answer.deadline is not None
        assert job.finished_at is not None
        assert job.finished_at <= answer.deadline + timedelta(seconds=b.settings.watchdog_interval_s + BUSY_S)
        await until(lambda: _suspects(b, 1))
        child.thaw()
        await until(lambda: lines(tmp_path, handle.jid, "tripped"), timeout=20)
        await until(lambda: _suspects(b, 0))
        assert (await handle.get()).ended == "abandoned"


async def test_suspects_of_a_process_that_is_gone_are_cleared(redis_url: str, tmp_path: Path, start: Start) -> None:
    async with bench(redis_url) as b:
        _, _, deaf = declare(b.bus, tmp_path)
        child = start("worker", redis_url, **SHORT_LEASE)
        handle = await deaf.enqueue()
        await running(b, tmp_path, handle)
        await handle.cancel()
        await b.watch()
        assert (await handle.wait(timeout=10)).ended == "abandoned"
        await until(lambda: _suspects(b, 1))
        child.kill()
        await until(lambda: _suspects(b, 0))


async def _suspects(b: Bench, count: int) -> bool:
    return (await b.bus.stats()).suspects == count


async def test_sigterm_hands_back_and_exits_cleanly(redis_url: str, tmp_path: Path, start: Start) -> None:
    """With a thread that does not listen among its jobs: it must not keep the process from leaving."""
    async with bench(redis_url) as b:
        hold, hold_thread, deaf = declare(b.bus, tmp_path)
        child = start("worker", redis_url, concurrency=5)
        handles = [await kind.enqueue() for kind in (hold, hold_thread, deaf)]
        for handle in handles:
            await running(b, tmp_path, handle)
        child.ask_to_stop()
        await until(lambda: child.exit_code is not None)
        assert child.exit_code == 0, child.output.read_text()
        for handle in handles:
            job = await handle.get()
            assert (job.state, job.attempt, job.failures, job.losses) == ("queued", 1, 0, 0)
            assert lines(tmp_path, handle.jid, "tripped") == ["shutdown"]
        assert list(await b.bus.workers()) == []
        assert (await b.bus.stats()).suspects == 0


async def test_an_abandoned_thread_does_not_keep_the_process_from_leaving(
    redis_url: str, tmp_path: Path, start: Start
) -> None:
    async with bench(redis_url) as b:
        _, _, deaf = declare(b.bus, tmp_path)
        child = start("worker", redis_url)
        handle = await deaf.enqueue()
        await running(b, tmp_path, handle)
        await b.watch()
        await handle.cancel()
        assert (await handle.wait(timeout=10)).ended == "abandoned"
        child.ask_to_stop()
        await until(lambda: child.exit_code is not None)
        assert child.exit_code == 0, child.output.read_text()
        await until(lambda: _suspects(b, 0))


async def test_a_second_sigterm_hurries(redis_url: str, tmp_path: Path, start: Start) -> None:
    async with bench(redis_url) as b:
        hold, _, _ = declare(b.bus, tmp_path)
        child = start("worker", redis_url, shutdown_timeout_s=600.0)
        handle = await hold.enqueue()
        await running(b, tmp_path, handle)
        child.ask_to_stop()
        await until(lambda: _draining(b))
        child.ask_to_stop()
        await until(lambda: child.exit_code is not None)
        assert child.exit_code == 0, child.output.read_text()
        assert (await handle.get()).state == "queued"


async def _draining(b: Bench) -> bool:
    return any(member.card is not None and member.card.draining for member in await b.bus.workers())


async def test_a_watchdog_that_is_killed_leaves_its_work_to_another(
    redis_url: str, tmp_path: Path, start: Start
) -> None:
    async with bench(redis_url) as b:
        _, _, deaf = declare(b.bus, tmp_path)
        dog = start("watchdog", redis_url)
        await until(lambda: _members(b, 1), timeout=20)
        await b.work()
        handle = await deaf.enqueue()
        await running(b, tmp_path, handle)
        await handle.cancel()
        dog.kill()
        await b.watch()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended) == ("cancelled", "abandoned")
        (tmp_path / f"{handle.jid}.open").touch()
