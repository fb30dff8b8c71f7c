"""
The bus in figures that change with time, for metrics and for whoever decides how many workers there shall be.

Read when asked for, in a bounded number of commands for each queue; nothing is kept from one time to the next.
"""

from __future__ import annotations

import math
from datetime import datetime

import msgspec
from redis import exceptions as redis_errors

from busq.store import watch
from busq.store.connection import reaching
from busq.store.counts import Stats
from busq.store.reader import Reader
from busq.store.roster import Member
from busq.store.store import Store


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """
    One moment of the bus. `overdue` counts running jobs whose cancel is past its deadline, and that nobody has ended.

    `memory_bytes` is what the server uses, `memory_limit_bytes` its maxmemory (0: none); None where it does not say.
    """

    stats: Stats
    members: list[Member]
    now: datetime
    overdue: int
    memory_bytes: int | None
    memory_limit_bytes: int | None


class WorkerPool(msgspec.Struct, frozen=True, kw_only=True):
    """Workers that serve the same queues, `concurrency` jobs at once in each of their pods."""

    name: str
    queues: tuple[str, ...]
    concurrency: int


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """
    How much work there is for a pool, and how many pods that keeps busy.

    `load` is what waits and what is being worked on: without the latter a busy pool would be scaled down under its
    own jobs.
    """

    pool: str
    ready: int
    held: int
    load: int
    concurrency: int
    desired: int


async def read(store: Store, reader: Reader) -> Figures:
    """Raise `BusUnavailable`."""
    stats, members, now = await reader.stats(), await reader.members(), await reader.now()
    overdue = 0
    with reaching(store.connections.place):
        for shard in range(store.shards):
            own_ms = await watch.server_now_ms(store, shard)
            overdue += await store.redis.zcount(store.keys(shard).deadlines, "-inf", own_ms)
    used, limit = await _memory(store)
    return Figures(
        stats=stats,
        members=members,
        now=now,
        overdue=overdue,
        memory_bytes=used,
        memory_limit_bytes=limit,
    )


def scale(stats: Stats, pool: WorkerPool) -> Scale:
    """What this pool has to do, of what the bus holds."""
    own = [each for each in stats.queues if each.queue in pool.queues]
    ready, held = sum(each.ready for each in own), sum(each.held for each in own)
    return Scale(
        pool=pool.name,
        ready=ready,
        held=held,
        load=ready + held,
        concurrency=pool.concurrency,
        desired=math.ceil((ready + held) / pool.concurrency),
    )


async def _memory(store: Store) -> tuple[int | None, int | None]:
    with reaching(store.connections.place):
        try:
            info = await store.redis.info("memory")
        except (redis_errors.NoPermissionError, redis_errors.ResponseError):
            return None, None
    return info.get("used_memory"), info.get("maxmemory")
