"""
The children of a process pool: started when there is something for them to do, up to so many; counted until collected.

A child that cannot be started, or that ends before it was ready, is no fault of the jobs that wait. One of them is told
and the next child is started a little later, after a longer wait each time, until one gets ready.

Who gives the children their work hears of them through `Foreman`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from typing import Protocol

from busq import events
from busq.worker.executors.base import Gone, NotBegun
from busq.worker.executors.children import Child
from busq.worker.executors.frames import FromChild, FromRun, Hello, Ready, Refused

START_WITHIN_S = 60.0  # a child has to find its handlers within this time
START_AGAIN_S = (0.5, 10.0)  # after a child that could not start: the first wait and the longest
CLOSE_WITHIN_S = 5.0  # for all children to be gone
WHY_TOLD = 1000  # characters of why a child did not start, in the log

log = events.logger("busq.worker")


class Foreman(Protocol):
    """Who has work for the children. All of it is called in the handlers' loop."""

    def wanted(self) -> int:
        """How many more children would find something to do at once."""
        ...

    def child_ready(self, child: Child) -> None: ...
    def child_says(self, child: Child, frame: FromRun) -> None: ...

    def child_missing(self, why: Exception) -> None:
        """One that was to be started will not come."""
        ...

    def child_ended(self, child: Child) -> None:
        """The process has ended and was collected."""
        ...


class Crew:
    """`hello` is what every child is told first; see `hello_for`. `most`: so many, those that are ending apart."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, foreman: Foreman, hello: Hello, environ: Mapping[str, str], *, most: int
    ) -> None:
        self.children: set[Child] = set()  # every one that has not been collected
        self.most = most
        self._loop = loop
        self._foreman = foreman
        self._hello = hello
        self._environ = environ
        self._wait_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._nobody_left = asyncio.Event()
        self._nobody_left.set()
        self._closed = False

    @property
    def fit(self) -> list[Child]:
        """Those that have found their handlers and take work."""
        return [child for child in self.children if child.ready and not child.doomed]

    # Starting ------------------------------------------------------------------------------------------------

    def start_enough(self) -> None:
        """Start as many children as would find something to do; later, while none can be started."""
        if self._timer is not None or self._closed:
            return
        if self._wait_s:
            self._timer = self._loop.call_later(self._wait_s, self._start_now)
        else:
            self._start_now()

    def _start_now(self) -> None:
        self._timer = None
        able = [child for child in self.children if not child.doomed]
        starting = sum(not child.ready for child in able)
        for _ in range(min(self._foreman.wanted() - starting, self.most - len(able))):
            try:
                child = Child(self._loop, self._hello, self._environ, self._heard, self._ended)
            except OSError as error:
                # No fault of the job's: somebody else, or we a little later, may have a process for it.
                self._not_started(f"the child process could not be started: {error}", NotBegun())
                return
            self.children.add(child)
            self._nobody_left.clear()
            self._loop.call_later(START_WITHIN_S, self._too_slow, child)

    def _too_slow(self, child: Child) -> None:
        if not child.ready and child in self.children:
            child.last_words = f"it was not ready within {START_WITHIN_S:g} s"
            child.signal(signal.SIGKILL)

    def _not_started(self, why: str, told: Exception) -> None:
        first, longest = START_AGAIN_S
        self._wait_s = min(longest, max(first, self._wait_s * 2))
        events.tell(log, events.CHILD_REFUSED, why=why[:WHY_TOLD], next_in_s=self._wait_s)
        self._foreman.child_missing(told)

    # What is heard of them -----------------------------------------------------------------------------------

    def _heard(self, child: Child, frame: FromChild) -> None:
        if isinstance(frame, Ready):
            child.ready, self._wait_s = True, 0.0
            child.release_stderr()
            events.tell(log, events.CHILD_STARTED, pid=child.pid)
            self._foreman.child_ready(child)
        elif isinstance(frame, Refused):
            child.last_words = frame.message + (f"\n{frame.traceback}" if frame.traceback else "")
        else:
            self._foreman.child_says(child, frame)

    def _ended(self, child: Child) -> None:
        self.children.discard(child)
        if not self.children:
            self._nobody_left.set()
        if not child.ready and not self._closed:
            why = (
                "the child process that should run the handler did not start (it has neither BUSQ_URL nor REDIS_URL): "
                f"{child.last_words or child.how_it_ended}"
            )
            self._not_started(why, Gone(why))
        self._foreman.child_ended(child)

    # Ending --------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Idle children leave at once; whatever else is there goes with this process at the latest."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for child in self.children:
            if child.ready and not child.given:
                child.leave()
            else:
                child.signal(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):  # the kernel itself may be stuck with one: it goes when it can
            async with asyncio.timeout(CLOSE_WITHIN_S):
                await self._nobody_left.wait()
