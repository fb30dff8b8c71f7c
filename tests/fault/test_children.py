"""
Children and trees of them, when somebody else ends their worker or themselves: the kernel, an operator, a bug.

Who belongs to a story is told by a mark in its command line or environment, and its end by the kernel (pidfd).
"""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import pytest

from busq.worker.executors.children import Child
from tests.executors.house import house
from tests.executors.stage import APPLICATIONS
from tests.executors.test_stopping import ASKED
from tests.runtime.bench import BUSY_S, bench, until
from tests.runtime.test_process_pool import alive

WITHIN_S = 1.0 + BUSY_S


def marked(mark: str) -> set[int]:
    """All living processes with this mark among their arguments or in their environment, without ourselves."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and alive(int(entry.name)):
            try:
                told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue  # ended meanwhile
            if mark.encode() in told:
                found.add(int(entry.name))
    return found


def ended_within(fds: dict[int, int], seconds: float) -> set[int]:
    """Those of these processes (by a pidfd, opened while they lived) that end in time, as the kernel tells it."""
    poll, ended = select.poll(), set()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    until = time.monotonic() + seconds
    while len(ended) < len(fds) and (left := until - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            ended.add(fds[fd])
            poll.unregister(fd)
    for fd in fds:
        os.close(fd)
    return ended


@pytest.mark.parametrize("executor", ["coroutine", "thread", "process"])
@pytest.mark.parametrize("state", ["at work", "being cancelled", "frozen"])
async def test_nothing_that_runs_for_a_killed_worker_outlives_it(
    redis_url: str, tmp_path: Path, executor: str, state: str
) -> None:
    """A handler with a program of three levels below it, all deaf to SIGTERM, and in a child a sibling at work."""
    if not hasattr(os, "pidfd_open"):
        pytest.skip("only Linux ties processes to each other")
    async with house(redis_url, executor, tmp_path) as h:
        worker = h.apart()
        handle = await h.running("runs_a_tree")
        levels = {int(await h.at(f"level-{n}")) for n in (1, 2, 3)}
        sibling = await h.play("waits", "never")
        await h.b.reaches(sibling.jid, "running")
        if state == "being cancelled":
            await handle.cancel()
            await until(lambda: h.has(handle.jid, "tripped"))
        everyone = marked(str(tmp_path)) - {worker.pid}
        assert levels < everyone if executor == "process" else levels == everyone
        if state == "frozen":
            for pid in everyone:
                os.kill(pid, signal.SIGSTOP)
        fds = {os.pidfd_open(pid): pid for pid in everyone}
        os.kill(worker.pid, signal.SIGKILL)
        assert ended_within(fds, WITHIN_S) == everyone
        assert marked(str(tmp_path)) == set()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM], ids=lambda each: each.name)
async def test_a_child_that_somebody_else_ends_fails_its_job_with_that_fact(
    redis_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    async with house(redis_url, "process", tmp_path) as h:
        await h.work(concurrency=1)
        handle = await h.running("waits")
        os.kill(int(await h.at("running")), number)
        job = await handle.wait(timeout=20)
        assert (job.state, job.cause, job.failures, job.losses) == ("failed", "error", 1, 0)
        assert job.error is not None
        assert (job.error.type, number.name in job.error.message) == ("ChildProcessEnded", True)
        assert await h.events(handle.jid) == [("enqueued", 0), ("started", 1), ("finalized", 1)]
        assert await (await h.bus.enqueue("doubled", 2)).result(timeout=20) == 4
        assert await h.suspects() == 0


async def test_a_child_that_somebody_else_ends_is_retried_by_policy(redis_url: str, tmp_path: Path) -> None:
    async with house(redis_url, "process", tmp_path) as h:
        await h.work(concurrency=1)
        await h.watch()
        handle = await h.running("waits", retries=1)
        first = int(await h.at("running"))
        (tmp_path / "running").unlink()
        os.kill(first, signal.SIGKILL)
        assert int(await h.at("running")) != first
        h.go_on()
        assert await handle.result(timeout=20) == 2


async def test_a_cancelled_child_that_somebody_else_ends_is_cancelled_and_not_retried(
    redis_url: str, tmp_path: Path
) -> None:
    """We did not end it, so nobody says `killed`; it had not heard, so nobody says `confirmed`."""
    async with house(redis_url, "process", tmp_path) as h:
        worker = await h.work(concurrency=1)
        handle = await h.running("never_looks")
        attempt = worker.worker.running[handle.jid]
        await handle.cancel()
        await until(lambda: attempt.tripped_at is not None)
        os.kill(int(await h.at("running")), signal.SIGKILL)
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended, job.attempt, job.failures) == ("cancelled", "completed", 1, 0)
        assert job.evidence is not None
        assert job.evidence.error is not None
        assert "SIGKILL" in job.evidence.error.message
        assert await h.events(handle.jid) == [*ASKED, ("stopped", 1), ("finalized", 1)]


async def test_an_idle_child_that_somebody_else_ends_is_replaced(redis_url: str, tmp_path: Path) -> None:
    async with house(redis_url, "process", tmp_path) as h:
        await h.work(concurrency=1)
        pid = await (await h.bus.enqueue("place")).result(timeout=20)
        child = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: select.select([child], [], [], 0)[0])  # ended with all its threads
        os.close(child)
        assert await (await h.bus.enqueue("place")).result(timeout=20) != pid


async def test_a_job_is_not_given_to_a_child_whose_end_is_not_heard_of_yet(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job has no retries: it must not fail of what happened before it began."""
    unheard: list[Child] = []
    real = Child._gone

    def not_yet(self: Child) -> None:
        if self.victim.pidfd == -1:
            pytest.skip("without pidfds a thread of ours tells of the end")
        self._loop.remove_reader(self.victim.pidfd)
        unheard.append(self)

    monkeypatch.setattr(Child, "_gone", not_yet)  # the first child's; its successors are heard as ever
    async with bench(redis_url) as b:
        await b.work(handlers=APPLICATIONS["process"].handlers, concurrency=1)
        pid = await (await b.bus.enqueue("place")).result(timeout=20)
        monkeypatch.setattr(Child, "_gone", real)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: unheard)
        try:
            handle = await b.bus.enqueue("place")
            await until(lambda: unheard[0].given)
        finally:
            real(unheard[0])
        assert await handle.result(timeout=20) != pid


async def test_a_frozen_child_is_killed_by_force(redis_url: str, tmp_path: Path) -> None:
    """SIGSTOP: it hears nothing and answers nothing, not even SIGTERM."""
    async with house(redis_url, "process", tmp_path) as h:
        await h.work(concurrency=1)
        handle = await h.running("waits", grace=0.1)
        pid = int(await h.at("running"))
        os.kill(pid, signal.SIGSTOP)
        await handle.cancel()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended, alive(pid)) == ("cancelled", "killed", False)
        assert await (await h.bus.enqueue("doubled", 2)).result(timeout=20) == 4
