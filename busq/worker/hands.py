"""
What handlers may ask of their worker, from whatever thread they run in.

Everything is carried over into the handlers' loop, where the attempt belongs; nothing here touches Redis itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

from busq import events
from busq.callables import Pool
from busq.protocol.cancel import TripFacts
from busq.worker.attempt import Attempt
from busq.worker.context import Shield
from busq.worker.ladder import Ladder
from busq.worker.outbox import Outbox

log = events.logger("busq.worker")


class WorkerHands:
    """The `Hands` of every `CurrentJob` of one worker. Made in the thread of the handlers' loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, outbox: Outbox, ladder: Ladder, *, result_bytes: int) -> None:
        self.loop = loop
        self.result_bytes = result_bytes
        self._outbox = outbox
        self._ladder = ladder
        self._thread = threading.get_ident()

    def save(self, attempt: Attempt, data: bytes) -> Future[None]:
        kept: Future[None] = Future()
        self._soon(lambda: self._outbox.line(attempt, None, saved=data, kept=kept))
        return kept

    def shield_opened(self, attempt: Attempt, shield: Shield) -> None:
        shield.holds = True
        attempt.shields += 1
        if shield.limit_s is not None:
            self._soon(lambda: self._arm(attempt, shield))

    def shield_closed(self, attempt: Attempt, shield: Shield) -> None:
        self._let_in(attempt, shield)
        timer = shield.timer
        if timer is not None:
            self._soon(timer.cancel)

    def _arm(self, attempt: Attempt, shield: Shield) -> None:
        if shield.holds and shield.limit_s is not None:
            shield.timer = self.loop.call_later(shield.limit_s, self._let_in, attempt, shield)

    def _let_in(self, attempt: Attempt, shield: Shield) -> None:
        """This shield holds nothing off any more, because it was left or because its limit is over."""
        if not shield.holds:
            return
        shield.holds = False
        attempt.shields -= 1
        if not attempt.shields and attempt.shut_out:
            self._soon(lambda: self._ladder.shield_closed(attempt))

    def run_callback(self, attempt: Attempt, callback: Callable[[TripFacts], object], facts: TripFacts) -> None:
        def call() -> None:
            try:
                callback(facts)
            except BaseException as error:  # a SystemExit too: the loop that it would end runs other people's jobs
                events.tell(log, events.TRIP_CALLBACK_FAILED, **attempt.facts, error=repr(error))

        if attempt.handler.pool is Pool.COROUTINE:
            self._soon(call)
        else:
            threading.Thread(target=call, name="busq-on-trip", daemon=True).start()

    def _soon(self, call: Callable[[], object]) -> None:
        """In the handlers' loop: at once when we are in it."""
        if threading.get_ident() == self._thread:
            call()
        else:
            self.loop.call_soon_threadsafe(call)
