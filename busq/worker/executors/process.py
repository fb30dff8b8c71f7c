"""
`def` handlers, in child processes that are kept.

Children are made when first needed, as many as there are slots, one job at a time in each. A cancel does not end a
child: its handler hears of it while it runs, and the child takes the next job. One that ignores it is ended together
with its process group, SIGTERM first and SIGKILL when the force time is over, and the next job that needs it gets a
new child. A child that ends by itself fails its job, and nothing else.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any
from urllib.parse import unquote, urlsplit

from busq import events
from busq.config import Settings
from busq.errors import Cancelled
from busq.handlers import Handler
from busq.worker.attempt import Attempt
from busq.worker.executors.addresses import MAIN, address_of, main_program
from busq.worker.executors.base import Gone, Report, Told, Written
from busq.worker.executors.children import Child
from busq.worker.executors.frames import Done, Failed, FromChild, Hello, Progress, Ready, Refused, Save, Unfit

START_WITHIN_S = 60.0  # a child has to find its handlers within this time
START_AGAIN_S = (0.5, 10.0)  # after a child that could not start: the first wait and the longest
ROOM_BYTES = 64 * 1024  # in a frame, beside what a handler may give or take

SECRET_NAMES = frozenset({"BUSQ_URL", "REDIS_URL"})

log = events.logger("busq.worker")

Keep = Callable[[Attempt, bytes], Future[None]]
"""What `job.save` does in this process."""


class ProcessExecutor:
    """
    `hello` is what every child is told first; see `hello_for`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, report: Report, keep: Keep, hello: Hello,
        environ: Mapping[str, str], *, slots: int,
    ) -> None:  # fmt: skip
        self._loop = loop
        self._report = report
        self._keep = keep
        self._slots = slots
        self._hello = hello
        self._environ = environ
        self._children: set[Child] = set()  # every one that has not been collected
        self._idle: list[Child] = []
        self._at_work: dict[Attempt, Child] = {}
        self._waiting: deque[tuple[Attempt, bytes]] = deque()  # for a child that starts
        self._start_wait_s = 0.0
        self._start_timer: asyncio.TimerHandle | None = None
        self._nothing_left = asyncio.Event()
        self._nothing_left.set()
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Of all children that have not been collected."""
        return [child.pid for child in self._children]

    # The contract ------------------------------------------------------------------------------------------

    def begin(self, attempt: Attempt, payload: bytes) -> None:
        # The child checks the arguments: read here, they would have to be written once more.
        if self._idle:
            self._give(self._idle.pop(), attempt, payload)
        else:
            self._waiting.append((attempt, payload))
            self._start_enough()

    def ask_to_stop(self, attempt: Attempt) -> None:
        facts = attempt.token.facts
        child = self._at_work.get(attempt)
        if facts is None:
            return
        if child is not None:
            child.trip(facts)
        elif self._stop_waiting(attempt):
            attempt.token.observe()
            self._report(attempt, None, Cancelled(facts.cause, facts.reason))

    def tell_anew(self, attempt: Attempt) -> None:
        facts, child = attempt.token.facts, self._at_work.get(attempt)
        if facts is not None and child is not None:
            child.trip(facts)

    def force(self, attempt: Attempt) -> bool:
        self._signal(attempt, signal.SIGTERM)
        return False

    def kill(self, attempt: Attempt) -> bool:
        return self._signal(attempt, signal.SIGKILL)

    async def close(self) -> None:
        """Idle children leave at once; whatever else is there goes with this process at the latest."""
        self._closed = True
        if self._start_timer is not None:
            self._start_timer.cancel()
        for child in self._children:
            if child.attempt is None and child.ready:
                child.leave()
            else:
                child.signal(signal.SIGKILL)
        await self._nothing_left.wait()

    def retire_idle(self) -> None:
        """No new job will come: idle children leave now, the others when their job has ended."""
        self._slots = 0
        while self._idle:
            self._idle.pop().leave()

    # Children ----------------------------------------------------------------------------------------------

    def _give(self, child: Child, attempt: Attempt, payload: bytes) -> None:
        self._at_work[attempt] = child
        child.run(attempt, payload)

    def _start_enough(self) -> None:
        """Start as many children as wait for one, up to the slots."""
        if self._start_timer is not None or self._closed:
            return
        if self._start_wait_s:
            self._start_timer = self._loop.call_later(self._start_wait_s, self._start_now)
        else:
            self._start_now()

    def _start_now(self) -> None:
        self._start_timer = None
        starting = sum(not child.ready and not child.doomed for child in self._children)
        for _ in range(len(self._waiting) - starting):
            try:
                child = Child(self._loop, self._hello, self._environ, self._heard, self._ended)
            except OSError as error:
                self._failed_to_start(f"the child process could not be started: {error}")
                return
            self._children.add(child)
            self._nothing_left.clear()
            self._loop.call_later(START_WITHIN_S, self._too_slow, child)

    def _too_slow(self, child: Child) -> None:
        if not child.ready and child in self._children:
            child.last_words = f"it was not ready within {START_WITHIN_S:g} s"
            child.signal(signal.SIGKILL)

    def _free(self, child: Child) -> None:
        """This child has nothing to do."""
        child.attempt = None
        if child.doomed:
            child.signal(signal.SIGKILL)  # it was told to end, and its handler was quicker
        elif self._waiting:
            self._give(child, *self._waiting.popleft())
        elif len(self._idle) < self._slots:
            self._idle.append(child)
        else:
            child.leave()

    def _stop_waiting(self, attempt: Attempt) -> bool:
        for each in self._waiting:
            if each[0] is attempt:
                self._waiting.remove(each)
                return True
        return False

    def _signal(self, attempt: Attempt, number: int) -> bool:
        child = self._at_work.get(attempt)
        if child is None:
            return False
        attempt.killed = True  # unless it is heard that the handler ended before
        events.tell(
            log, events.CHILD_SIGNALLED, **attempt.facts, pid=child.pid, started=child.victim.started,
            signal=signal.Signals(number).name,
        )  # fmt: skip
        return child.signal(number)

    # What is heard of them -----------------------------------------------------------------------------------

    def _heard(self, child: Child, frame: FromChild) -> None:
        attempt = child.attempt
        if isinstance(frame, Ready):
            child.ready, self._start_wait_s = True, 0.0
            child.release_stderr()
            events.tell(log, events.CHILD_STARTED, pid=child.pid)
            self._free(child)
        elif isinstance(frame, Refused):
            child.last_words = frame.message + (f"\n{frame.traceback}" if frame.traceback else "")
        elif attempt is None or frame.run != child.runs:
            return  # a thread that an earlier handler left behind
        elif isinstance(frame, Progress):
            attempt.progress = (frame.fraction, frame.words)
        elif isinstance(frame, Save):
            number = frame.number
            self._keep(attempt, frame.data).add_done_callback(lambda kept: child.saved(number, _lost(kept)))
        else:
            if frame.observed is not None:
                attempt.token.observe(frame.observed)
            attempt.killed = False
            self._finished(child, attempt, *_meaning(frame))

    def _finished(self, child: Child, attempt: Attempt, value: Any, error: BaseException | None) -> None:
        del self._at_work[attempt]
        self._free(child)
        self._report(attempt, value, error)

    def _ended(self, child: Child) -> None:
        """The process has ended and was collected."""
        self._children.discard(child)
        if child in self._idle:
            self._idle.remove(child)
        if not self._children:
            self._nothing_left.set()
        attempt = child.attempt
        if attempt is not None:
            events.tell(log, events.CHILD_DIED, **attempt.facts, pid=child.pid, how=child.how_it_ended)
            child.attempt = None
            del self._at_work[attempt]
            self._report(attempt, None, Gone(f"the child process that ran the handler {child.how_it_ended}"))
        elif not child.ready and not self._closed:
            words = child.last_words or child.how_it_ended
            self._failed_to_start(
                f"the child process that should run the handler did not start (it has neither BUSQ_URL nor REDIS_URL): "
                f"{words}"
            )
        if self._waiting:
            self._start_enough()

    def _failed_to_start(self, why: str) -> None:
        """The job that waits longest fails with it; and the next child is not started at once."""
        low, high = START_AGAIN_S
        self._start_wait_s = min(high, max(low, self._start_wait_s * 2))
        events.tell(log, events.CHILD_REFUSED, why=why[:1000], next_in_s=self._start_wait_s)
        if self._waiting:
            attempt, _ = self._waiting.popleft()
            self._report(attempt, None, Gone(why))


def _lost(kept: Future[None]) -> str:
    """Why nothing was kept; "" when it was."""
    error = kept.exception()
    return "" if error is None else getattr(error, "reason", "") or str(error)


def _meaning(frame: Done | Failed | Unfit) -> tuple[Any, BaseException | None]:
    """What an executor reports: a value, or an error."""
    if isinstance(frame, Done):
        return (Written(frame.result), None) if frame.result else (None, None)
    if isinstance(frame, Unfit):
        return Written(unfit=frame.error, cause=frame.cause), None
    return None, Told(frame.error, cancellation=frame.cancellation)


def hello_for(settings: Settings, handlers: Iterable[Handler], setup: str) -> Hello:
    """
    What every child is told first. Raise `ConfigError` when a child will not find one of these handlers.

    `setup` (module:function) is called in each child before anything of the application is imported there.
    """
    found = [address_of(handler) for handler in handlers]
    main_name, main_path = main_program() if any(each.module == MAIN for each in found) else ("", "")
    return Hello(
        handlers=found, main_name=main_name, main_path=main_path, setup=setup,
        result_bytes=settings.result_bytes, traceback_bytes=settings.traceback_bytes,
        most_bytes=settings.payload_bytes + 2 * settings.result_bytes + 2 * settings.traceback_bytes + ROOM_BYTES,
    )  # fmt: skip


def without_secrets(environ: Mapping[str, str], url: str | None) -> dict[str, str]:
    """The environment for a child: nothing in it says where Redis is, or with which password one gets in."""
    password = urlsplit(url).password if url else None
    secrets = {each for each in (password, unquote(password or "")) if each}

    def secret(name: str, value: str) -> bool:
        return (
            name in SECRET_NAMES
            or (name.startswith("BUSQ_") and "PASSWORD" in name)
            or any(each in value for each in secrets)
        )

    return {name: value for name, value in environ.items() if not secret(name, value)}
