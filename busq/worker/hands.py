"""
What handlers may ask of their worker, from whatever thread they run in.

Everything is carried over into the handlers' loop, where the attempt belongs; nothing here touches Redis itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from busq import events
from busq.callables import Pool
from busq.errors import BusqError
from busq.protocol.cancel import Cause, TripFacts
from busq.protocol.jids import check_child, new_jid
from busq.store.forms import NewJob
from busq.store.store import Store
from busq.worker.attempt import Attempt
from busq.worker.context import Shield
from busq.worker.ladder import Ladder
from busq.worker.outbox import Outbox

log = events.logger("busq.worker")

Errand = Callable[[Coroutine[Any, Any, None]], None]
"""Has something done in the handlers' loop that nobody waits for."""


class WorkerHands:
    """The `Hands` of every `CurrentJob` of one worker. Made in the thread of the handlers' loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, store: Store, outbox: Outbox, ladder: Ladder, errand: Errand,
        *, result_bytes: int,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.result_bytes = result_bytes
        self._store = store
        self._outbox = outbox
        self._ladder = ladder
        self._errand = errand
        self._thread = threading.get_ident()

    def save(self, attempt: Attempt, data: bytes) -> Future[None]:
        kept: Future[None] = Future()
        self._soon(lambda: self._outbox.line(attempt, None, saved=data, kept=kept))
        return kept

    def spawn(self, attempt: Attempt, job: NewJob) -> Future[tuple[str, str]]:
        told: Future[tuple[str, str]] = Future()
        self._soon(lambda: self._errand(self._admit(attempt, job, told)))
        return told

    async def _admit(self, attempt: Attempt, job: NewJob, told: Future[tuple[str, str]]) -> None:
        """Not by way of the outbox: a server that is full takes no new jobs, and endings must not wait for that."""
        call = new_jid()  # the same for every try, so that a lost reply makes no second child
        try:
            check_child(job.jid, attempt.jid, self._store.shards)
            job.check_shard(self._store.shards)
            word, state, cause = await self._outbox.until_told(
                lambda: self._store.spawn(attempt.jid, attempt.token_id, job, call=call), "spawn"
            )
        except BusqError as error:
            told.set_result(("refused", str(error)))
        except asyncio.CancelledError:
            told.cancel()  # the worker is gone, and so is whoever waits for this
            raise
        except BaseException as error:
            told.set_exception(error)
            raise
        else:
            told.set_result((word, cause or str(Cause.LEASE_LOST)) if word == "orphan" else (word, state))

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
