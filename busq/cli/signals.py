"""
SIGTERM and Ctrl-C, heard in a thread of their own.

A signal handler in Python runs in the main thread between two steps of Python code, and one of asyncio's in a turn of
the loop: where a job's code blocks the loop it comes late or never. So the C code that catches a signal writes its
number into a pipe, and a thread reads that. Only what holds the interpreter lock keeps it from being heard.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NUMBERS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def heard(hear: Callable[[str], object]) -> Iterator[None]:
    """
    Have `hear(name)` called, in a thread of its own, for each of the two. Call it in the main thread.

    Afterwards both are ignored: it is too late to ask for anything, and a second signal must not turn a clean end into
    another one.
    """
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    for number in NUMBERS:
        signal.signal(number, _caught)
    before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ours, hear), name="busq-signals", daemon=True).start()
    try:
        yield
    finally:
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)
        if signal.set_wakeup_fd(-1) == theirs:
            signal.set_wakeup_fd(before)
        os.close(theirs)


def _caught(number: int, frame: object) -> None:
    """Nothing: that there is a handler in Python is what makes the number go into the pipe."""


def _listen(descriptor: int, hear: Callable[[str], object]) -> None:
    known = {int(number): number.name for number in NUMBERS}
    while numbers := os.read(descriptor, 64):
        for number in numbers:
            if number in known:
                hear(known[number])
    os.close(descriptor)


def _forget_in_child() -> None:
    # A process that a handler forks has our pipe: its own SIGTERM would be heard as ours, and would not end it.
    if any(signal.getsignal(number) is _caught for number in NUMBERS):
        signal.set_wakeup_fd(-1)
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_in_child)
