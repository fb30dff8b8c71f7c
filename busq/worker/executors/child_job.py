"""
`current_job()` in a child process: the same `CurrentJob`, with hands that reach the worker through frames.

`ChildAttempt` is as much of an attempt as a handler can see. It ends with its handler: what threads that the handler
left behind say about it later is not sent.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from busq import events
from busq.errors import Cancelled, UsageError
from busq.handlers import Handler
from busq.protocol.cancel import Cause, TripFacts
from busq.store.forms import NewJob
from busq.worker.context import Shield
from busq.worker.executors.frames import Frame, Observed, Progress, Run, Save, Spawn
from busq.worker.token import CancelToken

PROGRESS_EVERY_S = 0.1  # the newest word travels with the worker's beat, so more would be said to nobody

log = events.logger("busq.worker")


class ChildToken(CancelToken):
    """Says when the handler learns of its trip; the worker must know it of a handler that it kills later, too."""

    __slots__ = ("_tell",)

    def __init__(self, tell: Callable[[Cause], None]) -> None:
        super().__init__()
        self._tell = tell

    def observe(self, cause: Cause | None = None) -> TripFacts | None:
        known = self.observed_cause
        facts = super().observe(cause)
        if facts is not None and facts.cause is not known:
            self._tell(facts.cause)
        return facts


class ChildAttempt:
    def __init__(self, run: Run, handler: Handler, send: Callable[[Frame], None]) -> None:
        self.run = run.run
        self.jid = run.jid
        self.number = run.attempt
        self.handler = handler
        self.saved = run.saved
        self.token: CancelToken = ChildToken(self._tell_observed)
        self.over = False
        self._send = send
        self._shields: dict[Shield, float] = {}  # those that hold a cancel off, and until when
        self._told_at = float("-inf")
        self._newest: tuple[str, str] | None = None
        self._later: threading.Timer | None = None

    def _tell_observed(self, cause: Cause) -> None:
        if not self.over:
            self._send(Observed(self.run, cause))

    # Shields

    @property
    def shields(self) -> int:
        """How many hold a cancel off: those that are open and whose limit is not over."""
        if not self._shields:
            return 0
        now = time.monotonic()
        return sum(now < until for until in self._shields.values())

    def open_shield(self, shield: Shield) -> None:
        limit_s = float("inf") if shield.limit_s is None else shield.limit_s
        self._shields[shield] = time.monotonic() + limit_s

    def close_shield(self, shield: Shield) -> None:
        self._shields.pop(shield, None)

    # Progress

    @property
    def progress(self) -> tuple[str, str] | None:
        return self._newest

    @progress.setter
    def progress(self, told: tuple[str, str]) -> None:
        self._newest = told
        if self._later is not None:
            return  # it will take the newest
        wait = self._told_at + PROGRESS_EVERY_S - time.monotonic()
        if wait <= 0:
            self._tell()
        else:
            self._later = threading.Timer(wait, self._tell)
            self._later.daemon = True
            self._later.start()

    def _tell(self) -> None:
        self._later, self._told_at = None, time.monotonic()
        told = self._newest
        if told is not None and not self.over:
            self._send(Progress(self.run, *told))

    def end(self) -> None:
        """The handler has ended."""
        self.over = True
        if self._later is not None:
            self._later.cancel()


class ChildHands:
    """The `Hands` of every `CurrentJob` of one child."""

    loop: asyncio.AbstractEventLoop  # there is none: handlers in a child are plain functions

    def __init__(self, send: Callable[[Frame], None], *, result_bytes: int) -> None:
        self.result_bytes = result_bytes
        self._send = send
        self._numbers = itertools.count(1)
        self._kept: dict[int, Future[None]] = {}
        self._told: dict[int, Future[tuple[str, str]]] = {}

    def save(self, attempt: ChildAttempt, data: bytes) -> Future[None]:
        if attempt.over:
            raise UsageError(f"job {attempt.jid} was asked to save something after its handler had ended")
        number = next(self._numbers)
        kept = self._kept[number] = Future()
        self._send(Save(attempt.run, number, data))
        return kept

    def saved(self, number: int, lost: str) -> None:
        """The worker says that this one is kept, or why not: another attempt owns the job."""
        kept = self._kept.pop(number, None)
        if kept is None:
            return
        if lost:
            kept.set_exception(Cancelled(Cause.LEASE_LOST, lost))
        else:
            kept.set_result(None)

    def spawn(self, attempt: ChildAttempt, job: NewJob) -> Future[tuple[str, str]]:
        if attempt.over:
            raise UsageError(f"job {attempt.jid} was asked for a child after its handler had ended")
        number = next(self._numbers)
        told = self._told[number] = Future()
        self._send(Spawn(attempt.run, number, job))
        return told

    def born(self, number: int, word: str, detail: str) -> None:
        """The worker says what became of a child that was asked for."""
        told = self._told.pop(number, None)
        if told is not None:
            told.set_result((word, detail))

    def shield_opened(self, attempt: ChildAttempt, shield: Shield) -> None:
        attempt.open_shield(shield)

    def shield_closed(self, attempt: ChildAttempt, shield: Shield) -> None:
        attempt.close_shield(shield)

    def run_callback(self, attempt: ChildAttempt, callback: Callable[[TripFacts], object], facts: TripFacts) -> None:
        def call() -> None:
            try:
                callback(facts)
            except BaseException as error:  # a SystemExit too: it is no business of the job's
                whose: dict[str, Any] = {"jid": attempt.jid, "kind": attempt.handler.kind, "attempt": attempt.number}
                events.tell(log, events.TRIP_CALLBACK_FAILED, **whose, error=repr(error))

        threading.Thread(target=call, name="busq-on-trip", daemon=True).start()
