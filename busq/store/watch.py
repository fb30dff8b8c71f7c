"""
What a watchdog asks: what is due, what is overdue, what does a worker still hold.

Reading only, in bounded steps; every answer is a hint, for the scripts judge again on the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from busq.protocol.job import text
from busq.protocol.keys import GROUP
from busq.store.connection import Client, reaching
from busq.store.store import Store
from busq.store.streams import Entry, read_entry
from busq.store.trouble import named

STEP = 100  # entries or members looked at in one step


class Due(msgspec.Struct, frozen=True):
    """Members of a timer that are due, as (jid, queue, owner), and when the next one is: ms from now, None if none."""

    jobs: list[tuple[str, str, str]]
    next_ms: float | None


async def server_now_ms(store: Store, shard: int = 0) -> float:
    """The moment that a shard's scripts take for now: on a cluster the servers have clocks of their own."""
    own = store.clock.stamp_ms()
    if own:
        return own
    with reaching(store.connections.place):
        seconds, micros = await store.connections.near(store.keys(shard).counters).time()
    return float(seconds) * 1000 + float(micros) / 1000


async def due(store: Store, shard: int, timer: bytes, now_ms: float) -> Due:
    """What is due on a timer (a sorted set of jids by moment): at most a step, earliest first."""
    with reaching(store.connections.place):
        first: Sequence[tuple[bytes, float]] = await store.redis.zrange(timer, 0, STEP - 1, withscores=True)
        jids = [jid.decode("utf-8", "replace") for jid, at in first if at <= now_ms]
        later = [at - now_ms for _, at in first if at > now_ms]
        places = await _places(store, shard, jids) if jids else []
    jobs = [(jid, queue, owner) for jid, (queue, owner) in zip(jids, places, strict=True)]
    return Due(jobs, min(later) if later else None)


async def queues(store: Store, shard: int) -> list[str]:
    """Every queue that a shard has ever had a job in, by name."""
    with reaching(store.connections.place):
        names = await store.redis.smembers(store.keys(shard).queues)
    return sorted(name.decode("utf-8", "replace") for name in names)


async def held_by(store: Store, shard: int, queue: str, worker: str, *, after: bytes = b"") -> list[Entry]:
    """What is pending under a worker's name in one queue, at most a step, oldest first; younger than `after`."""
    stream = store.keys(shard).stream(queue)
    with reaching(store.connections.place):
        if not await store.redis.exists(stream):
            return []
        try:
            pending = await store.redis.xpending_range(stream, GROUP, b"(" + after if after else "-", "+", STEP, worker)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            return []  # a queue that nobody has ever read
        ids = [_entry_id(each) for each in pending]
        if not ids:
            return []
        pipe = store.redis.pipeline(transaction=False)
        for entry_id in ids:
            pipe.xrange(stream, entry_id, entry_id)
        found = await pipe.execute()
    return [read_entry(shard, queue, entry_id, _flat(entries)) for entry_id, entries in zip(ids, found, strict=True)]


async def holders(store: Store, shard: int) -> set[str]:
    """Everybody under whose name something is pending in a shard, whether on the roster or not."""
    found: set[str] = set()
    names = await queues(store, shard)
    for start in range(0, len(names), STEP):
        with reaching(store.connections.place):
            pipe = store.redis.pipeline(transaction=False)
            for queue in names[start : start + STEP]:
                pipe.xpending(store.keys(shard).stream(queue), GROUP)
            for answer in await answered(pipe):  # None: a queue that nobody has ever read
                found.update(each["name"].decode("utf-8", "replace") for each in (answer or {}).get("consumers", ()))
    return found


async def answered(pipe: Client) -> list[Any]:
    """
    The answers of a pipeline, None for what this server will not do with what it holds: an odd key hides no other one.

    Raise redis-py's errors for troubles of the server.
    """
    answers = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception) and named(answer) is not None:
            raise answer
    return [None if isinstance(answer, Exception) else answer for answer in answers]


async def _places(store: Store, shard: int, jids: Sequence[str]) -> list[tuple[str, str]]:
    pipe = store.redis.pipeline(transaction=False)
    for jid in jids:
        pipe.hmget(store.keys(shard).job(jid), "queue", "owner")
    fields = [found or (None, None) for found in await answered(pipe)]
    return [(text(queue) or "", text(owner) or "") for queue, owner in fields]


def _entry_id(pending: Any) -> bytes:
    found = pending["message_id"] if isinstance(pending, dict) else pending[0]
    return bytes(found)


def _flat(entries: Any) -> list[bytes] | None:
    """Fields and values in turn, as a raw read gives them; redis-py has made a dict of them here."""
    if not entries or not entries[0][1]:
        return None
    return [part for pair in entries[0][1].items() for part in pair]
