"""
Suspects: attempts that were given up while nobody could prove that their code had stopped.

A line is put on the list by the script that abandons the attempt. It leaves when the worker says that the code has
ended after all, when the owner's process is known to be gone, or after a day.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import msgspec

from busq.protocol.job import moment
from busq.store.connection import reaching
from busq.store.store import Store


class Suspect(msgspec.Struct, frozen=True, kw_only=True):
    """An abandoned attempt: which, whose, and since when (server time)."""

    jid: str
    attempt: int
    owner: str
    kind: str
    since: datetime | None


async def listed(store: Store, shard: int, *, limit: int = 1000) -> list[Suspect]:
    """The suspects of one shard, oldest first."""
    return [suspect for _, suspect in await _lines(store, shard, limit)]


async def clear_attempt(store: Store, jid: str, attempt: int) -> int:
    """The code of this attempt has stopped. Return how many lines were dropped."""
    shard = store.shard_of(jid)
    return await _drop(store, shard, lambda each: each.jid == jid and each.attempt == attempt)


async def clear_unknown(store: Store, shard: int, owner: str, runs: Callable[[str, int], bool]) -> int:
    """This worker runs nothing but what `runs` knows by jid and attempt. Return how many lines were dropped."""
    return await _drop(store, shard, lambda each: each.owner == owner and not runs(each.jid, each.attempt))


async def clear_owner(store: Store, shard: int, owner: str) -> int:
    """This worker's process is gone, and all its code with it. Return how many lines were dropped."""
    return await _drop(store, shard, lambda each: each.owner == owner)


async def _drop(store: Store, shard: int, chosen: Callable[[Suspect], bool]) -> int:
    lines = [line for line, suspect in await _lines(store, shard, -1) if chosen(suspect)]
    if not lines:
        return 0
    with reaching(store.connections.place):
        return int(await store.redis.zrem(store.keys(shard).suspects, *lines))


async def _lines(store: Store, shard: int, limit: int) -> list[tuple[bytes, Suspect]]:
    last = limit - 1 if limit > 0 else -1
    with reaching(store.connections.place):
        lines = await store.redis.zrange(store.keys(shard).suspects, 0, last, withscores=True)
    return [(line, _suspect(line, since)) for line, since in lines]


def _suspect(line: bytes, since: float) -> Suspect:
    parts = [*line.decode("utf-8", "replace").split("\t"), "", "", "", ""][:4]
    attempt = int(parts[1]) if parts[1].isdigit() else 0
    return Suspect(jid=parts[0], attempt=attempt, owner=parts[2], kind=parts[3], since=moment(str(since)))
