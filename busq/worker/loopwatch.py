"""
Watches the handlers' loop from the control thread: how late it is, and what holds it up.

A tick is put into the loop every 100 ms and stamped when its turn comes; the time between is the lag. A loop that
lets a tick wait for 0.25 s is blocked: that is told at once, with the stack of whatever runs there and the job whose
task it is, and told again with its whole length when the loop goes on.

A call that holds the interpreter lock stops this watch as well. It is told when the call is over, and `watch_late_s`
says so: for that long the watch itself did not get its turn. It is the same in a process that was frozen, whose loop
may be in perfect order: so nothing is done because of time that could not be watched.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from busq import events
from busq.clock import SystemClock
from busq.worker import context
from busq.worker.attempt import Attempt

TICK_S = 0.1
BLOCKED_S = 0.25
STACK_FRAMES = 12  # the innermost ones
STACK_LETTERS = 4000

log = events.logger("busq.worker")


class LoopWatch:
    """Made in the thread of the loop that it watches; `running` is only read."""

    def __init__(self, loop: asyncio.AbstractEventLoop, running: Callable[[], Mapping[str, Attempt]]) -> None:
        self._loop = loop
        self._running = running
        self._thread = threading.get_ident()
        self._clock = SystemClock()
        self._sent_at = 0.0
        self._waiting = False  # always written before the tick is sent, then by the tick alone
        self._lag_s = 0.0
        self._unwatched_s = 0.0  # of the time since the last tick was sent
        self._told = False
        self._blocked = asyncio.Event()
        self._holder: asyncio.Task[Any] | None = None  # whose step was met by each look since `_held_since`
        self._held_since = 0.0

    # From any thread

    @property
    def lag_s(self) -> float:
        """How long the present tick has waited; when it does not wait, how long the last one did."""
        sent_at = self._sent_at
        return self._clock.monotonic() - sent_at if self._waiting else self._lag_s

    @property
    def blocked_s(self) -> float:
        """For how long the loop has been blocked under our eyes; 0 while it is not."""
        watched_s = self.lag_s - self._unwatched_s
        return watched_s if self._waiting and watched_s >= BLOCKED_S else 0.0

    # In the control thread

    async def run(self) -> None:
        """Watch until cancelled, or until the loop is closed."""
        looked_at = self._clock.monotonic()
        while True:
            if not self._waiting:
                self._look_back()  # before the next tick wipes out what there is to say of the last one
                self._sent_at, self._unwatched_s = self._clock.monotonic(), 0.0
                self._waiting = True
                try:
                    self._loop.call_soon_threadsafe(self._tick)
                except RuntimeError:
                    return
            await asyncio.sleep(TICK_S)
            # From look to look, for the interpreter may stand still at any line of this one too.
            before, looked_at = looked_at, self._clock.monotonic()
            late_s = looked_at - before - TICK_S
            if late_s >= TICK_S:
                self._unwatched_s += late_s
            self._look()

    async def until_blocked(self) -> None:
        """Wait until the loop is blocked."""
        await self._blocked.wait()

    def culprit(self) -> tuple[Attempt | None, float]:
        """
        The attempt whose code blocks the loop, where that can be told, and for how long this very code does.

        A loop is blocked as well by a hundred handlers that take a second each; none of them does so for long.
        """
        holder, held_s = self._holder, self._clock.monotonic() - self._held_since
        if holder is None or holder is not asyncio.current_task(self._loop):
            return None, 0.0
        return self._attempt_of(holder), min(held_s, self.blocked_s)

    def _look(self) -> None:
        seconds = self.blocked_s
        holder = asyncio.current_task(self._loop) if seconds else None
        if holder is not self._holder:
            self._holder, self._held_since = holder, self._clock.monotonic()
        if seconds and not self._told:
            self._told = True
            self._blocked.set()
            culprit = self._culprit_in_words()
            if self._waiting:  # else it went on while we looked, and what we saw is no culprit
                events.tell(log, events.LOOP_BLOCKED, seconds=round(seconds, 3), **self._late(), **culprit)

    def _look_back(self) -> None:
        """The tick has had its turn, and its figures are still there: say so if it had to wait for long."""
        # A tick that was answered just before the interpreter stood still has no lag, and the watch has.
        seconds = max(self._lag_s, self._unwatched_s)
        if self._told or seconds >= BLOCKED_S:
            self._told = False
            self._blocked.clear()
            events.tell(log, events.LOOP_UNBLOCKED, seconds=round(seconds, 3), **self._late())

    def _late(self) -> dict[str, Any]:
        return {"watch_late_s": round(self._unwatched_s, 3)} if self._unwatched_s else {}

    def _culprit_in_words(self) -> dict[str, Any]:
        """The stack of the loop's thread, and the job whose task runs there, where that can be told."""
        task = asyncio.current_task(self._loop)
        facts = {} if task is None else self._job_of(task)
        frame = sys._current_frames().get(self._thread)
        return facts if frame is None else {**facts, "stack": _in_words(frame)}

    def _job_of(self, task: asyncio.Task[Any]) -> dict[str, Any]:
        attempt = self._attempt_of(task)
        if attempt is not None:
            return attempt.facts
        job = _job_in(task)
        return {} if job is None else {"jid": job.jid, "kind": job.kind, "attempt": job.attempt}

    def _attempt_of(self, task: asyncio.Task[Any]) -> Attempt | None:
        """The running one whose handler's task this is, or made it."""
        job = _job_in(task)
        for attempt in list(self._running().values()):
            if attempt.task is task or (job is not None and attempt.job is job):
                return attempt
        return None

    # In the loop that is watched

    def _tick(self) -> None:
        self._lag_s = self._clock.monotonic() - self._sent_at
        self._waiting = False


def _job_in(task: asyncio.Task[Any]) -> context.CurrentJob | None:
    """A task that a handler made is recognized by its context, which 3.11 does not show."""
    if sys.version_info >= (3, 12):
        return context.job_in(task.get_context())
    return None


def _in_words(frame: FrameType) -> str:
    innermost = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=STACK_FRAMES)
    innermost.reverse()  # as tracebacks are read: the culprit last
    return "".join(innermost.format())[-STACK_LETTERS:].strip()
