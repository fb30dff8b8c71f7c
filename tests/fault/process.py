"""
A worker or a watchdog in a process of its own, to be killed, frozen and told to stop.

`python -m tests.fault.process {"role": …}` is the child; `Child` is what a test holds of it. Handlers leave traces in
a folder, by jid: `<jid>.ran` gets a line for each start, `<jid>.tripped` the cause of each trip; they end when
`<jid>.open` appears.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import busq
from busq.cli.tied import end_process, tied_process
from busq.watchdog.watchdog import Watchdog
from busq.worker.worker import Worker
from tests.roles import as_role

ROOT = Path(__file__).parents[2]


class Child:
    """One process; ends with the test that made it."""

    def __init__(self, role: str, url: str, folder: Path, settings: dict[str, Any], **how: Any) -> None:
        task = json.dumps({"role": role, "url": as_role(url, role), "folder": str(folder), "settings": settings, **how})
        self.output = folder / f"{role}-{time.monotonic_ns()}.log"
        with self.output.open("wb") as output:
            self._process: subprocess.Popen[bytes] = tied_process(
                [sys.executable, "-m", "tests.fault.process", task],
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def ask_to_stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        end_process(self._process)


def declare(bus: busq.Bus, folder: Path) -> tuple[Any, Any, Any]:
    """
    The handlers: a coroutine and a thread that can be stopped, and a thread that cannot.

    The coroutine has a hook. It leaves `<jid>.cleaned`, a line for each try, in the name of the job that it cleans up
    after, and ends when `<jid>.clean` appears.
    """

    def note(suffix: str, line: str) -> None:
        with (folder / f"{busq.current_job().jid}.{suffix}").open("a") as trace:
            trace.write(line + "\n")

    def begin() -> Path:
        job = busq.current_job()
        job.on_trip(lambda facts: _append(folder / f"{jid}.tripped", str(facts.cause)))
        jid = job.jid
        note("ran", str(os.getpid()))
        return folder / f"{jid}.open"

    @bus.job
    async def hold() -> int:
        way_out = begin()
        while not way_out.exists():  # noqa: ASYNC110 - another process opens it
            await asyncio.sleep(0.01)
        return busq.current_job().attempt

    @bus.job
    def hold_thread() -> int:
        way_out = begin()
        while not way_out.exists():
            busq.current_job().wait_cancelled(0.01)
            busq.current_job().check_cancelled()
        return busq.current_job().attempt

    @bus.job
    def deaf_thread() -> None:
        way_out = begin()
        while not way_out.exists():
            time.sleep(0.01)

    @hold.on_cancel
    async def clean(job: busq.CancelledJob) -> str:
        _append(folder / f"{job.jid}.cleaned", f"{os.getpid()} {job.ended}")
        while not (folder / f"{job.jid}.clean").exists():  # noqa: ASYNC110 - another process opens it
            await asyncio.sleep(0.01)
        return "clean"

    return hold, hold_thread, deaf_thread


def _append(path: Path, line: str) -> None:
    with path.open("a") as trace:
        trace.write(line + "\n")


async def _serve(task: dict[str, Any]) -> None:
    bus = busq.Bus(task["url"], **task["settings"])
    service: Worker | Watchdog
    if task["role"] == "worker":
        declare(bus, Path(task["folder"]))
        service = Worker(bus.settings, bus.handlers, concurrency=task.get("concurrency"))
    else:
        service = Watchdog(bus.settings)
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, service.stop)
    await service.run()


if __name__ == "__main__":
    asyncio.run(_serve(json.loads(sys.argv[1])))
