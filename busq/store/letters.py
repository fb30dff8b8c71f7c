"""
Dead letters: listed, found by their id, gone through in bounded steps, removed.

An id names its shard too (`0/1700000000000-0`), so that one id is enough to find its letter.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from datetime import datetime

import msgspec

from busq.protocol.job import moment, text
from busq.store.connection import reaching
from busq.store.store import Store

STEP = 100

_ID = re.compile(r"(\d{1,4})/(\d{1,20}-\d{1,20})\Z")


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """What could not be run, with its bytes. `jid` is "" for an entry that was no job."""

    id: str
    reason: str
    at: datetime | None
    jid: str = ""
    kind: str = ""
    queue: str = ""
    payload: bytes = b""
    raw: list[bytes] = []


async def listed(store: Store, *, limit: int) -> list[DeadLetter]:
    """Oldest first, of one shard after the other; at most `limit`."""
    found: list[DeadLetter] = []
    for shard in range(store.shards):
        with reaching(store.connections.place):
            letters = await store.redis.xrange(store.keys(shard).dead, count=limit)
        found += [_letter(shard, entry_id, fields) for entry_id, fields in letters]
    return found[:limit]


async def find(store: Store, letter_id: str) -> DeadLetter | None:
    """The letter of this id; None when there is none, or when it cannot be the id of one."""
    parts = _ID.match(letter_id)
    if parts is None or int(parts[1]) >= store.shards:
        return None
    shard = int(parts[1])
    with reaching(store.connections.place):
        letters = await store.redis.xrange(store.keys(shard).dead, parts[2], parts[2], count=1)
    return _letter(shard, letters[0][0], letters[0][1]) if letters else None


async def remove(store: Store, letter_id: str) -> bool:
    """Remove one for good; False when there is none of this id."""
    parts = _ID.match(letter_id)
    if parts is None or int(parts[1]) >= store.shards:
        return False
    with reaching(store.connections.place):
        return bool(await store.redis.xdel(store.keys(int(parts[1])).dead, parts[2]))


async def steps(store: Store) -> AsyncIterator[list[str]]:
    """The ids of all letters, oldest first, a step at a time; what arrives meanwhile may or may not be among them."""
    for shard in range(store.shards):
        after = "-"
        while True:
            with reaching(store.connections.place):
                letters = await store.redis.xrange(store.keys(shard).dead, after, "+", count=STEP)
            if not letters:
                break
            ids = [entry_id.decode() for entry_id, _ in letters]
            yield [f"{shard}/{entry_id}" for entry_id in ids]
            after = f"({ids[-1]}"


def _letter(shard: int, entry_id: bytes, fields: Mapping[bytes, bytes]) -> DeadLetter:
    def word(name: bytes) -> str:
        return text(fields.get(name)) or ""

    return DeadLetter(
        id=f"{shard}/{entry_id.decode()}",
        reason=word(b"reason"),
        at=moment(fields.get(b"at")),
        jid=word(b"jid"),
        kind=word(b"kind"),
        queue=word(b"queue"),
        payload=fields.get(b"payload", b""),
        raw=_raw(fields.get(b"raw")),
    )


def _raw(data: bytes | None) -> list[bytes]:
    try:
        return msgspec.msgpack.decode(data, type=list[bytes]) if data else []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [data or b""]
