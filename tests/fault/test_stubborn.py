"""
Real worker processes whose handlers block the loop, hold the interpreter lock, or never end.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

import busq
from tests.interface.commands import Service, service
from tests.runtime.bench import BUSY_S, QUICK, SHORT_LEASE, Bench, bench, until

QUICKLY = {f"BUSQ_{name.upper()}": str(value) for name, value in QUICK.items()}


@contextmanager
def worker(url: str, *words: str, **settings: float) -> Iterator[Service]:
    given = {f"BUSQ_{name.upper()}": str(value) for name, value in settings.items()}
    with service("worker", "stubborn:bus", *words, url=url, **{**QUICKLY, **given}) as running:
        running.until("worker.started")
        yield running


async def heard(running: Service, event: str) -> None:
    """Wait until the worker said so; the loop of the test goes on meanwhile."""
    await until(lambda: any(line["event"] == event for line in running.lines), timeout=30)


async def ended(running: Service) -> int:
    await until(lambda: running.process.poll() is not None, timeout=30)
    return running.ended()


@pytest.mark.parametrize(("kind", "said"), [("spin", "spinning"), ("derive", "deriving")])
async def test_a_worker_whose_loop_is_blocked_leaves_by_itself_on_sigterm(redis_url: str, kind: str, said: str) -> None:
    """In Python code, and in C code that looks at no signal. Its jobs are handed back and nothing is spent."""
    async with bench(redis_url) as b:
        with worker(redis_url) as running:
            beside = await b.bus.enqueue("linger")
            await heard(running, "lingering")
            handle = await b.bus.enqueue(kind)
            await heard(running, said)
            running.process.send_signal(signal.SIGTERM)
            assert await ended(running) == 0, running.text
        for each in (handle, beside):
            job = await each.get()
            assert (job.state, job.attempt, job.failures, job.losses) == ("queued", 1, 0, 0)
        assert list(await b.bus.workers()) == []
        # A busy machine may hold the loop up elsewhere too.
        blocked = running.until(lambda line: line["event"] == "loop.blocked" and line.get("jid") == handle.jid)
        assert "stubborn.py" in blocked["stack"]
        assert running.until("worker.leaves")["level"] == "error"


async def test_a_second_sigterm_hurries_a_worker_whose_loop_is_blocked(redis_url: str) -> None:
    async with bench(redis_url) as b:
        with worker(redis_url, "--shutdown-timeout", "600") as running:
            handle = await b.bus.enqueue("spin")
            await heard(running, "spinning")
            running.process.send_signal(signal.SIGTERM)
            await heard(running, "signal")
            running.process.send_signal(signal.SIGTERM)
            assert await ended(running) == 0, running.text
        assert (await handle.get()).state == "queued"


async def test_a_loop_blocked_past_the_deadline_of_its_cancel_makes_the_worker_lifeless(redis_url: str) -> None:
    """The watchdog ends the job in time; the code runs on, and its process says that only a new one can mend it."""
    async with bench(redis_url) as b:
        await b.watch()
        with worker(redis_url) as running:
            handle = await b.bus.enqueue("spin")
            await heard(running, "spinning")
            answer = await handle.cancel()
            job = await handle.wait(timeout=20)
            assert (job.state, job.ended) == ("cancelled", "abandoned")
            assert answer.deadline is not None
            assert job.finished_at is not None
            assert job.finished_at <= answer.deadline + timedelta(seconds=b.settings.watchdog_interval_s + BUSY_S)
            await heard(running, "worker.lifeless")
            assert handle.jid in running.until("worker.lifeless")["why"]


async def test_a_job_that_blocks_the_loop_for_ever_is_ended_by_its_timeout_and_its_retries(redis_url: str) -> None:
    """Each attempt costs a worker, which is replaced; nobody cancels the job, and it does not go on without end."""
    async with bench(redis_url) as b:
        await b.watch()
        handle = await b.bus.options(timeout=0.5, retries=1).enqueue("spin")
        for attempt, state in ((1, "scheduled"), (2, "failed")):
            with worker(redis_url, shutdown_timeout=600.0) as running:
                await heard(running, "spinning")
                await heard(running, "worker.lifeless")
                assert "past the timeout" in running.until("worker.lifeless")["why"]
                await heard(running, "job.failed")
                running.process.send_signal(signal.SIGTERM)
                assert await ended(running) == 0, running.text
            job = await b.reaches(handle.jid, "scheduled", "queued", state)
            assert (job.attempt, job.failures, job.losses) == (attempt, attempt, 0)
        assert (job.state, job.cause) == ("failed", "timed_out")
        assert await _suspects(b, 0)


async def test_a_forked_child_of_a_handler_ends_by_its_own_sigterm(redis_url: str) -> None:
    """And the worker does not take it for its own."""
    async with bench(redis_url) as b:
        with worker(redis_url) as running:
            assert await (await b.bus.enqueue("fork")).result(timeout=20) == -signal.SIGTERM
            assert await (await b.bus.enqueue("fork")).result(timeout=20) == -signal.SIGTERM
            assert not [line for line in running.lines if line["event"] == "signal"]


# Suspects --------------------------------------------------------------------------------------------------


async def test_a_worker_with_too_many_suspects_drains_itself_and_exits_0(redis_url: str) -> None:
    """Each of them has left a thread behind that is no daemon; none keeps the process."""
    async with bench(redis_url) as b:
        await b.watch()
        with worker(redis_url, "--concurrency", "4", suspects_limit=1) as running:
            for _ in range(2):
                handle = await b.bus.enqueue("ignore")
                await b.reaches(handle.jid, "running")
                await handle.cancel()
                assert (await handle.wait(timeout=20)).ended == "abandoned"
            assert await ended(running) == 0, running.text
        line = running.until("suspects.too_many")
        assert (line["suspects"], line["limit"]) == (2, 1)
        assert running.until("worker.stopped")["suspects"] == 2
        await until(lambda: _suspects(b, 0))
        assert list(await b.bus.workers()) != [], "the watchdog"


async def _suspects(b: Bench, count: int) -> bool:
    return (await b.bus.stats()).suspects == count


# The interpreter lock ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["match", "match_in_loop"])
async def test_a_call_that_holds_the_interpreter_lock_looks_like_a_dead_worker(
    redis_url: str, tmp_path: Path, kind: str
) -> None:
    """Once it is longer than the lease: reclaimed, run twice, and the late finish of the first is stale."""
    async with bench(redis_url, **SHORT_LEASE) as b:
        await b.watch()
        with worker(redis_url, **SHORT_LEASE) as one, worker(redis_url, **SHORT_LEASE) as other:
            handle = await b.bus.options(max_losses=100).enqueue(kind, str(tmp_path / "met"))
            job = await handle.wait(timeout=60)
            assert (job.state, job.result, job.failures) == ("succeeded", "second", 0)
            assert job.losses == job.attempt - 1 >= 1, "once, or more often where the machine itself is that slow"
            await until(lambda: _with(b, handle, "late_result"), timeout=30)
            assert (await handle.get()).result == "second"
            if kind == "match_in_loop":
                await until(lambda: _longest_block(one, other) > b.settings.lease_s, timeout=30)


def _longest_block(*workers: Service) -> float:
    """Of those that the watch itself could not see."""
    lines = [line for each in workers for line in each.lines if "watch_late_s" in line]
    return max((line["seconds"] for line in lines if line["event"] == "loop.unblocked"), default=0.0)


async def _with(b: Bench, handle: busq.JobHandle[object], name: str) -> bool:
    return name in await b.names(handle.jid)


# Clean-up ----------------------------------------------------------------------------------------------------


async def test_a_second_sigterm_hurries_through_the_clean_up_too(redis_url: str) -> None:
    async with bench(redis_url) as b:
        with worker(redis_url, "--shutdown-timeout", "0", "--cleanup-timeout", "600") as running:
            handle = await b.bus.enqueue("linger")
            await heard(running, "lingering")
            running.process.send_signal(signal.SIGTERM)
            await heard(running, "cleaning")
            running.process.send_signal(signal.SIGTERM)
            assert await ended(running) == 0, running.text
        job = await handle.get()
        assert (job.state, job.failures, job.losses) == ("queued", 0, 0)
