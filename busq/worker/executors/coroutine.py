"""
Coroutine handlers, each in a task of its own.

A task that is cancelled before its first step never runs a line, not even a `finally`: so nothing that matters
is written inside it. The report hangs on the task's done-callback, which always comes.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from busq.worker import context
from busq.worker.attempt import Attempt
from busq.worker.executors.base import HandlerExit, Report


class CoroutineExecutor:
    def __init__(self, loop: asyncio.AbstractEventLoop, report: Report) -> None:
        self._loop = loop
        self._report = report
        self._plain = contextvars.copy_context()
        self._alive: dict[asyncio.Task[Any], Attempt] = {}  # the loop itself holds tasks weakly

    def begin(self, attempt: Attempt, payload: bytes) -> None:
        args, kwargs = attempt.handler.unbind(payload)
        own = self._plain.copy()
        own.run(context.enter, attempt.job)
        task = self._loop.create_task(_guarded(attempt.handler.function, args, kwargs), context=own)
        attempt.task = task
        self._alive[task] = attempt
        task.add_done_callback(self._ended)

    def ask_to_stop(self, attempt: Attempt) -> None:
        """One `CancelledError` at the handler's next await; later awaits work, so that clean-up can await."""
        if attempt.task is not None and attempt.task.cancel():
            attempt.token.observe()

    def tell_anew(self, attempt: Attempt) -> None:
        """Nothing: it is in its clean-up, which a second `CancelledError` would break off; `job.cause` says it."""

    def force(self, attempt: Attempt) -> bool:
        self.ask_to_stop(attempt)
        return True

    def kill(self, attempt: Attempt) -> bool:
        return False

    async def close(self) -> None:
        """Nothing to do: tasks end with their loop."""

    def _ended(self, task: asyncio.Task[Any]) -> None:
        attempt = self._alive.pop(task)
        attempt.task = None
        if task.cancelled():
            self._report(attempt, None, asyncio.CancelledError())
            return
        error = task.exception()
        self._report(attempt, None if error is not None else task.result(), error)


async def _guarded(function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    try:
        return await function(*args, **kwargs)
    except (SystemExit, KeyboardInterrupt) as error:
        # asyncio would take these out of the loop and the whole worker with it.
        raise HandlerExit(f"the handler raised {type(error).__name__}: {error}") from error
