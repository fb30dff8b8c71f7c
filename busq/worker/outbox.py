"""
Everything that attempts have to tell the store, in order, in batches.

Handlers end in their own time; what they leave is gathered here and sent by one task, so that a thousand endings
cost a dozen round trips and no handler's cancel can hit a command on its way. Nothing is dropped: while Redis is
away the box keeps what it has and tries again. Every script is safe to send twice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import msgspec

from busq import events
from busq.errors import BadRecord, BusUnavailable, Cancelled
from busq.protocol.cancel import Cause
from busq.protocol.states import Verb
from busq.store.forms import Note, Refusal, Settlement
from busq.store.outage import Backoff, Outage
from busq.store.store import BATCH, Store
from busq.worker.attempt import Attempt

UNKNOWN_JID = "unknown_jid: no record of this jid"
LONGEST_PAUSE_S = 1.0  # between tries while Redis is away

T = TypeVar("T")

log = events.logger("busq.worker")

Settled = Callable[[Attempt, str, str], None]
"""Called with the attempt, the answer (settled, stale, missing) and the state."""


_Where = tuple[Verb, int, str]  # verb, shard and queue: what one script call can tell together
_Ending = tuple[Attempt, Settlement]


class _Line(msgspec.Struct, frozen=True):
    attempt: Attempt
    note: Note | None
    saved: bytes = b""
    kept: Future[None] | None = None


class _Return(msgspec.Struct, frozen=True):
    shard: int
    queue: str
    refusal: Refusal
    raw: bytes


class Outbox:
    def __init__(self, store: Store, settled: Settled, outage: Outage) -> None:
        self._store = store
        self._outage = outage
        self._settled = settled
        self._lines: list[_Line] = []
        self._endings: dict[_Where, list[_Ending]] = {}
        self._returns: list[_Return] = []
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    # What is put in (all in the handlers' loop) ----------------------------------------------------------

    def settle(self, attempt: Attempt, verb: Verb, settlement: Settlement) -> None:
        self._endings.setdefault((verb, attempt.shard, attempt.queue), []).append((attempt, settlement))
        self._wake()

    def line(
        self, attempt: Attempt, note: Note | None, *, saved: bytes = b"", kept: Future[None] | None = None
    ) -> None:
        self._lines.append(_Line(attempt, note, saved, kept))
        self._wake()

    def refuse(self, shard: int, queue: str, refusal: Refusal, *, raw: bytes) -> None:
        """`raw` is the entry as it was read, for the dead letters: its job may turn out to have no record."""
        self._returns.append(_Return(shard, queue, refusal, raw))
        self._wake()

    @property
    def waiting(self) -> int:
        """How many endings and returned jobs have not been told yet."""
        return sum(map(len, self._endings.values())) + len(self._returns)

    def holds(self, jid: str) -> bool:
        """Whether an ending of this job, or its return, waits to be told."""
        endings = itertools.chain.from_iterable(self._endings.values())
        return any(attempt.jid == jid for attempt, _ in endings) or any(
            each.refusal.jid == jid for each in self._returns
        )

    async def empty(self) -> None:
        """Wait until everything has been told."""
        await self._idle.wait()

    async def tell_through(self, store: Store) -> None:
        """Send all that is in here once, another way: for whoever stands in for a loop that is blocked."""
        for line in list(self._lines):
            await self._note(store, line)
        for where, endings in list(self._endings.items()):
            for start in range(0, len(endings), BATCH):
                await store.settle(*where, [settlement for _, settlement in endings[start : start + BATCH]])
        for each in list(self._returns):
            await store.refuse(each.shard, each.queue, [each.refusal])

    # Sending -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Send for ever; cancel it when `empty` has returned."""
        while True:
            await self._work.wait()
            await asyncio.sleep(0)  # what ends in the same turn of the loop travels together
            self._work.clear()
            await self.until_told(self._flush, "outbox")
            if not (self._lines or self._endings or self._returns):
                self._idle.set()

    def _wake(self) -> None:
        self._idle.clear()
        self._work.set()

    async def until_told(self, send: Callable[[], Awaitable[T]], part: str) -> T:
        """Send until it has arrived, however long Redis is away. Return the answer; `part` says who waits for it."""
        backoff = Backoff(LONGEST_PAUSE_S)
        try:
            while True:
                try:
                    return await send()
                except BusUnavailable as error:
                    self._outage.began(part, error, waiting=self.waiting)
                    await asyncio.sleep(backoff.pause_s())
        finally:
            self._outage.fine(part)  # also when it is told no, or gives up: nobody waits any more

    async def _flush(self) -> None:
        """
        Lines first: a job's lines were written before its ending, and nothing is added to it afterwards.

        Before each batch of endings, for both are put in while an earlier one is on its way.
        """
        while self._lines or self._endings:
            if self._lines:
                await self._send_line(self._lines[0])
                del self._lines[0]
            else:
                await self._settle_some()
        while self._returns:
            returned = _alike(self._returns, lambda each: (each.shard, each.queue))
            refusals = [each.refusal for each in returned]
            answers = await self._store.refuse(returned[0].shard, returned[0].queue, refusals)
            self._returns = _without(self._returns, returned)
            for each, (word, state) in zip(returned, answers, strict=True):
                if word == "missing":
                    await self._store.bury(each.shard, each.queue, each.refusal.entry, reason=UNKNOWN_JID, raw=each.raw)
                event = _RETURNED.get(word, events.JOB_REFUSED)
                usual = logging.DEBUG if each.refusal.why in _USUAL and event == events.JOB_REFUSED else None
                events.tell(log, event, level=usual, jid=each.refusal.jid, why=each.refusal.why, state=state)

    async def _settle_some(self) -> None:
        where = next(iter(self._endings))
        waiting = self._endings[where]  # more may be put in while the first are on their way
        chosen = waiting[:BATCH]
        try:
            answers = await self._settle(where, [settlement for _, settlement in chosen])
        except BusUnavailable:
            # The server of this shard may be the only one that is away: another shard's turn comes next.
            self._endings[where] = self._endings.pop(where)
            raise
        del waiting[: len(chosen)]
        if not waiting:
            del self._endings[where]
        for (attempt, _), (word, state) in zip(chosen, answers, strict=True):
            self._settled(attempt, word, state)

    async def _settle(self, where: _Where, settlements: list[Settlement]) -> list[tuple[str, str]]:
        """What became of each; where a record is none that can be worked with, of each by itself."""
        try:
            return await self._store.settle(*where, settlements)
        except BadRecord as error:
            if len(settlements) > 1:
                return [answer for each in settlements for answer in await self._settle(where, [each])]
            events.tell(log, events.SETTLE_FAILED, jid=settlements[0].jid, error=str(error))
            return [("missing", "")]

    async def _note(self, store: Store, line: _Line) -> str:
        attempt = line.attempt
        word, _ = await store.note(
            attempt.jid, token=attempt.token_id, attempt=attempt.number, note=line.note, saved=line.saved
        )
        return word

    async def _send_line(self, line: _Line) -> None:
        word = await self._note(self._store, line)
        if line.kept is None:
            return
        if word == "noted":
            line.kept.set_result(None)
        else:
            line.kept.set_exception(
                Cancelled(Cause.LEASE_LOST, "nothing was saved: this attempt no longer owns the job")
            )


_USUAL = ("no_slot", "shutdown", "newer_rule")  # reasons that say nothing of the job
_RETURNED = {"buried": events.JOB_BURIED, "missing": events.JOB_BURIED, "stale": events.JOB_STALE}


def _alike(waiting: Sequence[T], where: Callable[[T], Hashable]) -> list[T]:
    """The first of those that wait, and all others that one script call can tell with it; a batch at most."""
    wanted = where(waiting[0])
    return [each for each in waiting[: BATCH * 4] if where(each) == wanted][:BATCH]


def _without(waiting: list[T], told: Sequence[T]) -> list[T]:
    """What still waits; more may have been put in while `told` was on its way."""
    if len(told) == len(waiting):
        return []
    gone = {id(each) for each in told}
    return [each for each in waiting if id(each) not in gone]
