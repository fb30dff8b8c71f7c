"""
Suspects of one worker: attempts that were given up while their code runs on.

An attempt leaves when its executor reports that the code has stopped, and then its line in the store goes too. More of
them than a worker may have, and it is worn out: nobody else can end what runs in its threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from busq import events
from busq.store import suspects
from busq.store.store import Store
from busq.worker.attempt import Attempt
from busq.worker.outbox import Outbox

PATIENCE_S = 1.0  # code that ends this soon after it was given up does not count against the limit

log = events.logger("busq.worker")


class Suspects:
    """`errand` runs what is told to the store on the side; `too_many` hears how many there are, past the limit."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        store: Store,
        outbox: Outbox,
        errand: Callable[[Coroutine[Any, Any, None]], None],
        too_many: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._store = store
        self._outbox = outbox
        self._errand = errand
        self._too_many = too_many
        self._attempts: set[Attempt] = set()

    def __len__(self) -> int:
        return len(self._attempts)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self._attempts)

    def __contains__(self, attempt: Attempt) -> bool:
        return attempt in self._attempts

    def add(self, attempt: Attempt, why: str) -> None:
        self._attempts.add(attempt)
        events.tell(log, events.JOB_ABANDONED, **attempt.facts, why=why, suspects=len(self))
        self._loop.call_later(PATIENCE_S, self._weigh)

    def ended(self, attempt: Attempt) -> None:
        """Its code has stopped after all."""
        self._attempts.discard(attempt)
        after_s = round(self._loop.time() - attempt.started_at, 3)
        events.tell(log, events.SUSPECT_ENDED, **attempt.facts, after_s=after_s)
        self.clear(attempt)

    def clear(self, attempt: Attempt) -> None:
        """Have the store forget it, if it was listed there."""
        self._errand(self._clear(attempt))

    async def reconcile(self, runs: Callable[[str, int], bool]) -> None:
        """
        Have the store forget what is listed under our name and does not run here, as `runs` knows by jid and attempt:
        started by a call whose reply was lost, and ended by somebody else before we learned of it. Raise
        `BusUnavailable`.
        """
        for shard in range(self._store.shards):
            await suspects.clear_unknown(self._store, shard, self._store.by, runs)

    async def _clear(self, attempt: Attempt) -> None:
        await self._outbox.until_told(
            lambda: suspects.clear_attempt(self._store, attempt.jid, attempt.number), "suspects"
        )

    def _weigh(self) -> None:
        # Not at once: a killed process, or coroutines that another one had held up, are gone in a moment.
        if len(self) > self._store.settings.suspects_limit:
            self._too_many(len(self))
