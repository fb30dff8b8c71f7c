"""
`def` handlers, in child processes that are kept.

Children are made when first needed, as many as there are slots, one job at a time in each. A cancel does not end a
child: its handler hears of it while it runs, and the child takes the next job. One that ignores it is ended together
with its process group, SIGTERM first and SIGKILL when the force time is over, and the next job that needs it gets a
new child. A child that ends by itself fails its job, and nothing else.

Short jobs may be started ahead (`pace.py`) and then wait at the door of a child, never behind a long one. Should one
before them turn out to be long, they go to an idle child, or are handed back. A job that waits is asked to stop, forced
or killed by taking it back: nothing that is done to it touches the child, in which another one runs.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from busq import events
from busq.errors import Cancelled
from busq.worker.attempt import Attempt
from busq.worker.executors.base import Gone, NotBegun, Report, Told, Written
from busq.worker.executors.children import Child
from busq.worker.executors.crew import Crew
from busq.worker.executors.errands import Errands, run_errand
from busq.worker.executors.frames import Done, Failed, FromRun, Hello, Observed, Progress, Unfit
from busq.worker.pace import Pace

LOOK_EVERY_S = 0.01  # whether short jobs are short, while there are some
HELD_UP_S = 0.025  # a child that is busy with one for so long is not given more of them
MOST_AT_DOOR_S = 0.05
DEAF_S = 1.0  # a child that has not begun within this time what it was given while idle begins nothing more

log = events.logger("busq.worker")

Begun = Callable[[Attempt], None]
"""Called when the handler of an attempt begins, which may be some time after the attempt did."""


class ProcessExecutor:
    """
    `hello` is what every child is told first; see `hello_for`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, report: Report, begun: Begun, errands: Errands, hello: Hello,
        environ: Mapping[str, str], pace: Pace, *, slots: int,
    ) -> None:  # fmt: skip
        self._loop = loop
        self._report = report
        self._begun = begun
        self._errands = errands
        self._idle_most = slots
        self._pace = pace
        self._crew = Crew(loop, self, hello, environ, most=slots)
        self._idle: list[Child] = []
        self._at_work: dict[Attempt, Child] = {}  # also those that wait at a door
        self._waiting: deque[Attempt] = deque()  # for a child that starts
        self._unsent: set[Child] = set()
        self._look_timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def pids(self) -> list[int]:
        """Of all children that have not been collected."""
        return [child.pid for child in self._crew.children]

    # The contract ------------------------------------------------------------------------------------------

    def begin(self, attempt: Attempt, payload: bytes) -> None:
        # The child checks the arguments: read here, they would have to be written once more.
        attempt.waits = True
        self._place(attempt)

    def ask_to_stop(self, attempt: Attempt) -> None:
        facts = attempt.token.facts
        if facts is None:
            return
        if self._withdraw(attempt):
            attempt.token.observe()
            self._report(attempt, None, Cancelled(facts.cause, facts.reason))
        elif attempt in self._at_work:
            self._at_work[attempt].trip(attempt, facts)

    def tell_anew(self, attempt: Attempt) -> None:
        facts, child = attempt.token.facts, self._at_work.get(attempt)
        if facts is not None and child is not None:
            child.trip(attempt, facts)

    def force(self, attempt: Attempt) -> bool:
        self._signal(attempt, signal.SIGTERM)
        return False

    def kill(self, attempt: Attempt) -> bool:
        return self._signal(attempt, signal.SIGKILL)

    async def close(self) -> None:
        """Idle children leave at once; whatever else is there goes with this process at the latest."""
        self._closed = True
        if self._look_timer is not None:
            self._look_timer.cancel()
        await self._crew.close()

    def retire_idle(self) -> None:
        """No new job will come: idle children leave now, the others when their job has ended."""
        self._idle_most = 0
        while self._idle:
            self._idle.pop().leave()

    # Who gets which job ------------------------------------------------------------------------------------

    def _place(self, attempt: Attempt) -> None:
        """Give it to the child that will be free first, or let it wait for one that is yet to be started."""
        kind = attempt.handler.kind
        if self._idle:
            fit = [self._idle.pop()]
        else:  # nobody overtakes those that wait
            fit = [] if self._waiting else [child for child in self._crew.children if self._fits(child, kind)]
        if fit:
            self._give(min(fit, key=lambda child: len(child.given)), attempt)
        else:
            self._waiting.append(attempt)
            self._look_soon()
        if self._waiting or (attempt.waits and len(self._crew.children) < self._crew.most):
            self._crew.start_enough()

    def _fits(self, child: Child, kind: str) -> bool:
        """Whether a job of this kind may wait at this child's door: nothing but short jobs may be before it."""
        if not child.ready or child.doomed:
            return False
        first, last = child.attempt, child.newest
        if first is None or last is None:
            return True
        ahead = self._pace.ahead
        if child.held_up or not ahead(first.handler.kind) or not ahead(last.handler.kind):
            return False
        most = ahead(kind)
        return not most or len(child.given) <= most  # a longer one waits for however many there are

    def _give(self, child: Child, attempt: Attempt) -> None:
        self._at_work[attempt] = child
        child.give(attempt, attempt.answer.payload)
        if len(child.given) == 1:
            self._first_begins(child)
        if self._look_timer is None and self._pace.ahead(attempt.handler.kind):
            self._look_soon()
        if not self._unsent:  # what is begun in the same turn of the loop travels together
            self._loop.call_soon(self._send)
        self._unsent.add(child)

    def _send(self) -> None:
        for child in self._unsent:
            child.flush()
        self._unsent.clear()

    def _next(self, child: Child) -> None:
        """This child is free for its next job: one that waits at its door, or elsewhere."""
        if child.held_up:
            child.held_up = False
            self._count_children()
        if child.given:
            self._first_begins(child)
        while self._waiting and self._fits(child, self._waiting[0].handler.kind):
            self._give(child, self._waiting.popleft())
        if not child.given:
            self._free(child)

    def _first_begins(self, child: Child) -> None:
        attempt = child.attempt
        child.first_since = self._loop.time()
        if attempt is not None and attempt.waits:
            attempt.waits = False
            if attempt.timeout_s is not None:
                self._begun(attempt)

    def _free(self, child: Child) -> None:
        """This child has nothing to do."""
        if child.doomed:
            child.signal(signal.SIGKILL)  # it was told to end, and its handler was quicker
        elif len(self._idle) < self._idle_most:
            self._idle.append(child)
        else:
            child.leave()

    # Those that wait ---------------------------------------------------------------------------------------

    def _look_soon(self) -> None:
        if self._look_timer is None and not self._closed:
            self._look_timer = self._loop.call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        """Nobody waits for long: not behind a job that turned out to be long, and not for a child that cannot come."""
        self._look_timer = None
        now = self._loop.time()
        for child in list(self._crew.children):
            if child.given and now - child.first_since >= LOOK_EVERY_S:
                self._takes_long(child, now)
        to_come = self._crew.most - len(self._crew.fit)
        while len(self._waiting) > max(0, to_come) and now - self._waiting[-1].started_at > MOST_AT_DOOR_S:
            self._report(self._waiting.pop(), None, NotBegun())
        if self._waiting or any(len(child.given) > child.held_up for child in self._crew.children):
            self._look_soon()

    def _takes_long(self, child: Child, now: float) -> None:
        """Its first job is not as short as it should be: find another place for those behind it."""
        if not child.held_up and now - child.first_since >= HELD_UP_S:
            child.held_up = True
            self._count_children()
        if len(child.given) == 1:
            return
        again = {}
        for run, attempt in child.take_back().items():
            if self._idle:
                self._give(self._idle.pop(), attempt)
            elif now - attempt.started_at > MOST_AT_DOOR_S:
                del self._at_work[attempt]
                self._report(attempt, None, NotBegun())
            else:
                again[run] = attempt
        self._let_in_again(child, again)

    def _withdraw(self, attempt: Attempt) -> bool:
        """Take an attempt back that has not begun. False: it has begun, or is not here."""
        child = self._at_work.get(attempt)
        if child is None:
            if attempt not in self._waiting:
                return False
            self._waiting.remove(attempt)
            return True
        taken = child.take_back()
        others = {run: each for run, each in taken.items() if each is not attempt}
        if len(others) == len(taken):
            self._let_in_again(child, others)
            return False
        del self._at_work[attempt]
        if child.attempt is None and self._loop.time() - child.first_since >= DEAF_S:
            child.signal(signal.SIGKILL)  # frozen, or something in there keeps the interpreter's lock
            self._count_children()
            self._place_again(others.values())
        else:
            self._let_in_again(child, others)
        return True

    def _let_in_again(self, child: Child, taken_back: Mapping[int, Attempt]) -> None:
        child.let_in_again(taken_back)
        first = child.attempt
        if first is None or first.waits:
            self._next(child)

    # Signals -----------------------------------------------------------------------------------------------

    def _signal(self, attempt: Attempt, number: int) -> bool:
        """End the child in which this attempt runs, and nobody else's."""
        if self._withdraw(attempt):
            self._report(attempt, None, NotBegun())
            return True
        child = self._at_work.get(attempt)
        if child is None:
            return False
        not_begun = child.take_back()  # and now nothing more begins in there
        if child.newest is not attempt:
            # A later one has begun, so this one has ended: its answer is on its way to us.
            self._let_in_again(child, not_begun)
            return True
        attempt.killed = True  # unless it is heard that the handler ended before
        events.tell(
            log, events.CHILD_SIGNALLED, **attempt.facts, pid=child.pid, started=child.victim.started,
            signal=signal.Signals(number).name,
        )  # fmt: skip
        signalled = child.signal(number)
        self._count_children()
        self._place_again(not_begun.values())
        return signalled

    def _place_again(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            del self._at_work[attempt]
            attempt.waits = True  # again, if it was about to begin: its time has not begun to run after all
            self._place(attempt)

    # What the crew tells and asks (see `Foreman`) --------------------------------------------------------------

    def wanted(self) -> int:
        """How many jobs have no child that is free for them."""
        behind = sum(max(0, len(child.given) - 1) for child in self._crew.children if not child.doomed)
        return len(self._waiting) + behind

    def child_missing(self, why: Exception) -> None:
        """The job that waits longest hears of it; the others get another child."""
        if self._waiting:
            self._report(self._waiting.popleft(), None, why)
        if self._waiting:
            self._crew.start_enough()  # nobody else might: there may be no child whose end would bring us here again

    def child_ready(self, child: Child) -> None:
        self._count_children()
        self._next(child)

    def child_says(self, child: Child, frame: FromRun) -> None:
        if isinstance(frame, Done | Failed | Unfit):
            self._answered(child, frame)
        elif (attempt := child.given.get(frame.run)) is None:
            return  # a thread that an earlier handler left behind
        elif isinstance(frame, Progress):
            attempt.progress = (frame.fraction, frame.words)
        elif isinstance(frame, Observed):
            attempt.token.observe(frame.cause)
        else:
            run_errand(self._errands, child, attempt, frame)

    def _answered(self, child: Child, frame: Done | Failed | Unfit) -> None:
        attempt = child.given.pop(frame.run, None)
        if attempt is None:
            return  # nothing that we gave it
        del self._at_work[attempt]
        self._pace.heard(attempt.handler.kind, frame.took_us / 1e6)
        if frame.observed is not None:
            attempt.token.observe(frame.observed)
        attempt.killed = False
        self._next(child)
        self._report(attempt, *_meaning(frame))

    def child_ended(self, child: Child) -> None:
        self._count_children()
        if child in self._idle:
            self._idle.remove(child)
        for attempt in child.given.values():  # the one that ran, if any: what had not begun was taken back
            events.tell(log, events.CHILD_DIED, **attempt.facts, pid=child.pid, how=child.how_it_ended)
            del self._at_work[attempt]
            self._report(attempt, None, Gone(f"the child process that ran the handler {child.how_it_ended}"))
        self._place_again(child.not_begun)
        if self._waiting:
            self._crew.start_enough()

    def _has_short(self, child: Child) -> bool:
        """Whether its first job is of a short kind, whatever it does now; the others do not count among those."""
        return child.attempt is not None and self._pace.ahead(child.attempt.handler.kind) > 0

    def _count_children(self) -> None:
        fit = self._crew.fit
        self._pace.children = len(fit)
        self._pace.held_up = sum(child.held_up and self._has_short(child) for child in fit)


def _meaning(frame: Done | Failed | Unfit) -> tuple[Any, BaseException | None]:
    """What an executor reports: a value, or an error."""
    if isinstance(frame, Done):
        return (Written(frame.result), None) if frame.result else (None, None)
    if isinstance(frame, Unfit):
        return Written(unfit=frame.error, cause=frame.cause), None
    return None, Told(frame.error, cancellation=frame.cancellation)
