"""
Looking at the history of the data, every other second, and setting right what a new one lacks.

The birth mark of a shard is written by whoever finds none, and never again. So all who look agree on which data they
are looking at, and a mark that has changed says that this is not the data from before, whatever else is in it.
"""

from __future__ import annotations

import math
import secrets
from typing import Any

from redis import exceptions as redis_errors

from busq import events
from busq.errors import BusUnavailable
from busq.protocol.lineage import Glimpse, Shift, judge
from busq.protocol.trouble import Trouble
from busq.store import card
from busq.store.connection import reaching
from busq.store.store import Store
from busq.store.trouble import named

LOOK_EVERY_S = 2.0
MARK = "mark"


class Lineage:
    """
    One process's memory of what it saw last, for each shard.

    `changes` counts what it has noticed, `losses` those of them with which acknowledged writes were lost for certain.
    """

    def __init__(self, store: Store, log: events.Log) -> None:
        self._store = store
        self._log = log
        self._seen: dict[int, Glimpse] = {}
        self._looked_at: dict[int, float] = {}
        self._may_ask = True
        self.changes = 0
        self.losses = 0

    async def look(self, shard: int) -> Shift | None:
        """
        What has changed in a shard since the last look; at most one look in two seconds, else nothing.

        What has changed is told in the log, and the bus's own card is written again where it is gone. Raise
        `BusUnavailable`, or `ConfigError` when the bus is now one of another number of shards.
        """
        now = self._store.clock.monotonic()
        if now - self._looked_at.get(shard, -math.inf) < LOOK_EVERY_S:
            return None
        seen, glimpse = self._seen.get(shard), await self._glimpse(shard)
        shift = None if seen is None else judge(seen, glimpse)
        if shift is not None and seen is not None:
            await self._store.meet_again()
            self._tell(shard, shift, seen, glimpse)
        self._seen[shard], self._looked_at[shard] = glimpse, now
        return shift

    def _tell(self, shard: int, shift: Shift, seen: Glimpse, glimpse: Glimpse) -> None:
        self.changes += 1
        self.losses += shift.lost
        facts: dict[str, Any] = {"lost_bytes": shift.lost_bytes} if shift.lost_bytes is not None else {}
        for name in ("birth", "run_id", "replid", "offset"):
            before, after = getattr(seen, name), getattr(glimpse, name)
            if before != after:
                facts |= {f"{name}_before": before, f"{name}_now": after}
        events.tell(self._log, events.HISTORY_CHANGED, change=str(shift.change), shard=shard, **facts)

    async def _glimpse(self, shard: int) -> Glimpse:
        birth, info = await self._birth(shard), await self._info(shard)

        def number(name: str) -> int:
            return int(info.get(name, 0))

        past_replid = str(info.get("master_replid2", ""))
        return Glimpse(
            birth=birth,
            run_id=str(info.get("run_id", "")),
            replid=str(info.get("master_replid", "")),
            offset=number("master_repl_offset"),
            past_replid=past_replid if past_replid.strip("0") else "",  # all zeros say that there is none
            past_offset=number("second_repl_offset") - 1,  # it says the first byte that is not of the past
            is_replica=info.get("role") == "slave",
        )

    async def _birth(self, shard: int) -> str:
        key = self._store.keys(shard).birth
        redis, place = self._store.redis, self._store.connections.place
        with reaching(place):
            mark, shards = await redis.hmget(key, MARK, card.SHARDS)
        if mark is None or shards is None:
            try:
                with reaching(place):
                    for name, value in self._what_it_bears():
                        await redis.hsetnx(key, name, value)
                    [mark] = await redis.hmget(key, MARK)
            except BusUnavailable as error:
                if error.trouble is not Trouble.OUT_OF_MEMORY:
                    raise
        return "" if mark is None else str(mark.decode("ascii", "replace"))

    def _what_it_bears(self) -> list[tuple[str, str | int]]:
        """The mark itself, and what the bus's own card says, for whoever starts while that is away."""
        return [
            (card.VERSION, card.WIRE_VERSION),
            (card.SHARDS, self._store.shards),
            (MARK, secrets.token_hex(8)),
        ]

    async def _info(self, shard: int) -> dict[str, Any]:
        if not self._may_ask:
            return {}
        server = self._store.connections.near(self._store.keys(shard).birth)
        found: dict[str, Any] = {}
        with reaching(self._store.connections.place):
            try:
                found = await server.execute_command("INFO", "server", "replication")
            except redis_errors.ResponseError as error:
                if named(error) in (Trouble.FORBIDDEN, None):
                    self._may_ask = False  # a role without it, a service that has none, a server older than 7.0
                    return {}
                raise
        return found
