"""
The parts that a command starts beside itself: `busq` once more, in processes of its own.

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

from busq.cli.tied import end_process, tied_process

RUN_BUSQ = "from busq.cli import main; main()"
LOOK_EVERY_S = 0.05

T = TypeVar("T")


def start_busq(
    *arguments: str,
    environ: Mapping[str, str],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    program: str = RUN_BUSQ,
    pass_fds: Collection[int] = (),
) -> subprocess.Popen[bytes]:
    """
    Start `busq ARGUMENTS...` with this Python, in this environment. Call it in the main thread: the kernel ends the
    child with the thread that started it.
    """
    # The child finds what we find, also where busq runs from a checkout. An empty entry means the folder we are in.
    # Not by way of PYTHONPATH: every program that a handler starts, such as another Python, would take it up too.
    found = [folder or os.getcwd() for folder in sys.path]
    program = f"import sys; n = -{len(found)}; sys.path[:] = sys.argv[n:]; del sys.argv[n:]; {program}"
    command = [sys.executable, "-P", "-c", program, *arguments, *found]
    return tied_process(command, stdout=stdout, stderr=stderr, env=dict(environ), pass_fds=pass_fds)


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
    while process.poll() is None:
        if hasattr(os, "pidfd_open"):
            await _until_readable(os.pidfd_open(process.pid))
        else:
            await asyncio.sleep(LOOK_EVERY_S)
    return process.returncode


async def _until_readable(descriptor: int) -> None:
    """Wait until there is something to read, and close it; a pidfd is readable once its process has ended."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def how_it_ended(status: int) -> str:
    """An exit status, in words."""
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"ended by signal {-status}"


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
