"""
What the control thread does in place of a handlers' loop that is blocked.

    a cancel's deadline has passed     the worker is lifeless: only a new process can mend it while this lasts
    ... for 2 s, and no watchdog came  finalize the job as the watchdog would: abandoned
    a timeout has passed               trip the token: a thread, or the code that blocks the loop, may check it
    ... with a coroutine's grace and   the worker is lifeless
      force time
    ... for 2 s                        fail the job as the loop would: timed out, given up while its code runs on
    asked to stop, and the time of     trip the tokens; then hand everything back and leave, for the loop will not
      a whole drain is over
    asked to stop while lifeless       the same, but without the wait in which jobs may end: it is the drain's first
                                       step, and a loop that was given up ends none

A drain spends nothing, with one exception: the job whose own code has blocked the loop since before the stop was
asked for, and for 30 s at least, is not handed back. It stays under our name until a watchdog reclaims it, which counts
as a loss: else such a job would take down one worker after the other, without end.

It touches nothing that the loop could still change: the loop stands still while anything here happens. When it goes
on after all, it hears of the finalized jobs as of any other that was ended elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from busq import events
from busq.callables import Pool
from busq.clock import SystemClock
from busq.config import Settings
from busq.errors import BusUnavailable
from busq.protocol.cancel import Cause, TripFacts
from busq.protocol.states import State, Verb
from busq.store import suspects
from busq.store.forms import Refusal, Settlement
from busq.store.store import Store
from busq.store.streams import Streams
from busq.worker.attempt import Attempt
from busq.worker.ladder import WATCHDOG_PATIENCE_S
from busq.worker.loopwatch import LoopWatch
from busq.worker.runner import Runner

LOOK_S = 0.1
STUCK_S = 1.0  # a loop that is blocked for less may just be slow
HAND_BACK_LIMIT_S = 5.0
POISON_S = 30.0  # a handler whose one step is this long, and longer than a drain, costs its job a loss

log = events.logger("busq.worker")

Leave = Callable[[], object]
"""Ends this process at once; called in the control thread."""

FallSilent = Callable[[], Awaitable[None]]
"""Ends the beat and all that would put us on the roster again."""


class StandIn:
    """Belongs to the control thread, but for `lifeless` and `told_to_stop`."""

    def __init__(
        self,
        settings: Settings,
        runner: Runner,
        watch: LoopWatch,
        loop: asyncio.AbstractEventLoop,
        *,
        name: str,
        queues: Sequence[str],
    ) -> None:
        self.watch = watch
        self.lifeless = ""
        """Why only a new process can mend this one, in words; "" while all is well."""
        self._settings = settings
        self._runner = runner
        self._loop = loop
        self._name = name
        self._queues = list(queues)
        self._clock = SystemClock()
        self._finalized: set[Attempt] = set()  # whose jobs are no longer ours, and the loop does not know it
        self._timed_out: dict[Attempt, Settlement] = {}  # made once: it is sent again until it has arrived
        self._asked = 0  # how many times we were told to stop
        self._told_at = float("inf")  # when we were told so first
        self._drained_at = float("inf")  # when a drain would be over
        self._given_up_at = float("inf")  # since when it is both lifeless and told to stop
        self._leave: Leave | None = None

    def told_to_stop(self, leave: Leave, *, by_wish: bool = False) -> None:
        """
        Leave if the loop cannot: `leave` is called when a drain would be over and the loop is blocked.

        Everything is handed back first, spending nothing, but for a job that has blocked the loop all the while and for
        `POISON_S` at least.

        Told again, hurry, as a drain does; a wish (`by_wish`) does not count as once. Safe from any thread.
        """
        settings, now = self._settings, self._clock.monotonic()
        steps = (settings.shutdown_timeout_s, settings.cleanup_s, settings.force_s)
        self._leave = leave
        self._told_at = min(self._told_at, now)
        self._drained_at = min(self._drained_at, now + sum(steps[min(self._asked, 2) :]))
        self._asked += not by_wish

    async def run(self, store: Store, fall_silent: FallSilent) -> None:
        """Stand in whenever the loop is blocked, until cancelled. `store` is the control thread's own."""
        self._fall_silent = fall_silent
        while True:
            await self.watch.until_blocked()
            while self.watch.blocked_s:
                try:
                    await self._step(store)
                except BusUnavailable:
                    pass  # the beat says so; the next step tries again
                except Exception as error:  # one odd record must not keep the rest waiting
                    events.tell(log, events.SWEEP_FAILED, step="stand_in", error=repr(error))
                await asyncio.sleep(LOOK_S)
            self.lifeless = ""
            self._given_up_at = float("inf")
            self._finalized.clear()
            self._timed_out.clear()
            await asyncio.sleep(LOOK_S)  # the watch needs a moment to see it too

    async def _step(self, store: Store) -> None:
        blocked_s = self.watch.blocked_s
        if blocked_s < STUCK_S:
            return
        now = self._clock.monotonic()
        overdue = [each for each in self._left() if each.deadline_at is not None and now > each.deadline_at]
        self._trip_timed_out(now)
        timed_out = [each for each in self._left() if self._is_past_timeout(each, now)]
        self._say_lifeless(overdue, timed_out, blocked_s)
        for attempt in overdue:
            if attempt not in self._finalized and now - (attempt.deadline_at or now) >= WATCHDOG_PATIENCE_S:
                await self._finalize(store, attempt)
        for attempt in timed_out:
            if attempt not in self._finalized and self._is_past_timeout(attempt, now - WATCHDOG_PATIENCE_S):
                await self._fail(store, attempt)
        await self._leave_in_time(store, now)

    def _left(self) -> list[Attempt]:
        return [attempt for attempt in list(self._runner.running.values()) if not attempt.over]

    def _say_lifeless(self, overdue: list[Attempt], timed_out: list[Attempt], blocked_s: float) -> None:
        past = [f"past the deadline of {_named('cancelled job', overdue)}"] if overdue else []
        past += [f"past the timeout of {_named('job', timed_out)}"] if timed_out else []
        if not past:
            return
        before = self.lifeless
        self.lifeless = f"its loop has been blocked for {blocked_s:.1f} s, {' and '.join(past)}"
        if not before:
            events.tell(log, events.WORKER_LIFELESS, worker=self._name, why=self.lifeless)

    # Cancels past their deadline -----------------------------------------------------------------------------

    async def _finalize(self, store: Store, attempt: Attempt) -> None:
        [(word, state, _)] = await store.finalize(attempt.shard, attempt.queue, [(attempt.jid, False)])
        if word == "early":
            return
        self._finalized.add(attempt)
        if word == "finalized":
            events.tell(log, events.JOB_FINALIZED, jid=attempt.jid, queue=attempt.queue)
        self._loop.call_soon_threadsafe(self._runner.superseded, attempt, state)

    # Timeouts, which nobody but the worker knows of -----------------------------------------------------------

    def _trip_timed_out(self, now: float) -> None:
        for attempt in self._left():
            due = attempt.times_out_at is not None and now >= attempt.times_out_at
            if due and attempt.handler.pool is not Pool.PROCESS and not attempt.token.tripped:
                attempt.token.trip(attempt.timeout_facts)

    def _is_past_timeout(self, attempt: Attempt, now: float) -> bool:
        """Whether the loop, if it went on, would have given this attempt up by now for its timeout."""
        facts = attempt.token.facts
        if attempt.handler.pool is not Pool.COROUTINE or attempt.times_out_at is None or facts is None:
            return False
        over_at = attempt.times_out_at + attempt.grace_s + self._settings.force_s
        return facts.cause is Cause.TIMEOUT and now >= over_at

    async def _fail(self, store: Store, attempt: Attempt) -> None:
        if attempt not in self._timed_out:
            self._timed_out[attempt] = self._runner.timed_out_settlement(attempt, self._clock.monotonic())
        settlement = self._timed_out[attempt]
        [(word, state)] = await store.settle(Verb.RETRY, attempt.shard, attempt.queue, [settlement])
        self._finalized.add(attempt)
        if word != "settled":
            self._loop.call_soon_threadsafe(self._runner.superseded, attempt, state)
            return
        if state in (State.SCHEDULED, State.FAILED):
            events.tell(log, events.JOB_FAILED, **attempt.facts, error="TimedOut", cause=settlement.cause)
        self._loop.call_soon_threadsafe(self._runner.given_up_outside, attempt)

    # Leaving -------------------------------------------------------------------------------------------------

    async def _leave_in_time(self, store: Store, now: float) -> None:
        if self._leave is None:
            return
        if self.lifeless:
            self._given_up_at = min(self._given_up_at, now)
        settings = self._settings
        last_steps_s = settings.cleanup_s + settings.force_s
        leave_at = min(self._drained_at, self._given_up_at + last_steps_s)
        if now < leave_at - last_steps_s:
            return
        # A handler that blocks the loop may well check its token in there.
        facts = TripFacts(cause=Cause.SHUTDOWN, reason="the worker is stopping", grace_s=settings.cleanup_s)
        for attempt in self._left():
            attempt.token.trip(facts)
        if now < leave_at:
            return
        leave, self._leave = self._leave, None
        poison = self._poison(now)
        facts_of_it: dict[str, Any] = {} if poison is None else {"left_behind": poison.jid, "kind": poison.handler.kind}
        events.tell(
            log, events.WORKER_LEAVES, worker=self._name, blocked_s=round(self.watch.blocked_s, 3), **facts_of_it
        )
        try:
            async with asyncio.timeout(HAND_BACK_LIMIT_S):
                await self._hand_back(store, poison, now)
        except (TimeoutError, BusUnavailable) as error:
            # The lease runs out by itself, and a watchdog takes over what is still under our name.
            events.tell(log, events.BUS_LOST, error=str(error) or "no answer")
        except Exception as error:  # whatever it was: nobody will ask us to leave a second time
            events.tell(log, events.SWEEP_FAILED, step="stand_in", error=repr(error))
        leave()

    def _poison(self, now: float) -> Attempt | None:
        """The attempt that is to be left behind: its one step has lasted for the whole drain, and too long."""
        culprit, held_s = self.watch.culprit()
        if culprit is None or held_s < max(POISON_S, now - self._told_at):
            return None
        # What was cancelled is never started again, and a timeout is a failure already.
        ends_otherwise = culprit.deadline_at is not None or self._is_past_timeout(culprit, now)
        return None if ends_otherwise else culprit

    async def _hand_back(self, store: Store, poison: Attempt | None, now: float) -> None:
        """Everything that stands under our name: endings not told yet, running attempts, entries not started."""
        await self._runner.outbox.tell_through(store)
        for attempt in self._left():
            if attempt not in self._finalized and self._is_past_timeout(attempt, now):
                await self._fail(store, attempt)
        for attempt, settlement in self._runner.hand_backs():
            # What was finalized has nothing to be handed back, and no late result to tell either.
            if attempt not in self._finalized and attempt is not poison:
                await store.settle(Verb.RELEASE, attempt.shard, attempt.queue, [settlement])
        streams = Streams(store, self._queues)
        await streams.open()
        # Twice: the read that our blocked loop has left waiting on the server is given what we put back first.
        for _ in range(2):
            for entry in await streams.pending():
                if entry.jid and (poison is None or entry.id != poison.entry):
                    refusal = Refusal(jid=entry.jid, entry=entry.id, why="shutdown", unknown=True)
                    await store.refuse(entry.shard, entry.queue, [refusal])
        await self._fall_silent()  # before the good-bye: a beat after it would put us on the roster again
        for shard in range(store.shards):
            await store.forget(shard, self._name, self._queues, own_wish=True)
            # What still runs here ends with this process, and that is about to end.
            await suspects.clear_owner(store, shard, self._name)


def _named(what: str, attempts: Sequence[Attempt]) -> str:
    first, many = attempts[0], "" if len(attempts) == 1 else "s"
    return f"{len(attempts)} {what}{many}: {first.jid} ({first.handler.kind})"
