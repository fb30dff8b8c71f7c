"""
Replace: a handler in a child process that does not stop is ended, and the next job runs in a new child.

The handler ignores its cancel, whose grace is 0, and in half of the rounds SIGTERM too; then SIGKILL follows when the
force time is over (1 s, as it comes). One slot, and the next job waits for it. Times from cancel to finalized are the
record's own. Beside the time to the next job: how long a fresh interpreter takes that imports the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import MutableMapping
from multiprocessing.connection import Connection
from typing import Any

import structlog

import busq
from benchmarks.figures import Figure, Requirement
from benchmarks.processes import Helper, Place, fresh_place, work

REQUIRED = Requirement("at most", 2500)  # ms: beat, no grace, force, and a watchdog's interval
LOOK_EVERY_S = 0.002
IMPORTS = "import sys; sys.path[:] = sys.argv[1:]; import busq.worker.executors.child_main, benchmarks.replace"

handlers = busq.Bus()


@handlers.job(pool="process", grace=0)
def deaf(to_sigterm: bool) -> None:
    if to_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        with contextlib.suppress(busq.Cancelled):
            busq.current_job().progress(0.5)
        time.sleep(LOOK_EVERY_S)


@handlers.job(pool="process")
def first_line() -> float:
    return time.monotonic()


def measure(url: str, pairs: int) -> list[Figure]:
    replaced, finalized, terminated, fresh = [], [], [], []
    with fresh_place(url) as place, Helper(_be_worker, place) as worker, Helper(_be_client, place) as client:
        assert worker.hear() == "ready"
        for _ in range(pairs):
            fresh.append(_interpreter())
            client.tell(False)
            terminated.append(client.hear()[0])
            client.tell(True)
            ended_after, next_at = client.hear()
            finalized.append(ended_after)
            replaced.append((next_at - worker.hear()) * 1000)
    return [
        Figure.of("replace", "SIGKILL to the next job's first line", "ms", replaced),
        Figure.of("replace", "a fresh interpreter, same imports", "ms", fresh),
        Figure.of("replace", "cancel to finalized, ended by SIGTERM", "ms", terminated, REQUIRED),
        Figure.of("replace", "cancel to finalized, deaf to SIGTERM", "ms", finalized, REQUIRED),
    ]


def _interpreter() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS, *sys.path], check=True)
    return (time.monotonic() - began) * 1000


# In processes of their own -------------------------------------------------------------------------------


async def _be_worker(pipe: Connection, place: Place) -> None:
    def tell_of_kills(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        if event.get("signal") == "SIGKILL":
            pipe.send(time.monotonic())
        raise structlog.DropEvent

    structlog.configure(processors=[tell_of_kills], cache_logger_on_first_use=True)
    await work(pipe, place.bus(handlers), concurrency=1)


async def _be_client(pipe: Connection, place: Place) -> None:
    async with place.bus() as bus:
        while True:
            stubborn = await bus.enqueue("deaf", pipe.recv())
            while (await stubborn.get()).progress is None:  # noqa: ASYNC110 - it says so when it is deaf
                await asyncio.sleep(LOOK_EVERY_S)
            following = await bus.enqueue("first_line")
            await stubborn.cancel()
            next_at = await following.result(timeout=30)
            job = await stubborn.wait(timeout=30)
            assert job.ended == "killed"
            assert job.finished_at is not None
            assert job.requested_at is not None
            pipe.send(((job.finished_at - job.requested_at).total_seconds() * 1000, next_at))
