"""
Dead letters one by one: found by their id, and counted through in bounded steps.

An id names its shard too (`0/1700000000000-0`), so that one id is enough to find its letter.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from busq.store.connection import reaching
from busq.store.reader import DeadLetter, _letter
from busq.store.store import Store

STEP = 100

_ID = re.compile(r"(\d{1,4})/(\d{1,20}-\d{1,20})\Z")


async def find(store: Store, letter_id: str) -> DeadLetter | None:
    """The letter of this id; None when there is none, or when it cannot be the id of one."""
    parts = _ID.match(letter_id)
    if parts is None or int(parts[1]) >= store.shards:
        return None
    shard = int(parts[1])
    with reaching(store.connections.place):
        letters = await store.redis.xrange(store.keys(shard).dead, parts[2], parts[2], count=1)
    return _letter(shard, letters[0][0], letters[0][1]) if letters else None


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
