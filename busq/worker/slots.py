"""
Room for jobs: so many in each pool, free again only when the code in it has stopped or was abandoned and counted.

In the process pool some more short jobs may be started than there are children (`pace.py`), before children that are
not taken by a longer one. A longer job always finds room when it has a child to itself: what it waits for is short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from busq.callables import Pool
from busq.handlers import Handler
from busq.worker.pace import Pace

LENIENT = 2  # times what may be started ahead: when the pace has changed since the entries were asked for


class Slots:
    def __init__(self, limits: Mapping[Pool, int], pace: Pace | None = None) -> None:
        self.limits = dict(limits)
        self._pace = pace or Pace()
        self._used = dict.fromkeys(limits, 0)
        self._in_children: dict[str, int] = {}  # of the process pool's used slots, how many by which kind
        self._freed = asyncio.Event()

    @property
    def used(self) -> int:
        return sum(self._used.values())

    def taken(self, pool: Pool) -> int:
        return self._used[pool]

    def room(self, pools: Iterable[Pool], kinds: Sequence[str]) -> tuple[int, int]:
        """
        How many more jobs fit that need one of these pools, or the process pool for one of these kinds.

        First whatever each of them turns out to need, then when all need what has most room.
        """
        free = [self.limits[pool] - self._used[pool] for pool in pools]
        hopes = list(free)
        if kinds:
            slow = self._slow()
            children = self._pace.children - self._pace.held_up
            by_kind = [(self._free(slow, children, ahead), ahead) for ahead in map(self._pace.ahead, kinds)]
            free += [room for room, _ in by_kind]
            # Longer jobs find room where no short one does, and an entry does not say which it is.
            hopes.append(max((room for room, ahead in by_kind if ahead), default=by_kind[0][0]))
        return max(0, min(free, default=0)), max(0, *hopes, 0)

    def most(self, pools: Iterable[Pool], kinds: Sequence[str]) -> int:
        """How many jobs fit where most fit, when nothing is used."""
        most = [self.limits[pool] for pool in pools]
        if kinds:
            ahead = max(map(self._pace.ahead, kinds))
            most.append(self.limits[Pool.PROCESS] + ahead * self._pace.children)
        return max(most)

    def take(self, handler: Handler) -> bool:
        """Occupy one; False when there is none for this handler."""
        pool = handler.pool
        if pool is Pool.PROCESS:
            kind = handler.kind
            # What was read when there was more room is started all the same.
            children = self._pace.children - self._pace.held_up
            if self._free(self._slow(), children, LENIENT * self._pace.ahead(kind)) <= 0:
                return False
            self._in_children[kind] = self._in_children.get(kind, 0) + 1
        elif self._used[pool] >= self.limits[pool]:
            return False
        self._used[pool] += 1
        return True

    def give_back(self, handler: Handler) -> None:
        self._used[handler.pool] -= 1
        if handler.pool is Pool.PROCESS:
            left = self._in_children[handler.kind] - 1
            if left:
                self._in_children[handler.kind] = left
            else:
                del self._in_children[handler.kind]
        self._freed.set()

    async def wait_freed(self) -> None:
        """Wait until some slot is given back."""
        self._freed.clear()
        await self._freed.wait()

    def _slow(self) -> int:
        """How many jobs that want a child to themselves are in the process pool."""
        ahead = self._pace.ahead
        return sum(count for kind, count in self._in_children.items() if not ahead(kind))

    def _free(self, slow: int, children: int, ahead: int) -> int:
        free = self.limits[Pool.PROCESS] - slow
        if ahead:
            free += ahead * max(0, children - slow) - (self._used[Pool.PROCESS] - slow)
        return free
