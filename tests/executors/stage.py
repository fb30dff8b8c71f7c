"""
What stories are told with: one text for each, run by all three executors.

A story is an `async def`. As a coroutine it runs as it stands; as a `def`, in a thread or a child process, the same
text runs to its end at once, because there every step blocks and whatever is awaited is there already. Stories meet
their test at files in a folder, which serves every executor alike: `mark` says that a point was reached, the waiting
steps end when a file appears. The file `curtain` ends them all.

Child processes import this module: it holds nothing of the test's side.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import inspect
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import busq

EXECUTORS = ("coroutine", "thread", "process")
CANCELLATIONS = (asyncio.CancelledError, busq.Cancelled)
CURTAIN = "curtain"
STEP_S = 0.002

APPLICATIONS = {executor: busq.Bus() for executor in EXECUTORS}
"""One application for each executor; the kinds are the same in all of them."""


def story(**options: Any) -> Callable[[Any], Any]:
    """Declare this `async def` in each application. Its name stays with the process pool, which must find it."""

    def declare(body: Any) -> Any:
        kind = body.__name__
        APPLICATIONS["coroutine"].job(kind=kind, **options)(body)
        APPLICATIONS["thread"].job(kind=kind, pool="thread", **options)(_at_once(body))
        return APPLICATIONS["process"].job(kind=kind, pool="process", **options)(_at_once(body))

    return declare


def _at_once(body: Any) -> Any:
    @functools.wraps(body)
    def handler(*args: Any, **kwargs: Any) -> Any:
        try:
            body(*args, **kwargs).send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("in a `def` handler every answer is there at once")

    return handler


async def answer(told: Any) -> Any:
    """What `current_job()` answers: awaited in a coroutine, there at once in a `def`."""
    return await told if inspect.isawaitable(told) else told


def in_coroutine() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# Telling -------------------------------------------------------------------------------------------------


def mark(folder: str, name: str, text: str = "") -> None:
    """Make a file that is whole from the moment it is there."""
    made = Path(folder) / f".{name}-{os.getpid()}-{time.monotonic_ns()}"
    made.write_text(text)
    made.rename(Path(folder) / name)


def note(folder: str, name: str, line: object) -> None:
    """Add a line to a file, whole."""
    to = os.open(Path(folder) / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(to, f"{line}\n".encode())
    finally:
        os.close(to)


def there(folder: str, name: str) -> bool:
    return os.path.exists(f"{folder}/{name}") or os.path.exists(f"{folder}/{CURTAIN}")


# Waiting -------------------------------------------------------------------------------------------------


def rest(seconds: float) -> None:
    """Do nothing, and let nobody else do anything in this thread."""
    time.sleep(seconds)


async def pause(seconds: float = STEP_S) -> None:
    """One step that a cancel interrupts: an await, or a check."""
    if in_coroutine():
        await asyncio.sleep(seconds)
    else:
        busq.current_job().check_cancelled()
        rest(seconds)


async def wait(folder: str, name: str) -> None:
    """Until the file is there; a cancel interrupts it."""
    while not there(folder, name):
        await pause()


async def linger(folder: str, name: str) -> None:
    """The same without a check: of a cancel that was heard already, only force can disturb it."""
    while not there(folder, name):
        if in_coroutine():
            await asyncio.sleep(STEP_S)
        else:
            rest(STEP_S)


async def doze(seconds: float) -> None:
    """So long, unless a cancel interrupts it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await pause(STEP_S / 4)


def block(folder: str, name: str) -> None:
    """The same without a check or an await: a coroutine's loop stands still."""
    while not there(folder, name):
        rest(STEP_S)


def spin(folder: str, name: str) -> None:
    """`while True: pass`, but for a look at the folder now and then."""
    while not there(folder, name):
        for _ in range(10_000):
            pass


def read_in_c(folder: str, name: str) -> None:
    """A call into C that keeps the interpreter lock until somebody writes to this pipe or closes it."""
    end = os.open(f"{folder}/{name}", os.O_RDONLY)
    mark(folder, "running", str(os.getpid()))
    ctypes.PyDLL(None).read(end, ctypes.create_string_buffer(1), 1)
    os.close(end)


def match_in_c(length: int) -> None:
    """A regular expression that goes astray, and keeps the interpreter lock: each letter more doubles the time."""
    re.match(r"(a+)+$", "a" * length + "b")


# Shields and programs ------------------------------------------------------------------------------------


def shield(limit: float | None = None) -> Any:
    """`job.shield` in the form that fits where we run."""
    return entered(busq.current_job().shield(limit=limit))


def entered(manager: Any) -> Any:
    """For `async with`: a manager that a `def` handler enters by a plain `with`."""
    return manager if in_coroutine() else _Blocking(manager)


class _Blocking:
    def __init__(self, manager: Any) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        return self._manager.__enter__()

    async def __aexit__(self, *error: Any) -> None:
        self._manager.__exit__(*error)
