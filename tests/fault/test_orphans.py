"""
A worker that is killed takes everything along that runs on its behalf: its children, and all that they started.

Shown in /proc, with real workers that get a real SIGKILL. What holds the interpreter lock has no say in it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import busq
from tests.roles import as_role, deploy
from tests.runtime import process_handlers
from tests.runtime.bench import BUSY_S, until
from tests.runtime.test_process_pool import group, read, there

WITHIN_S = 1.0 + BUSY_S

WORKER = """
import asyncio, sys
import busq
from busq.worker.worker import Worker
from tests.runtime import process_handlers

async def main() -> None:
    async with busq.Bus(sys.argv[1]) as bus:
        await Worker(bus.settings, process_handlers.bus.handlers, concurrency=2).run()

asyncio.run(main())
"""


@pytest.fixture
def redis_url(redis_url: str) -> str:
    asyncio.run(deploy(redis_url))
    return redis_url


@pytest.fixture
def worker(redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, with two children at most."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, as_role(redis_url, "worker")], env=environ, stdout=subprocess.DEVNULL
    )
    yield process
    process.kill()
    process.wait()


async def gone_within(groups: list[int], seconds: float) -> None:
    began = time.monotonic()
    await until(lambda: not any(group(each) for each in groups))
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize("how", ["python", "in C"])
async def test_a_killed_workers_children_are_gone_with_their_trees(
    redis_url: str, tmp_path: Path, worker: subprocess.Popen[bytes], how: str
) -> None:
    """Three levels of processes, all deaf to SIGTERM, below a child that may hold the interpreter lock for ever."""
    folder = str(tmp_path)
    async with busq.Bus(as_role(redis_url, "client")) as bus:
        await bus.enqueue("grows_a_tree", folder, how)
        await bus.enqueue("waits", folder, "never")
        await until(lambda: there(folder, "running") and there(folder, "running-never"), 30)
        child = int(read(folder, "running"))
        groups = [child, *_children_of(worker.pid)]
        assert len(set(groups)) == 2
        assert len(group(child)) == 4
        worker.kill()
        await gone_within(groups, WITHIN_S)


async def test_an_idle_child_goes_with_its_killed_worker(redis_url: str, worker: subprocess.Popen[bytes]) -> None:
    async with busq.Bus(as_role(redis_url, "client")) as bus:
        child = await (await bus.enqueue("pid_of")).result(timeout=30)
        assert group(child) == [child]
        worker.kill()
        await gone_within([child], WITHIN_S)


async def test_a_stopped_child_goes_with_its_killed_worker(redis_url: str, worker: subprocess.Popen[bytes]) -> None:
    """SIGSTOP: it can run nothing at all, and needs to run nothing."""
    async with busq.Bus(as_role(redis_url, "client")) as bus:
        child = await (await bus.enqueue("pid_of")).result(timeout=30)
        os.kill(child, signal.SIGSTOP)
        worker.kill()
        await gone_within([child], WITHIN_S)


@pytest.mark.parametrize("kind", ["runs_a_program", "runs_a_program_and_awaits", "runs_a_program_in_a_thread"])
async def test_a_program_goes_with_its_killed_worker(
    redis_url: str, tmp_path: Path, worker: subprocess.Popen[bytes], kind: str
) -> None:
    """A program has a group of its own; tied to the process that its handler runs in, which is tied to the worker."""
    folder = str(tmp_path)
    async with busq.Bus(as_role(redis_url, "client")) as bus:
        queue = process_handlers.QUEUES.get(kind, "default")
        await bus.options(queue=queue).enqueue(kind, folder, "deaf")
        await until(lambda: there(folder, "up") and there(folder, "pid"), 30)
        program = int(read(folder, "pid"))
        assert group(program) == [program]
        worker.kill()
        await gone_within([program], WITHIN_S)


def _children_of(pid: int) -> list[int]:
    """Processes that this one started and that lead a group of their own."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(stat[1]) == pid and stat[0] != "Z" and stat[2] == entry:
                found.append(int(entry))
    return found
