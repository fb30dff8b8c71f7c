"""
Takes entries off the queues, and only when there is room for the jobs behind them.

An entry does not say which pool its handler needs before it is read, and what has been read and not started is out
of everybody else's reach. Where all handlers of a queue share a pool, room is what that pool has free. Where they do
not, a read trusts that most entries need the emptier pool; what then finds its own pool full is given back at once,
and that queue is read by the fullest pool for a while. Handlers that block for long deserve a queue of their own.

Nothing is started while the beat does not arrive, even if our own connection works: leases would not hold, and cancels
would not be heard. What was read by then stays pending under our name and is found when we reconcile.

Reads are at most half of all slots, so that Redis fetches one half while the handlers of the other run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from busq import events
from busq.callables import Pool
from busq.errors import BusUnavailable
from busq.store.connection import BLOCK_MS
from busq.store.streams import Entry, Place, Streams
from busq.worker.reception import Reception
from busq.worker.slots import Slots

MOST = 128  # entries in one read
GATHER_S = 0.001
RECONCILE_AGAIN_S = 1.0
AT_ONCE = 2  # starts on their way while the next entries are read
SOME_FULL_BLOCK_MS = 20
WARY_S = (0.1, 2.0)  # after a read that brought more than its pool could take: the first and the longest
AWAY_S = 0.1  # between looks whether the beat arrives again
PAUSE_S = (0.05, 2.0)  # between tries while Redis is away: the first and the longest

log = events.logger("busq.worker")


class Intake:
    """
    `pools` says for every queue which pools its handlers use; `knows` whether this worker runs a job already; `beats`
    whether the beat reaches Redis.
    """

    def __init__(
        self,
        streams: Streams,
        slots: Slots,
        reception: Reception,
        pools: Mapping[str, set[Pool]],
        knows: Callable[[str], bool],
        *,
        beats: Callable[[], bool],
    ) -> None:
        self._streams = streams
        self._slots = slots
        self._reception = reception
        self._pools = dict(pools)
        self._knows = knows
        self._beats = beats
        self._half = max(1, max(slots.limits[pool] for pools in self._pools.values() for pool in pools) // 2)
        self._plenty = {queue: max(slots.limits[pool] for pool in pools) // 4 for queue, pools in self._pools.items()}
        self._trust = {queue: _Trust() for queue in self._pools}
        self._taking: set[asyncio.Task[None]] = set()
        self._turn = 0
        self.reachable = True

    async def run(self) -> None:
        """Read and start jobs until cancelled; what was read by then is dealt with to the end."""
        pause = PAUSE_S[0]
        lost_something = True  # at first we may find what an earlier life of this name left
        try:
            while True:
                try:
                    if not self._beats():
                        lost_something = True
                        await asyncio.sleep(AWAY_S)
                        continue
                    if lost_something:
                        lost_something = not await self.reconcile()
                    if lost_something:
                        await self._a_slot_is_freed(within_s=RECONCILE_AGAIN_S)
                        continue
                    lost_something = not await self._read_and_take()
                    pause, self.reachable = PAUSE_S[0], True
                except BusUnavailable as error:
                    if self.reachable:
                        events.tell(log, events.BUS_LOST, error=str(error))
                    lost_something, self.reachable = True, False
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(PAUSE_S[1], pause * 2)
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

    async def reconcile(self) -> bool:
        """
        A reply may have been lost: start what is pending under our name and not known to us.

        Return False when some of it waits for a slot. It may be a running attempt of ours, so nobody else can take it.
        """
        await self._taken()  # what is on its way is not known yet, and not lost either
        await self._streams.open()
        pending = [entry for entry in await self._streams.pending() if not self._knows(entry.jid)]
        return not pending or not await self._reception.take(pending, adopt=True)

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
        pending = [entry for entry in await self._streams.pending() if not self._knows(entry.jid)]
        self._reception.give_back_unstarted(pending)

    async def _read(self) -> list[Entry]:
        room = await self._some_room()
        if all(free < self._plenty[queue] for queue, free in room.items()):
            # Jobs end one by one: a moment later there is room for several, in one read instead of many.
            await asyncio.sleep(GATHER_S)
            room = self._room() or room
        places = [place for place in self._streams.places if place[1] in room]
        most = min(room.values())
        # A read that waits cannot be called back without losing what it is just being given, and a slot that is freed
        # meanwhile would stay empty for as long: so it waits for long only when it waits for every queue.
        block_ms = BLOCK_MS if len(room) == len(self._pools) else SOME_FULL_BLOCK_MS
        if most < len(places):
            # Less room than streams: one entry of one after another, the first one changing.
            return await self._read_in_turn(places, most) or await self._streams.read(places, each=1, block_ms=block_ms)
        each = min(MOST, most, self._half) // len(places)
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
        for queue, pools in self._pools.items():
            free = [self._slots.free({pool}) for pool in pools]
            trust = self._trust[queue]
            trusted = min(max(free), trust.entries) if now >= trust.wary_until else 0
            if most := max(min(free), trusted):
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


class _Trust:
    """How many entries may be read beyond what the fullest pool has room for, and from when on."""

    __slots__ = ("entries", "pause_s", "wary_until")

    def __init__(self) -> None:
        self.entries = MOST
        self.pause_s = WARY_S[0] / 2
        self.wary_until = 0.0
