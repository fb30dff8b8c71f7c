"""
Takes entries off the queues, and only when there is room for the jobs behind them.

How many may be read from a queue is decided by the fullest pool that its handlers use: an entry does not say what
it needs before it is read, and what has been read and not started is out of everybody else's reach. Reads are at
most half of the room, so that Redis fetches one half while the handlers of the other run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Protocol

from busq import events
from busq.errors import BusUnavailable
from busq.handlers import Pool
from busq.store.streams import Entry, Streams
from busq.worker.reception import Reception
from busq.worker.slots import Slots

MOST = 128  # entries in one read
PAUSE_S = (0.05, 2.0)  # between tries while Redis is away: the first and the longest

log = events.logger("busq.worker")


class Known(Protocol):
    """Whether this worker knows that it runs a job."""

    def __call__(self, jid: str) -> bool: ...


class Intake:
    """`pools` says for every queue which pools its handlers use."""

    def __init__(
        self, streams: Streams, slots: Slots, reception: Reception, pools: Mapping[str, set[Pool]], knows: Known
    ) -> None:
        self._streams = streams
        self._slots = slots
        self._reception = reception
        self._pools = dict(pools)
        self._knows = knows
        self._turn = 0
        self.reachable = True

    async def run(self) -> None:
        """Read and start jobs until cancelled."""
        pause = PAUSE_S[0]
        lost_something = True  # at first we may find what an earlier life of this name left
        while True:
            try:
                if lost_something:
                    await self._streams.open()
                    await self.reconcile()
                    lost_something = False
                entries = await self._read()
                if entries:
                    await self._reception.take(entries)
                pause, self.reachable = PAUSE_S[0], True
            except BusUnavailable as error:
                if self.reachable:
                    events.tell(log, events.BUS_LOST, error=str(error))
                lost_something, self.reachable = True, False
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(PAUSE_S[1], pause * 2)

    async def reconcile(self) -> None:
        """A reply may have been lost: start what is pending under our name and not known to us."""
        pending = [entry for entry in await self._streams.pending() if not self._knows(entry.jid)]
        if pending:
            await self._reception.take(pending, adopt=True)

    async def leave(self) -> None:
        """Give back what was read and not started. Call it after `run` has been cancelled and all jobs have ended."""
        pending = [entry for entry in await self._streams.pending() if not self._knows(entry.jid)]
        self._reception.give_back_unstarted(pending)

    async def _read(self) -> list[Entry]:
        room = self._room()
        while not room:
            await self._slots.wait_freed()
            room = self._room()
        most = min(room.values())
        if len(room) > 1 and most < len(room):
            # Less room than queues: one entry of one queue after another, the first one changing.
            return await self._read_in_turn(room, most) or await self._streams.read(dict.fromkeys(room, 1))
        return await self._streams.read(dict.fromkeys(room, max(1, min(MOST, (most + 1) // 2))))

    async def _read_in_turn(self, room: Mapping[str, int], most: int) -> list[Entry]:
        queues = list(room)
        self._turn += 1
        found: list[Entry] = []
        for i in range(len(queues)):
            if len(found) >= most:
                break
            found += await self._streams.read({queues[(self._turn + i) % len(queues)]: 1}, block_ms=0)
        return found

    def _room(self) -> dict[str, int]:
        room = {queue: self._slots.free(pools) for queue, pools in self._pools.items()}
        return {queue: free for queue, free in room.items() if free > 0}
