"""
What a step back of the server's clock would keep waiting: found once, and brought near again.

Every moment is written down in the server's time. When its clock is set back by hours, what was to come in seconds is
hours away: the lease of a worker that died, the deadline of a cancel, a retry. The log of a shard remembers the latest
moment that the server has seen, so it is told to any watchdog, also to one that began later. The scripts decide what is
brought near; here stands only how far the look has come. What somebody has asked for as a moment stays one: `expires`,
`deadline`, the end of a rule or a tombstone.
"""

from __future__ import annotations

from busq import events
from busq.store.store import Store

STEP = 100  # jobs looked at in one call
LOOK_EVERY_S = 1.0
INDEXES = ("deadlines", "scheduled")

log = events.logger("busq.watchdog")


class SetBack:
    """One watchdog's view of one shard."""

    def __init__(self, store: Store, shard: int) -> None:
        self._store = store
        self._shard = shard
        self._behind_s = 0.0
        self._left: list[tuple[str, int]] = []  # indexes that are still to be looked at, each from a rank on
        self._look_at = float("-inf")

    async def step(self) -> bool:
        """
        Look whether the clock was set back, once a second, or go on with what that began. Return whether there is more
        to do.
        """
        now = self._store.clock.monotonic()
        if not self._left and now < self._look_at:
            return False
        self._look_at = now + LOOK_EVERY_S
        index, rank = self._left[0] if self._left else ("", 0)
        found = await self._store.rewind(self._shard, index=index, rank=rank, step=STEP)
        if found.behind_s > self._behind_s + self._store.settings.lease_s:
            events.tell(log, events.CLOCK_SET_BACK, shard=self._shard, behind_s=round(found.behind_s, 1))
            self._left = [(name, 0) for name in INDEXES]
        elif self._left:
            self._left[:1] = [(index, found.rank)] if found.rank is not None else []
        self._behind_s = found.behind_s  # it shrinks as the clock catches up
        return bool(self._left)
