"""
What goes wrong round the process pool's children, and must not be felt by jobs: no process to be had, a child that ends
between the giving and the beginning, a worker that leaves while jobs wait.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import busq
from busq.protocol.cancel import Cause
from busq.store.streams import Entry
from busq.worker.attempt import Attempt
from busq.worker.executors import crew, errands, process
from busq.worker.executors.children import Child
from tests.runtime.bench import PATIENT, bench, taken, until
from tests.runtime.test_process_pool import alive, result, there, work

FAR = 60.0  # seconds: longer than any test
TAKES_S = 2.0  # longer than a short job needs in a child that is there, on a busy machine too


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """Where handlers and the test meet; whoever waits there is let go at the end."""
    yield str(tmp_path)
    (tmp_path / "go on").touch()


class NoProcess:
    """Stands in for `subprocess.Popen` and has none to give, so many times."""

    def __init__(self, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = times
        self._real = subprocess.Popen
        monkeypatch.setattr(subprocess, "Popen", self)

    def __call__(self, *args: Any, **named: Any) -> Any:
        if self.left:
            self.left -= 1
            raise OSError(11, "Resource temporarily unavailable")
        return self._real(*args, **named)


async def test_a_process_that_cannot_be_had_hands_one_job_back_each_time_and_fails_none(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else happens that would have a child started: no further job, no child that ends."""
    async with bench(redis_url, **PATIENT) as b:
        handles = [await b.bus.enqueue("doubled", n) for n in range(3)]
        refused = NoProcess(2, monkeypatch)
        await work(b, concurrency=3, queues=["default"])
        jobs = [await handle.wait(timeout=20) for handle in handles]
        assert [(job.state, job.failures, job.losses) for job in jobs] == [("succeeded", 0, 0)] * 3
        assert sum([(await b.names(handle.jid)).count("handed_back") for handle in handles]) >= 2
        assert refused.left == 0


async def test_a_process_that_cannot_be_had_leaves_nothing_open(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        worker = await work(b, concurrency=1)
        NoProcess(20, monkeypatch)

        def start() -> None:
            crew = worker._processes._crew
            with pytest.raises(OSError, match="unavailable"):
                Child(crew._loop, crew._hello, crew._environ, crew._heard, crew._ended)

        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            start()
        assert len(os.listdir("/proc/self/fd")) < before + 10, "a few belong to connections that come and go"


async def test_the_clock_of_a_job_that_its_child_never_began_starts_with_the_next_child(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle child has ended, which nobody has heard of, when it is given a job; the next child takes its time."""
    async with bench(redis_url, **PATIENT) as b:
        worker = await work(b, concurrency=1, queues=["default"])
        pid = await result(b, "pid_of")
        (child,) = worker._processes._crew.children
        asyncio.get_running_loop().remove_reader(child.victim.pidfd)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not alive(pid))
        with monkeypatch.context() as m:
            m.setattr(crew.Crew, "_start_now", lambda self: None)  # a very slow one
            handle = await b.bus.options(timeout=TAKES_S).enqueue("doubled", 4)
            await until(lambda: child.given)
            child._gone()
            attempt = worker.running[handle.jid]
            assert attempt.waits
            began = time.monotonic()
            await until(lambda: time.monotonic() - began > TAKES_S + 0.2)
        worker._processes._crew._start_now()
        assert await handle.result(timeout=20) == 8
        assert await b.names(handle.jid) == ["enqueued", "started", "finalized"]


async def test_the_clock_of_a_job_that_got_another_child_runs_again(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, grace_s=0.2, lease_s=15) as b:
        worker = await work(b, concurrency=1, queues=["default"])
        pid = await result(b, "pid_of")
        (child,) = worker._processes._crew.children
        asyncio.get_running_loop().remove_reader(child.victim.pidfd)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not alive(pid))
        handle = await b.bus.options(timeout=1.0).enqueue("waits", folder, "go on")
        await until(lambda: child.given)
        child._gone()
        job = await handle.wait(timeout=20)
        assert (job.state, job.cause) == ("failed", "timed_out")
        assert there(folder, "running-go on")


async def test_a_worker_that_hands_back_starts_no_child_for_those_that_wait(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the stand-in for a blocked loop does it: the one that runs is ended, the one behind it is not moved."""
    monkeypatch.setattr(process, "MOST_AT_DOOR_S", FAR)
    monkeypatch.setattr(process, "HELD_UP_S", FAR)
    async with bench(redis_url, lease_s=15) as b:
        worker = await work(b, concurrency=1, queues=["default"])
        for _ in range(2000):
            worker._pace.heard("waits", 0.0001)
        pid = await result(b, "pid_of")
        handles = [await b.bus.enqueue("waits", folder, name) for name in ("a", "b")]
        for handle in handles:
            await taken(worker, handle.jid)
        await until(lambda: there(folder, "running-a"))
        told = worker._runner.hand_backs()
        assert {attempt.jid for attempt, _ in told} == {handle.jid for handle in handles}
        assert worker._processes.pids == [pid]
        assert not worker._runner._errands
        await until(lambda: not alive(pid))
        assert not there(folder, "running-b")
        for attempt in list(worker.running.values()):
            worker._runner._free(attempt)


async def test_an_attempt_that_is_started_anew_beside_its_forerunner_ends_the_forerunner(redis_url: str) -> None:
    """The lease was lost and the job came back to this very worker before a beat said so."""
    async with bench(redis_url, **PATIENT) as b:
        causes: list[Any] = []
        entered, gate = asyncio.Event(), b.gate()

        @b.bus.job
        async def waits() -> str:
            entered.set()
            try:
                await gate.wait()
            except asyncio.CancelledError:
                causes.append(busq.current_job().cause)
                raise
            return "done"

        worker = await b.work()
        handle = await waits.enqueue()
        await entered.wait()  # what is cancelled before its first step has no handler to tell of it
        first = await taken(worker, handle.jid)
        again = Attempt(first.handler, entry_of(first), first.token_id, first.answer, first.terms, first.started_at)
        first.token_id = "lost"
        assert worker._slots.take(first.handler)
        worker._runner._begin(again)
        await until(lambda: causes)
        assert causes == [Cause.LEASE_LOST]
        await until(lambda: first.over)
        assert worker.running[handle.jid] is again
        gate.open()
        assert await handle.result(timeout=20) == "done"
        await until(lambda: not worker._slots.used)


def entry_of(attempt: Attempt) -> Entry:
    return Entry(attempt.shard, attempt.queue, attempt.entry, attempt.jid, attempt.handler.kind)


async def test_a_child_asked_for_when_the_worker_is_gone_is_refused_in_words() -> None:
    told: Future[tuple[str, str]] = Future()
    told.cancel()
    assert errands.birth(told) == ("refused", "the worker is stopping")


async def test_a_drained_worker_does_not_wait_for_ever_for_a_child_that_the_kernel_cannot_end(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is never heard of, as that of a process in an uninterruptible call would be."""
    monkeypatch.setattr(crew, "CLOSE_WITHIN_S", 0.1)
    async with bench(redis_url) as b:
        worker = await work(b, concurrency=1, queues=["default"])
        await result(b, "doubled", 1)
        (child,) = worker._processes._crew.children
        asyncio.get_running_loop().remove_reader(child.victim.pidfd)
        await b.end(worker)
        assert worker._processes.pids == [child.pid]
        child.signal(signal.SIGKILL)
        child._gone()


async def test_a_child_that_does_not_begin_what_it_is_given_is_replaced_when_that_is_cancelled(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen while it was idle; it would be given the next job, and the one after that."""
    monkeypatch.setattr(process, "DEAF_S", 0.0)
    async with bench(redis_url, **PATIENT) as b:
        await work(b, concurrency=1, queues=["default"])
        pid = await result(b, "pid_of")
        os.kill(pid, signal.SIGSTOP)
        handle = await b.bus.enqueue("doubled", 1)
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended) == ("cancelled", "confirmed")
        assert await result(b, "pid_of") != pid
        assert not alive(pid)
