"""
Takes entries off the queues, and only when there is room for the jobs behind them.

An entry does not say which pool its handler needs before it is read, and what has been read and not started is out
of everybody else's reach. Where all handlers of a queue share a pool, room is what that pool has free. Where they do
not, a read trusts that most entries need the emptier pool; what then finds its own pool full is given back at once,
and that queue is read by the fullest pool for a while. Handlers that block for long deserve a queue of their own.

Nothing is started while the beat does not arrive, even if our own connection works: leases would not hold, and cancels
would not be heard. What was read by then stays pending under our name and is found when we reconcile.

Reads are at most half of all slots, so that Redis fetches one half while the handlers of the other run.

Queues of hooks are nearly always empty, and may have a small pool: they must not make the reads of the others smaller.
So while there is work they are read by themselves, now and then; all queues together are read only to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from busq import events
from busq.callables import Pool
from busq.errors import BusUnavailable
from busq.handlers import Handler
from busq.protocol.hook import is_hook
from busq.store.connection import BLOCK_MS
from busq.store.outage import Backoff, Outage
from busq.store.streams import Entry, Place, Streams
from busq.worker.reception import Reception
from busq.worker.slots import Slots

MOST = 128  # entries in one read
GATHER_S = 0.001
AT_ONCE = 2  # starts on their way while the next entries are read
SOME_FULL_BLOCK_MS = 20
HOOKS_EVERY_S = 0.01  # so often are queues of hooks read while others have entries
WARY_S = (0.1, 2.0)  # after a read that brought more than its pool could take: the first and the longest
AWAY_S = 0.1  # between looks whether the beat arrives again

log = events.logger("busq.worker")


class Intake:
    """
    `served` says for every queue which handlers it feeds; `knows` whether this worker runs what is behind an entry;
    `reconcile_attempts` looks for such as never ran here; `beats` says whether the beat reaches Redis.
    """

    def __init__(
        self,
        streams: Streams,
        slots: Slots,
        reception: Reception,
        served: Mapping[str, Sequence[Handler]],
        knows: Callable[[Entry], bool],
        *,
        reconcile_attempts: Callable[[], Awaitable[None]],
        beats: Callable[[], bool],
        outage: Outage,
    ) -> None:
        self._streams = streams
        self._slots = slots
        self._reception = reception
        self._needs = {queue: _needs(handlers) for queue, handlers in served.items()}
        self._knows = knows
        self._reconcile_attempts = reconcile_attempts
        self._beats = beats
        self._trust = {queue: _Trust() for queue in self._needs}
        self._taking: set[asyncio.Task[None]] = set()
        self._turn = 0
        self._hooks_read_at = 0.0
        self._look_again = True  # at first we may find what an earlier life of this name left
        self._outage = outage

    async def run(self) -> None:
        """Read and start jobs until cancelled; what was read by then is dealt with to the end."""
        backoff = Backoff()
        try:
            while True:
                try:
                    if not self._beats():
                        self._look_again = True
                        await asyncio.sleep(AWAY_S)
                        continue
                    if self._look_again:
                        self._look_again = False
                        await self.reconcile()
                    if not await self._read_and_take():
                        self._look_again = True
                    self._outage.fine("intake")
                    backoff.reset()
                except BusUnavailable as error:
                    self._outage.began("intake", error)
                    self._look_again = True
                    await asyncio.sleep(backoff.pause_s())
        finally:
            await self._taken()

    async def _read_and_take(self) -> bool:
        """One read. What it brings is started while the next read is on its way; False: it may not be started now."""
        entries = await self._read()
        if entries and not self._beats():
            return False
        if entries:
            taking = asyncio.create_task(self._take(entries))
            self._taking.add(taking)
            await asyncio.sleep(0)  # it occupies its slots in its first step, before anybody counts them again
        while len(self._taking) >= AT_ONCE or any(taking.done() for taking in self._taking):
            done, self._taking = await asyncio.wait(self._taking, return_when=asyncio.FIRST_COMPLETED)
            for taking in done:
                taking.result()
        return True

    async def _take(self, entries: list[Entry]) -> None:
        self._learn({entry.queue for entry in entries}, await self._reception.take(entries))

    def _heed_ended_starts(self) -> None:
        """Raise what a start raised, without waiting: one that failed gave its slot back, and it may be taken again."""
        ended = {taking for taking in self._taking if taking.done()}
        self._taking -= ended
        for taking in ended:
            taking.result()

    def reconcile_soon(self) -> None:
        """Look through what is pending under our name, once the present read is over."""
        self._look_again = True

    async def reconcile(self) -> None:
        """
        A reply may have been lost: start what is pending under our name and not known to us, and have those attempts
        forgotten that were ended as if they ran here.

        What finds no slot is given back, although the record may say that we run it: somebody else can, then.
        """
        await self._taken()  # what is on its way is not known yet, and not lost either
        await self._streams.open()
        if unknown := await self._unknown():
            await self._reception.take(unknown, adopt=True)
        await self._reconcile_attempts()

    async def _unknown(self) -> list[Entry]:
        return [entry for entry in await self._streams.pending() if not self._knows(entry)]

    async def _taken(self) -> None:
        """Wait for starts that are on their way, even while being cancelled: they may have taken effect."""
        while self._taking:
            with suppress(asyncio.CancelledError):  # whoever ends us may ask more than once
                done, self._taking = await asyncio.wait(self._taking)
                for taking in done:
                    if taking.exception() is not None:
                        events.tell(log, events.START_FAILED, error=str(taking.exception()))

    async def leave(self) -> None:
        """Give back what was read and not started. Call it after `run` has been cancelled and all jobs have ended."""
        self._reception.give_back_unstarted(await self._unknown())

    async def _read(self) -> list[Entry]:
        room = await self._some_room()
        most = {queue: self._slots.most(*self._needs[queue]) for queue in room}
        if all(free < most[queue] // 4 for queue, free in room.items() if not is_hook(queue)):
            # Jobs end one by one: a moment later there is room for several, in one read instead of many.
            await asyncio.sleep(GATHER_S)
            room = self._room() or room
        places = [place for place in self._streams.places if place[1] in room]
        hooks = [place for place in places if is_hook(place[1])]
        if hooks and len(hooks) < len(places):
            now = asyncio.get_running_loop().time()
            if now - self._hooks_read_at >= HOOKS_EVERY_S:
                self._hooks_read_at = now
                if found := await self._read_places(hooks, room, block_ms=0):
                    return found
            others = [place for place in places if place not in hooks]
            if found := await self._read_places(others, room, block_ms=0):
                return found
        # A read that waits cannot be called back without losing what it is just being given, and a slot that is freed
        # meanwhile would stay empty for as long: so it waits for long only when it waits for every queue.
        block_ms = BLOCK_MS if len(room) == len(self._needs) else SOME_FULL_BLOCK_MS
        return await self._read_places(places, room, block_ms=block_ms)

    async def _read_places(self, places: Sequence[Place], room: Mapping[str, int], *, block_ms: int) -> list[Entry]:
        most = min(room[queue] for _, queue in places)
        if most < len(places):
            # Less room than streams: one entry of one after another, the first one changing.
            found = await self._read_in_turn(places, most)
            if found or not block_ms:
                return found
            return await self._streams.read(places, each=1, block_ms=block_ms)
        half = max(self._slots.most(*needs) for needs in self._needs.values()) // 2
        each = min(MOST, most, half) // len(places)
        return await self._streams.read(places, each=max(1, each), block_ms=block_ms)

    async def _read_in_turn(self, places: Sequence[Place], most: int) -> list[Entry]:
        self._turn += 1
        found: list[Entry] = []
        for i in range(len(places)):
            if len(found) >= most:
                break
            found += await self._streams.read([places[(self._turn + i) % len(places)]], each=1, block_ms=0)
        return found

    async def _some_room(self) -> dict[str, int]:
        while not (room := self._room()):
            self._heed_ended_starts()
            wary_until = min((trust.wary_until for trust in self._trust.values()), default=0.0)
            wait = wary_until - asyncio.get_running_loop().time()
            await self._a_slot_is_freed(within_s=wait if wait > 0 else None)
        return room

    async def _a_slot_is_freed(self, *, within_s: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._slots.wait_freed()

    def _room(self) -> dict[str, int]:
        now = asyncio.get_running_loop().time()
        room = {}
        for queue, needs in self._needs.items():
            certain, hoped = self._slots.room(*needs)
            trust = self._trust[queue]
            trusted = min(hoped, trust.entries) if now >= trust.wary_until else 0
            if most := max(certain, trusted):
                room[queue] = most
        return room

    def _learn(self, read: set[str], overfull: set[str]) -> None:
        """Trust the queues whose entries all found room, and be wary of the others for a while."""
        now = asyncio.get_running_loop().time()
        for queue in read:
            trust = self._trust[queue]
            if queue in overfull:
                trust.entries, trust.pause_s = 1, min(WARY_S[1], trust.pause_s * 2)
                trust.wary_until = now + trust.pause_s
            else:
                trust.entries, trust.pause_s = min(MOST, trust.entries * 2), WARY_S[0] / 2


Needs = tuple[set[Pool], list[str]]
"""Pools, and kinds of the process pool."""


def _needs(handlers: Sequence[Handler]) -> Needs:
    """What an entry may turn out to need when these handlers are behind it."""
    pools = {handler.pool for handler in handlers} or {Pool.COROUTINE}
    return pools - {Pool.PROCESS}, [handler.kind for handler in handlers if handler.pool is Pool.PROCESS]


class _Trust:
    """How many entries may be read beyond what the fullest pool has room for, and from when on."""

    __slots__ = ("entries", "pause_s", "wary_until")

    def __init__(self) -> None:
        self.entries = MOST
        self.pause_s = WARY_S[0] / 2
        self.wary_until = 0.0
