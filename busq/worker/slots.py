"""
Room for jobs: so many in each pool, free again only when the code in it has stopped or was abandoned and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from busq.callables import Pool


class Slots:
    def __init__(self, limits: Mapping[Pool, int]) -> None:
        self.limits = dict(limits)
        self._used = dict.fromkeys(limits, 0)
        self._freed = asyncio.Event()

    def free(self, pools: Iterable[Pool]) -> int:
        """How many more jobs fit, whichever of these pools each of them turns out to need."""
        return min((self.limits[pool] - self._used[pool] for pool in pools), default=0)

    @property
    def used(self) -> int:
        return sum(self._used.values())

    def taken(self, pool: Pool) -> int:
        return self._used[pool]

    def take(self, pool: Pool) -> bool:
        """Occupy one; False when this pool is full."""
        if self._used[pool] >= self.limits[pool]:
            return False
        self._used[pool] += 1
        return True

    def give_back(self, pool: Pool) -> None:
        self._used[pool] -= 1
        self._freed.set()

    async def wait_freed(self) -> None:
        """Wait until some slot is given back."""
        self._freed.clear()
        await self._freed.wait()
