"""
A worker in a process of its own that measures, from inside, how long its loops ever stood still.

`python -m tests.fault.partition_worker {"url": …, "folder": …, "settings": {…}}`. Written to the folder: `ready` once
it takes jobs, `<jid>.tripped` for each job that was asked to stop, and `gaps` at the end: the longest pauses, in
seconds, of the handlers' loop, of the control loop, and of a process beside it that only sleeps. What all three felt
was the machine.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import busq
from busq.cli.tied import end_process, tied_process
from busq.worker.worker import Worker
from tests.runtime.bench import until

TICK_S = 0.01
SLEEPER = """
import sys, time
longest, told = 0.0, time.monotonic()
while True:
    before = time.monotonic()
    time.sleep(0.01)
    longest = max(longest, time.monotonic() - before)
    if time.monotonic() - told > 0.2:
        told = time.monotonic()
        open(sys.argv[1], "w").write(repr(longest))
"""


class Gaps:
    """The longest time between two turns of one loop."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_S)
            self.longest = max(self.longest, time.monotonic() - before)


async def serve(task: dict[str, Any]) -> None:
    folder = Path(task["folder"])
    bus = busq.Bus(task["url"], **task["settings"])

    @bus.job
    async def hold() -> None:
        jid = busq.current_job().jid
        try:
            await asyncio.Event().wait()
        finally:
            (folder / f"{jid}.tripped").touch()

    worker = Worker(bus.settings, bus.handlers)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.ready or running.done())
    handlers, control = Gaps(), Gaps()
    ticking = asyncio.create_task(handlers.watch())
    asyncio.run_coroutine_threadsafe(control.watch(), worker._control._loop)
    sleeper = tied_process([sys.executable, "-c", SLEEPER, str(folder / "machine")])
    (folder / "ready").touch()
    try:
        await running
    finally:
        ticking.cancel()
        end_process(sleeper)
    machine = float((folder / "machine").read_text())
    gaps = {"handlers": handlers.longest, "control": control.longest, "machine": machine}
    (folder / "gaps").write_text(json.dumps(gaps))


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
