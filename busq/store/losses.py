"""
Queues that lost entries: somebody removed a stream or its group while jobs were behind it.

Who finds a group gone writes a word beside the birth mark of the shard, before it makes the group again. The word stays
until a watchdog has looked through the records and says that it has dealt with that very word.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from busq.protocol.job import text
from busq.protocol.states import State
from busq.store import watch
from busq.store.connection import reaching
from busq.store.store import Store
from busq.store.streams import LOST
from busq.store.watch import answered

STEP = 200  # keys in one step of the search
MENDED = "mended"


class Stranded(msgspec.Struct, frozen=True):
    """A job whose entry is not in its stream; `owner` "": it is queued. `held`: that worker's lease is good."""

    jid: str
    queue: str
    entry: bytes
    owner: str
    held: bool = False


async def lost_word(store: Store, shard: int) -> bytes | None:
    """The word of a loss that nobody has dealt with, None for none."""
    with reaching(store.connections.place):
        lost, mended = await store.redis.hmget(store.keys(shard).birth, LOST, MENDED)
    return None if lost is None or lost == mended else bytes(lost)


async def mark_mended(store: Store, shard: int, word: bytes) -> None:
    with reaching(store.connections.place):
        await store.redis.hset(store.keys(shard).birth, MENDED, word)


async def stranded(store: Store, shard: int) -> AsyncIterator[list[Stranded]]:
    """
    Jobs that no entry leads to, step by step. A hint: the script judges again on the record.

    A look at every record of the shard; several hundred thousand take seconds, in which others are served.
    """
    prefix = store.keys(shard).job("")
    server = store.connections.near(prefix)
    cursor = None
    while cursor != 0:
        with reaching(store.connections.place):
            cursor, keys = await server.scan(cursor or 0, match=_literal(prefix) + b"*", count=STEP)
            # Of a jid of ours nothing is replaced.
            names = [key[len(prefix) :].decode("utf-8", "replace") for key in keys]
            found = await _without_entry(store, shard, names)
        if found:
            yield found


async def _without_entry(store: Store, shard: int, jids: list[str]) -> list[Stranded]:
    keys = store.keys(shard)
    pipe = store.redis.pipeline(transaction=False)
    for jid in jids:
        pipe.hmget(keys.job(jid), "state", "queue", "entry", "owner")
    now_ms = await watch.server_now_ms(store, shard)
    candidates = []
    for jid, fields in zip(jids, await answered(pipe), strict=True):
        state, queue, entry, owner = fields or (None,) * 4
        if entry and text(state) in (State.QUEUED, State.RUNNING, State.CANCELLING):
            holder = "" if text(state) == State.QUEUED else text(owner) or ""
            candidates.append(Stranded(jid, text(queue) or "", entry, holder))
    if not candidates:
        return []
    pipe = store.redis.pipeline(transaction=False)
    for each in candidates:
        pipe.xrange(keys.stream(each.queue), each.entry, each.entry)
        pipe.zscore(keys.workers, each.owner)
    answers = await answered(pipe)
    return [
        msgspec.structs.replace(each, held=lease is not None and lease > now_ms)
        for each, entries, lease in zip(candidates, answers[::2], answers[1::2], strict=True)
        if entries == []
    ]


def _literal(prefix: bytes) -> bytes:
    """The prefix as a pattern that means itself: a namespace may hold no more than letters, digits and _ . -"""
    return prefix.replace(b"{", rb"\{").replace(b"}", rb"\}")
