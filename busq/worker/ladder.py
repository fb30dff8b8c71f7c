"""
From the wish to the end: trip the token, wait the grace, use force, give up.

    tripped ──> asked to stop once, later awaits work
       │  grace (less when the deadline is nearer; a shorter one may arrive: hastened)
       v
    forced ──> a coroutine is cancelled again every 50 ms; a process gets SIGTERM; a thread cannot be, unless its
       │       handler asked to have `Cancelled` raised in it, every 50 ms too
       │  force time
       v
    killed ──> a process gets SIGKILL, and that is its end; the others cannot be
       │
       v
    given up: the code runs on. A cancelled job is left to the watchdog, whose deadline this is; only if none comes
    does the worker finalize it itself. A timed-out attempt fails, a lost one is forgotten; each counts as a suspect.

A cancel may come while an attempt is on its way down for another cause (shutdown, timeout): from then on it is that
cancel's descent. The handler is not interrupted once more before force, so that its clean-up is not broken off; and
force comes at the nearer of the two moments.

Belongs to the handlers' loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from busq import events
from busq.protocol.cancel import Cause, TripFacts
from busq.worker.attempt import Attempt
from busq.worker.executors.base import Executor

FORCE_EVERY_S = 0.05
NOTE_AFTER_S = 0.05  # an attempt that stops sooner sends its lines of history with its ending
KILL_PATIENCE_S = 1.0  # from SIGKILL to the end of a process
WATCHDOG_PATIENCE_S = 2.0  # past the deadline: then no watchdog seems to be there

log = events.logger("busq.worker")


class Fate(Protocol):
    """What the ladder cannot decide: sending lines, and what becomes of an attempt whose code runs on."""

    def send_notes(self, attempt: Attempt) -> None: ...
    def give_up(self, attempt: Attempt) -> None: ...
    def run_callbacks(self, attempt: Attempt) -> None: ...


class Ladder:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor_of: Callable[[Attempt], Executor],
        fate: Fate,
        *,
        force_s: float,
    ) -> None:
        self._loop = loop
        self._executor_of = executor_of
        self._fate = fate
        self._force_s = force_s

    def trip(self, attempt: Attempt, facts: TripFacts, *, heard_by: str) -> None:
        """Begin the descent, or shorten it when it has begun. What is over stays over."""
        if attempt.over:
            return
        attempt.token.trip(facts)
        shown = attempt.token.facts or facts  # perhaps that of a cancel, heard in another thread a moment ago
        before = attempt.heeded
        if before is not None and before.cause.rank >= shown.cause.rank:
            self._hasten(attempt, facts)
            return
        attempt.heeded = shown
        self._note(attempt, "tripped", heard_by)
        attempt.tripped_at = self._loop.time()
        events.tell(log, events.JOB_TRIPPED, **attempt.facts, cause=str(shown.cause), heard_by=heard_by)
        attempt.timers.append(self._loop.call_later(NOTE_AFTER_S, self._fate.send_notes, attempt))
        if before is not None:
            self._hasten(attempt, shown)
            self._executor_of(attempt).tell_anew(attempt)
            return
        self._force_in(attempt, min(self._grace_left(shown), self._grace_left(facts)))
        if attempt.shields:
            attempt.shut_out = True
        else:
            self._executor_of(attempt).ask_to_stop(attempt)
        self._fate.run_callbacks(attempt)

    def shield_closed(self, attempt: Attempt) -> None:
        """The cancel that waited outside a shield comes in."""
        if attempt.shut_out and not attempt.over:
            attempt.shut_out = False
            self._executor_of(attempt).ask_to_stop(attempt)

    def _grace_left(self, facts: TripFacts) -> float:
        if not facts.cause.cancels:
            return facts.grace_s
        return max(0.0, min(facts.grace_s, facts.left_s - self._force_s))

    def _hasten(self, attempt: Attempt, facts: TripFacts) -> None:
        timer = attempt.force_timer
        if attempt.forced or timer is None:
            return
        nearer = self._grace_left(facts)
        if self._loop.time() + nearer < timer.when():
            self._force_in(attempt, nearer)

    def _force_in(self, attempt: Attempt, delay_s: float) -> None:
        if attempt.force_timer is not None:
            attempt.force_timer.cancel()
        attempt.force_timer = self._loop.call_later(delay_s, self._force, attempt, None)

    def _force(self, attempt: Attempt, until: float | None) -> None:
        if attempt.over:
            return
        now = self._loop.time()
        again = False
        if until is None:
            attempt.forced = again = True
            until = now + self._force_s
            events.tell(log, events.JOB_FORCED, **attempt.facts)
            self._fate.send_notes(attempt)  # in time: whoever does not stop now may be finalized by the watchdog
        if again or now < until:
            again = self._executor_of(attempt).force(attempt)
        if now < until:
            wait = FORCE_EVERY_S if again else until - now
            attempt.force_timer = self._loop.call_later(wait, self._force, attempt, until)
        elif self._executor_of(attempt).kill(attempt):
            # Its end is reported in a moment, unless the kernel itself is stuck with it.
            attempt.force_timer = self._loop.call_later(KILL_PATIENCE_S, self._exhausted, attempt)
        else:
            self._exhausted(attempt)

    def _exhausted(self, attempt: Attempt) -> None:
        facts = attempt.token.facts
        if facts is None or attempt.tripped_at is None or attempt.over:
            return  # nobody asked it to stop
        if facts.cause is Cause.SHUTDOWN:
            return  # the drain hands back what is left and ends the process
        if not facts.cause.cancels:
            self._fate.give_up(attempt)
            return
        # When the watchdog has finalized the job, its notice or our beat tells us. This timer is for buses without one.
        past_deadline = attempt.tripped_at + facts.left_s + WATCHDOG_PATIENCE_S - self._loop.time()
        attempt.force_timer = self._loop.call_later(max(0.0, past_deadline), self._fate.give_up, attempt)

    def _note(self, attempt: Attempt, name: str, facts: str) -> None:
        attempt.notes.append((name, self._loop.time(), facts))
