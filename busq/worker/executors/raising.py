"""
Raising `Cancelled` in another thread, aimed at one attempt's code: what a handler asks for with `raise_in_thread`.

The interpreter raises it at the thread's next step in Python code, wherever that is. So it does nothing to a thread
that sleeps, waits for a lock or a socket, or is in C code, until that returns; a bare `except` swallows it, as the
interpreter does where the collector runs a finalizer; and what the thread was in the middle of stays as it is: a
`finally` may be cut short, a lock may stay held that was being taken.

The thread is a kept one and runs other people's jobs afterwards, so nothing may land after this attempt's code:

    armed ──> the handler's code runs, may be raised in ──> shut ──> what was on its way is awaited and taken back

Always true: once `_shut` is set, at most one exception is still on its way, and `_disarm` returns when there is none. A
lock would not do here: an exception may land in whoever has just taken it.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from busq.errors import Cancelled
from busq.protocol.cancel import Cause, TripFacts
from busq.worker.token import CancelToken

# Their locks are everybody's: left held by an exception, they would stop the whole process.
_SPARED = frozenset({"logging", "importlib._bootstrap", "importlib._bootstrap_external"})

Ending = tuple[Any, BaseException | None]
"""What the handler returned, and what it raised (None when it returned)."""


class Raising:
    """One for each attempt. `call` belongs to the attempt's thread, `fire` to everybody else."""

    def __init__(self, token: CancelToken) -> None:
        self._token = token
        self._thread: int | None = None
        self._shut = False
        self._firing = False
        self._returned = False

    def fire(self) -> bool:
        """Raise it once in the handler, if its code runs. Return whether firing again later can do any good."""
        self._firing = True  # before we look: whoever shuts after that look waits for us
        try:
            thread, facts = self._thread, self._token.facts
            if self._shut or facts is None:
                return False
            if thread is not None and not _is_spared(sys._current_frames().get(thread)):
                exception = self._exception(facts)
                if not self._shut:
                    _raise_in(thread, exception)
            return True
        finally:
            self._firing = False

    def call(self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Ending:
        """Run the handler's code, with the gate open for as long as that takes. Raise nothing."""
        value: Any = None
        error: BaseException | None = None
        try:
            try:
                self._thread = threading.get_ident()
                value = function(*args, **kwargs)
                self._returned = True
            except BaseException as raised:
                self._shut = True
                error = raised
            self._disarm()
        except Cancelled as stray:  # landed on the few steps between the handler's code and the shut gate
            self._shut = True
            if not self._returned and error is None:
                error = stray
        try:
            self._disarm()
        except Cancelled:
            self._disarm()  # the last one has landed; nothing is on its way any more
        return value, error

    def _disarm(self) -> None:
        self._shut = True
        while self._firing:
            time.sleep(0)
        _raise_in(threading.get_ident(), None)

    def _exception(self, facts: TripFacts) -> type[Cancelled]:
        """A `Cancelled` that the interpreter can make without arguments, and that says when it has arrived."""
        raising = self

        def __init__(self: Cancelled) -> None:
            Cancelled.__init__(self, facts.cause, facts.reason)
            if not raising._returned:
                raising._token.observe()

        def __reduce__(self: Cancelled) -> tuple[type[Cancelled], tuple[Cause, str]]:
            return Cancelled, (facts.cause, facts.reason)

        own = {"__init__": __init__, "__reduce__": __reduce__, "__module__": Cancelled.__module__}
        return type("Cancelled", (Cancelled,), own)


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    """Have it raised at the thread's next step; None takes back what is not raised yet."""
    wanted = ctypes.py_object() if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), wanted)


def _is_spared(frame: FrameType | None) -> bool:
    """
    Whether the thread stands where an exception must not land.

    It cannot move while we look, for we have the interpreter's lock; it could only where that is taken from us between
    the look and the shot, a few steps later.
    """
    while frame is not None:
        if frame.f_globals.get("__name__") in _SPARED:
            return True
        frame = frame.f_back
    return False
