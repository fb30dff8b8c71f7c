"""
`def` handlers, in threads of our own.

A thread cannot be stopped from outside. It is asked (its token says cancelled, its checks raise); if it does not
listen it is abandoned: its slot is given a fresh thread, and it runs on as a suspect until it ends by itself. The
threads are daemons, so that not one of them keeps a drained worker from exiting.

A handler declared with `raise_in_thread=True` has `Cancelled` raised in it by force: see `raising.py` for how little
that promises.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

from busq.worker import context
from busq.worker.attempt import Attempt
from busq.worker.executors.base import HandlerExit, Report
from busq.worker.executors.raising import Ending, Raising

Work = Callable[[], bool]


class ThreadExecutor:
    """Threads are made when first needed and kept; there are at most as many idle ones as slots."""

    def __init__(self, loop: asyncio.AbstractEventLoop, report: Report, *, slots: int) -> None:
        self._loop = loop
        self._report = report
        self._slots = slots
        self._plain = contextvars.copy_context()
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0  # threads that ask for work, and
        self._waiting = 0  # jobs that none of them has taken yet: always changed together
        self._made = 0
        self._raising: dict[Attempt, Raising] = {}  # of the handlers that want it, while their code runs

    def begin(self, attempt: Attempt, payload: bytes) -> None:
        args, kwargs = attempt.handler.unbind(payload)
        own = self._plain.copy()
        if attempt.handler.options.raise_in_thread:
            self._raising[attempt] = Raising(attempt.token)
        with self._lock:
            self._waiting += 1
            enough = self._waiting <= self._idle
            self._made += not enough
        self._work.put(lambda: own.run(self._run, attempt, args, kwargs))
        if enough:
            return
        threading.Thread(target=self._serve, name=f"busq-handler-{self._made}", daemon=True).start()

    def ask_to_stop(self, attempt: Attempt) -> None:
        """Nothing beyond the token, which is tripped already: the handler's own checks find it."""

    def tell_anew(self, attempt: Attempt) -> None:
        """Nothing beyond the token."""

    def force(self, attempt: Attempt) -> bool:
        raising = self._raising.get(attempt)
        return raising is not None and raising.fire()

    def kill(self, attempt: Attempt) -> bool:
        return False

    async def close(self) -> None:
        for _ in range(self._made):
            self._work.put(None)

    def _serve(self) -> None:
        stays = self._stays()
        while stays:
            work = self._work.get()
            with self._lock:
                self._idle -= 1
                self._waiting -= work is not None
            if work is None:
                return
            stays = work()
            del work  # an idle thread holds no arguments of its last job

    def _stays(self) -> bool:
        """Count this thread as one that takes the next job, unless there are enough: it was replaced when abandoned."""
        with self._lock:
            if self._idle >= self._slots:
                return False
            self._idle += 1
            return True

    def _run(self, attempt: Attempt, args: list[Any], kwargs: dict[str, Any]) -> bool:
        """Run a handler and report its end. Return whether this thread takes another job."""
        context.enter(attempt.job)
        raising = self._raising.get(attempt)
        function = attempt.handler.function
        value, error = _call(function, args, kwargs) if raising is None else raising.call(function, args, kwargs)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            left = HandlerExit(f"the handler raised {type(error).__name__}: {error}")
            left.__cause__ = error
            error = left
        # Before the loop hears of it, which gives the slot away: else it would make another thread.
        stays = self._stays()
        try:
            self._loop.call_soon_threadsafe(self._ended, attempt, value, error)
        except RuntimeError:
            return False  # the loop is closed: an abandoned handler came back after its worker had drained
        return stays

    def _ended(self, attempt: Attempt, value: Any, error: BaseException | None) -> None:
        self._raising.pop(attempt, None)
        self._report(attempt, value, error)


def _call(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Ending:
    try:
        return function(*args, **kwargs), None
    except BaseException as raised:
        return None, raised
