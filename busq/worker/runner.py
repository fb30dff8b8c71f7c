"""
Attempts from start to outcome: the worker's middle, in the handlers' loop.

    begin     one attempt for each started job, in the executor of its handler
    reported  the handler ended; what is to be recorded goes to the outbox, the slot is free
    settled   the store's answer

`running` holds an attempt exactly while its slot is taken; the beat renews what is in there. An attempt that was
given up while its code runs on moves to `suspects` until its executor reports that the code has stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from busq import events, tasks
from busq.callables import Pool
from busq.config import Settings
from busq.errors import BadArguments, BadPayload
from busq.hooks import Hook
from busq.protocol.cancel import Cause, TripFacts
from busq.protocol.states import State, Verb, is_terminal
from busq.store.forms import Settlement
from busq.store.outage import Outage
from busq.store.store import Store
from busq.store.streams import Entry
from busq.worker import outcome as outcomes
from busq.worker.attempt import Attempt
from busq.worker.context import CurrentJob
from busq.worker.executors.base import Executor
from busq.worker.hands import WorkerHands
from busq.worker.ladder import Ladder
from busq.worker.meter import UNMETERED, Meter
from busq.worker.outbox import Outbox
from busq.worker.outcome import Outcome, outcome_of
from busq.worker.reception import Started
from busq.worker.slots import Slots
from busq.worker.suspects import Suspects

WATCH_AFTER_S = 0.005  # a job that runs longer is subscribed to its own channel
WATCH_WAITING_AFTER_S = 0.05  # one that waits for a child process: mostly it is over by then, or handed back
RAN_ON = "it ran past its timeout and did not stop"

log = events.logger("busq.worker")


class Watcher(Protocol):
    """Who listens for the cancels of long-running jobs; called from the handlers' loop."""

    def watch(self, attempts: Iterable[Attempt]) -> None: ...
    def unwatch(self, attempts: Iterable[Attempt]) -> None: ...


class Runner:
    """Everything that happens to attempts; also the `Fate` of the ladder."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        slots: Slots,
        loop: asyncio.AbstractEventLoop,
        *,
        too_many_suspects: Callable[[int], None],
        outage: Outage,
        meter: Meter = UNMETERED,
    ) -> None:
        self.running: dict[str, Attempt] = {}
        self.outbox = Outbox(store, self._settled, outage)
        self.suspects = Suspects(loop, store, self.outbox, self._errand, too_many_suspects)
        self.ladder = Ladder(
            loop, lambda attempt: self._executors[attempt.handler.pool], self, force_s=settings.force_s
        )
        self.watcher: Watcher | None = None
        self.displaced: Callable[[], None] = _nothing
        """Called when what is listed as ours may not be so: an attempt has ended whose job is no longer its own."""
        self._loop = loop
        self._settings = settings
        self._store = store
        self._slots = slots
        self._meter = meter
        self.hands = WorkerHands(
            loop, store, self.outbox, self.ladder, self._errand, result_bytes=settings.result_bytes
        )
        self._executors: dict[Pool, Executor] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._closed = False
        self._nothing_left = asyncio.Event()
        self._nothing_left.set()

    def knows(self, entry: Entry) -> bool:
        """Whether code behind this entry runs here, given up or not, or has ended and the store was not told yet."""
        return (
            entry.jid in self.running
            or self.outbox.holds(entry.jid)
            or any(each.entry == entry.id and each.jid == entry.jid for each in self.suspects)
        )

    async def reconcile(self) -> None:
        """Attempts listed as our suspects that never ran here are none. Raise `BusUnavailable`."""
        await self.suspects.reconcile(self._runs)

    def _runs(self, jid: str, number: int) -> bool:
        running = self.running.get(jid)
        return (
            (running is not None and running.number == number)
            or self.outbox.holds(jid)
            or any(each.jid == jid and each.number == number for each in self.suspects)
        )

    def use(self, executors: Mapping[Pool, Executor]) -> None:
        """The executors, one for each pool; they report to `reported`."""
        self._executors = dict(executors)

    # From a start to an attempt --------------------------------------------------------------------------

    def begin(self, started: list[Started]) -> None:
        """Run what one script call has started. The slots are taken already."""
        self._nothing_left.clear()
        now = self._loop.time()
        attempts = [
            Attempt(handler, entry, delivery.token, answer, terms, now)
            for entry, handler, delivery, answer, terms in started
        ]
        self._meter.started(attempts)
        for attempt in attempts:
            self._begin(attempt)
        self._loop.call_later(WATCH_AFTER_S, self._watch_those_left, attempts)

    def _begin(self, attempt: Attempt) -> None:
        attempt.job = CurrentJob(attempt, self.hands)
        before = self.running.get(attempt.jid)
        self.running[attempt.jid] = attempt
        if before is not None:  # it was taken from us and came back to us before any beat could say so
            self.superseded(before, State.RUNNING)
        if events.heard(events.JOB_STARTED):
            events.tell(log, events.JOB_STARTED, **attempt.facts)
        pool = attempt.handler.pool
        if attempt.timeout_s is not None and pool is not Pool.PROCESS:
            self.begun(attempt)
        try:
            self._executors[pool].begin(attempt, attempt.answer.payload)
        except (BadPayload, BadArguments) as error:
            self._end(attempt, outcomes.unfit(error))

    def begun(self, attempt: Attempt) -> None:
        """Its handler begins, and with it the time that it may take; in the process pool the executor says when."""
        if attempt.timeout_s is None:
            return
        if attempt.timeout_timer is not None:
            attempt.timeout_timer.cancel()  # the child that it was given to before has ended without beginning it
        attempt.times_out_at = self._loop.time() + attempt.timeout_s
        attempt.timeout_timer = self._loop.call_later(attempt.timeout_s, self._timed_out, attempt)

    # From reports to outcomes ----------------------------------------------------------------------------

    def reported(self, attempt: Attempt, value: Any, error: BaseException | None) -> None:
        """The code of this attempt has stopped. Called once for each, by its executor."""
        if attempt.abandoned:
            self.suspects.ended(attempt)
            return
        settings = self._settings
        self._end(
            attempt,
            outcome_of(
                attempt, value, error, result_bytes=settings.result_bytes, traceback_bytes=settings.traceback_bytes
            ),
        )

    def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        if attempt.tripped_at is not None:
            self._note_observed(attempt)
            attempt.notes.append(("stopped", self._loop.time(), outcome.word))
        self._free(attempt)
        self._settle(attempt, outcome)

    def _settlement(self, attempt: Attempt, outcome: Outcome, now: float) -> Settlement:
        return Settlement(
            jid=attempt.jid,
            entry=attempt.entry,
            token=attempt.token_id,
            attempt=attempt.number,
            outcome=outcome.word,
            observed=_is_cancel(attempt) and attempt.token.observed,
            stopped=not attempt.abandoned,
            gone=attempt.killed,
            keep=attempt.handler.options.late_success == "keep",
            result=outcome.result,
            error=outcome.error_bytes,
            cause=outcome.cause,
            delay_ms=outcome.delay_ms,
            hook=outcome.in_words if isinstance(attempt.handler, Hook) else "",
            finalizer=attempt.handler.finalizer is not None and outcome.word == "succeeded",
            notes=attempt.take_notes(now),
        )

    def _settle(self, attempt: Attempt, outcome: Outcome) -> None:
        self.outbox.settle(attempt, outcome.verb, self._settlement(attempt, outcome, self._loop.time()))
        hook, told = isinstance(attempt.handler, Hook), attempt.token.facts
        unasked = told is None or (hook and told.cause is Cause.TIMEOUT)
        if outcome.error is not None and outcome.verb is not Verb.RELEASE and unasked:
            facts: dict[str, Any] = {"error": outcome.error.type, "cause": outcome.cause}
            if outcome.cause == "error":  # the other messages quote the payload, and payloads stay out of logs
                facts["message"] = outcome.error.message
            events.tell(log, events.HOOK_FAILED if hook else events.JOB_FAILED, **attempt.facts, **facts)

    def _free(self, attempt: Attempt) -> None:
        attempt.over = True
        self._meter.stopped(attempt, self._loop.time() - attempt.started_at)
        attempt.drop_timers()
        if self.running.get(attempt.jid) is attempt:
            del self.running[attempt.jid]
        self._slots.give_back(attempt.handler)
        if attempt.watched and attempt.jid not in self.running and self.watcher is not None:
            self.watcher.unwatch([attempt])
        if not self.running:
            self._nothing_left.set()

    def _settled(self, attempt: Attempt, word: str, state: str) -> None:
        self._meter.settled(attempt, state if word == "settled" else "stale", self._loop.time())
        if attempt.abandoned and attempt not in self.suspects:  # its code stopped before it was listed
            self.suspects.clear(attempt)
        if word == "settled":
            event = _SETTLED.get(state, events.JOB_SUCCEEDED)
            if event is not None and events.heard(event):
                events.tell(log, event, **attempt.facts)
            return
        # Normal when the watchdog finalized a cancel meanwhile; anything else deserves a look.
        normal = attempt.token.tripped
        events.tell(
            log,
            events.JOB_STALE,
            level=logging.INFO if normal else logging.WARNING,
            **attempt.facts,
            answer=word,
            state=state,
        )
        if word == "missing" or state in (State.QUEUED, State.RUNNING):
            # Perhaps the server forgot that we had started it: then its entry stands under our name, to be found.
            self.displaced()
        if not attempt.abandoned:  # whoever ended the job may have listed this attempt, and its code has stopped
            self.suspects.clear(attempt)

    def hand_back_all(self) -> int:
        """Give up every attempt that still runs and hand its job back; its code ends with this process."""
        left = self._newest_first()
        for attempt in left:
            self._abandon(attempt, "the worker is stopping")
            self._settle(attempt, _HANDED_BACK)
        return len(left)

    def hand_backs(self) -> list[tuple[Attempt, Settlement]]:
        """
        What `hand_back_all` would tell, for whoever stands in for a loop that is blocked.

        Called in the control thread, and this process is about to end. Child processes are ended here and now.
        """
        self._closed = True  # nothing more is begun in the loop from here, which is another thread
        left = self._newest_first()
        for attempt in left:
            attempt.abandoned = True
            self._executors[attempt.handler.pool].kill(attempt)
        return [(attempt, self._settlement(attempt, _HANDED_BACK, self._loop.time())) for attempt in left]

    def timed_out_settlement(self, attempt: Attempt, now: float) -> Settlement:
        """
        What `give_up` would tell of an attempt past its timeout, for whoever stands in for a loop that is blocked.

        Called in the control thread; the loop hears of it by `given_up_outside`. `now`: a loop's own clock may stand
        still with it.
        """
        if attempt.tripped_at is None:
            attempt.notes.append(("tripped", attempt.times_out_at or now, "timeout"))
        self._note_observed(attempt)
        return msgspec.structs.replace(self._settlement(attempt, outcomes.abandoned(attempt), now), stopped=False)

    def _newest_first(self) -> list[Attempt]:
        """So that who waits for a child process is taken back first, and is given no other when that one is ended."""
        return list(reversed(self.running.values()))

    async def all_ended(self) -> None:
        """Wait until no attempt is running (suspects do not count)."""
        await self._nothing_left.wait()

    # Cancels ---------------------------------------------------------------------------------------------

    def trip_all(self, facts: TripFacts) -> None:
        for attempt in list(self.running.values()):
            self.ladder.trip(attempt, facts, heard_by="worker")

    def superseded(self, attempt: Attempt, state: str) -> None:
        """The store says that this attempt no longer owns its job."""
        if attempt.over:
            return
        told = attempt.token.facts
        if told is not None and told.cause is Cause.LEASE_LOST:
            return  # it is on its way out already
        if told is not None and state in _STATES and is_terminal(State(state)):
            self._abandon(attempt, f"the job was finalized as {state} elsewhere")
            return
        events.tell(log, events.LEASE_LOST, **attempt.facts, state=state)
        facts = TripFacts(cause=Cause.LEASE_LOST, reason="another attempt owns the job", grace_s=attempt.grace_s)
        self.ladder.trip(attempt, facts, heard_by="beat")

    def _timed_out(self, attempt: Attempt) -> None:
        if attempt.waits:
            return  # for another child than the one that should have begun it when this clock was set
        self.ladder.trip(attempt, attempt.timeout_facts, heard_by="timeout")

    def given_up_outside(self, attempt: Attempt) -> None:
        """Whoever stood in for this loop has settled this attempt as timed out and listed it as a suspect."""
        if not attempt.over:
            self._timed_out(attempt)  # its code goes on, and has not been interrupted yet
            self._abandon(attempt, RAN_ON)
        elif not attempt.abandoned:  # it stopped while the store was told
            self.suspects.clear(attempt)

    def _note_observed(self, attempt: Attempt) -> None:
        at, facts = attempt.token.observed_at, attempt.token.facts
        if at is not None and attempt.observed_noted is not facts:
            attempt.observed_noted = facts
            attempt.notes.append(("observed", at, ""))

    def send_notes(self, attempt: Attempt) -> None:
        self._note_observed(attempt)
        for note in attempt.take_notes(self._loop.time()):
            self.outbox.line(attempt, note)

    def give_up(self, attempt: Attempt) -> None:
        """Force has done all it can and the code runs on."""
        if attempt.over:
            return
        facts = attempt.token.facts
        if facts is not None and facts.cause is Cause.TIMEOUT:
            self._abandon(attempt, RAN_ON)
            self._settle(attempt, outcomes.abandoned(attempt))
        else:
            self._abandon(attempt, "it was asked to stop and did not")
            self._errand(self._finalize_ourselves(attempt))

    async def _finalize_ourselves(self, attempt: Attempt) -> None:
        """No watchdog came. The script is the watchdog's, so nothing is ended before its deadline."""
        await self.outbox.until_told(
            lambda: self._store.finalize(attempt.shard, attempt.queue, [(attempt.jid, False)]), "finalize"
        )
        if attempt not in self.suspects:  # its code stopped before it was listed
            self.suspects.clear(attempt)

    def _abandon(self, attempt: Attempt, why: str) -> None:
        attempt.abandoned, attempt.abandoned_at = True, self._loop.time()
        self._free(attempt)
        self.suspects.add(attempt, why)
        self._executors[attempt.handler.pool].kill(attempt)  # nothing that it does counts any more

    async def close(self) -> None:
        """Nothing more is told to Redis: code that was given up may still end, and nobody will be there to say so."""
        self._closed = True
        await tasks.end(*self._errands)

    def _errand(self, errand: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            errand.close()
            return
        task = self._loop.create_task(errand)
        self._errands.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._errands.discard)

    def _watch_those_left(self, attempts: list[Attempt]) -> None:
        left = [attempt for attempt in attempts if not attempt.over and not attempt.watched]
        now = self._loop.time()
        at_doors = [attempt for attempt in left if attempt.waits and now - attempt.started_at < WATCH_WAITING_AFTER_S]
        if at_doors:
            self._loop.call_later(WATCH_AFTER_S, self._watch_those_left, at_doors)
            left = [attempt for attempt in left if attempt not in at_doors]
        for attempt in left:
            attempt.watched = True
        if left and self.watcher is not None:
            self.watcher.watch(left)

    def run_callbacks(self, attempt: Attempt) -> None:
        facts = attempt.token.facts
        if facts is None:
            return
        for callback in attempt.token.take_callbacks():
            self.hands.run_callback(attempt, callback, facts)


def _nothing() -> None:
    """Nobody has asked to be told."""


def _is_cancel(attempt: Attempt) -> bool:
    """Whether its handler was told that the job is cancelled; a cancel that nobody here heard of may still stand."""
    facts = attempt.token.facts
    return facts is not None and facts.cause.cancels


_HANDED_BACK = Outcome(Verb.RELEASE, "interrupted", cause=str(Cause.SHUTDOWN))
_STATES = frozenset(State)
_SETTLED = {
    "succeeded": events.JOB_SUCCEEDED,
    "waiting": events.JOB_WAITING,  # for its children, or for its finalizer
    "cancelling": events.JOB_CANCELLING,  # its handler has stopped, its children have not
    "failed": None,  # told when it happened, with its error
    "scheduled": events.JOB_RETRIED,
    "cancelled": events.JOB_CANCELLED,
    "queued": events.JOB_HANDED_BACK,
}
