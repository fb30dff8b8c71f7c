"""
The parts that `busq dev` and `busq demo` start beside themselves: `busq` once more, in processes of its own.

They are tied to us: they end when we do, however we end. `end_all` asks first (SIGTERM drains a worker) and kills
whoever has not ended in time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Coroutine, Mapping
from typing import IO, Any, TypeVar

from busq.cli.embedded import end_process, tied_process

RUN_BUSQ = "from busq.cli import main; main()"
LOOK_EVERY_S = 0.05

T = TypeVar("T")


def start_busq(
    *arguments: str,
    environ: Mapping[str, str],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    program: str = RUN_BUSQ,
) -> subprocess.Popen[bytes]:
    """
    Start `busq ARGUMENTS...` with this Python, in this environment. Call it in the main thread: the kernel ends the
    child with the thread that started it.
    """
    # The child finds what we find, also where busq runs from a checkout. An empty entry means the folder we are in.
    found = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    command = [sys.executable, "-P", "-c", program, *arguments]
    return tied_process(command, stdout=stdout, stderr=stderr, env={**environ, "PYTHONPATH": found})


def run(program: Coroutine[Any, Any, T]) -> T:
    """
    Run a coroutine that clean-up hangs on: Ctrl-C and SIGTERM cancel it, and it is waited for.

    Raise `KeyboardInterrupt` when either of them came.
    """

    async def interruptible() -> T:
        loop, running = asyncio.get_running_loop(), asyncio.current_task()
        assert running is not None  # noqa: S101 - a fact for the type checker
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, running.cancel)
        return await program

    try:
        return asyncio.run(interruptible())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def wait_ended(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a child, once it has ended."""
    while True:
        status = process.poll()
        if status is not None:
            return status
        await asyncio.sleep(LOOK_EVERY_S)


async def end_all(processes: Collection[subprocess.Popen[bytes]], *, within_s: float) -> None:
    """Ask all of them to drain and end; kill who has not ended in time, or when waiting is cancelled."""
    try:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(within_s):
            for process in processes:
                await wait_ended(process)
    except TimeoutError:
        pass  # what follows is for them
    finally:
        for process in processes:
            end_process(process)
