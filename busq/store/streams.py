"""
Reading entries: who takes what off which queue.

An entry carries a jid and a kind, nothing else; everything about the job is in its record. Whatever does not look
like that is kept as raw bytes for the dead letters. A read whose reply was lost leaves entries with the reader's
name on them that it never saw: `Streams.pending` finds those.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from busq import events
from busq.errors import BadJid, BusUnavailable
from busq.protocol.jids import check_jid
from busq.protocol.keys import GROUP
from busq.protocol.trouble import Trouble
from busq.store import apart
from busq.store.connection import BLOCK_MS, reaching
from busq.store.store import Store

Place = tuple[int, str]
"""A stream by its shard and its queue."""

PENDING_STEP = 500  # pending entries in one read
LOST = "lost"  # beside the birth mark; see losses.py

log = events.logger("busq.store")


class Entry(msgspec.Struct, frozen=True):
    """
    One entry as it was read.

    `jid` is "" when the entry is not ours to read: then `raw` holds its fields and values and `flaw` says what is
    wrong with it. An entry that was deleted while pending has no fields at all.
    """

    shard: int
    queue: str
    id: bytes
    jid: str
    kind: str
    raw: tuple[bytes, ...] = ()
    flaw: str = ""


class Streams:
    """The queues that one worker reads, over all shards."""

    def __init__(self, store: Store, queues: Sequence[str]) -> None:
        self._store = store
        self._client = store.connections.blocking()
        self._places: dict[bytes, Place] = {}
        self._queues = list(queues)
        self._trouble: Exception | None = None  # of a read that others did better than

    async def open(self) -> None:
        """Make the groups, from the very first entry on; safe to repeat, also after a server lost its data."""
        for shard in range(self._store.shards):
            for queue in self._queues:
                stream = self._store.keys(shard).stream(queue)
                made = await make_group(self._store, stream)
                if made and stream in self._places:
                    # Entries that were given to somebody may be given out again; the record knows whose they are.
                    events.tell(log, events.QUEUE_LOST, queue=queue, shard=shard)
                self._places[stream] = (shard, queue)

    @property
    def places(self) -> list[Place]:
        """Every stream that is read, as (shard, queue): a queue has one in each shard."""
        return list(self._places.values())

    async def read(self, places: Sequence[Place], *, each: int, block_ms: int = BLOCK_MS) -> list[Entry]:
        """
        New entries of these places, at most `each` of every one; waits up to `block_ms` (0: not at all).

        Raise `BusUnavailable`; entries of a read that failed may be pending under our name (`pending`).
        """
        with reaching(self._store.connections.place):
            try:
                if self._store.connections.apart:
                    heard = await self._read_apart(places, each, block_ms)
                else:
                    heard = await self._client.execute_command(*self._command(places, each, block_ms))
            except ResponseError as error:
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
                for shard in {shard for shard, _ in places}:
                    await mark_lost(self._store, shard)  # first: a group that is there again gives no sign any more
                await self.open()  # the server lost its data, or somebody removed the stream
                return []
        return self._entries(heard)

    async def _read_apart(self, places: Sequence[Place], each: int, block_ms: int) -> list[Any]:
        """
        A call for each shard. What some of them brought is not kept waiting for one that failed: that is raised by the
        next read, so that whoever reads looks through what is pending.
        """
        if (earlier := self._trouble) is not None:
            self._trouble = None
            raise earlier
        by_shard: dict[int, list[Place]] = {}
        for place in places:
            by_shard.setdefault(place[0], []).append(place)
        commands = [self._command(own, each, block_ms) for own in by_shard.values()]
        read = apart.read_blocked if block_ms else apart.read_at_once
        heard, trouble = await read(self._client, commands)
        if trouble is not None and not heard:
            raise trouble
        self._trouble = trouble
        return heard

    def _command(self, places: Sequence[Place], each: int, block_ms: int) -> tuple[bytes | str | int, ...]:
        streams = [self._store.keys(shard).stream(queue) for shard, queue in places]
        block = ("BLOCK", block_ms) if block_ms else ()
        return (
            "XREADGROUP", "GROUP", GROUP, self._store.by, "COUNT", each, *block, "STREAMS", *streams,
            *[">"] * len(streams),
        )  # fmt: skip

    async def pending(self) -> list[Entry]:
        """What stands under our own name: held already, or lost with a reply."""
        found: list[Entry] = []
        for stream in self._places:
            after = b"0"
            while some := await self._pending_after(stream, after):
                found += some
                after = some[-1].id
        return found

    async def _pending_after(self, stream: bytes, after: bytes) -> list[Entry]:
        command = ("XREADGROUP", "GROUP", GROUP, self._store.by, "COUNT", PENDING_STEP, "STREAMS", stream, after)
        with reaching(self._store.connections.place):
            try:
                return self._entries(await self._client.execute_command(*command))
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                return []

    def _entries(self, heard: Any) -> list[Entry]:
        found: list[Entry] = []
        for stream, listed in heard or ():
            shard, queue = self._places[stream]
            for entry_id, fields in listed:
                found.append(read_entry(shard, queue, entry_id, fields))
        return found


async def mark_lost(store: Store, shard: int) -> None:
    """
    Leave word of a loss; where this user may not, nothing: reading on is worth more. Raise `BusUnavailable`.
    """
    try:
        with reaching(store.connections.place):
            await store.redis.hset(store.keys(shard).birth, LOST, secrets.token_hex(8))
    except BusUnavailable as error:
        if error.trouble is not Trouble.FORBIDDEN:
            raise


async def make_group(store: Store, stream: bytes) -> bool:
    """Make the group of a stream, from its first entry on, and the stream. Return False when it was there."""
    with reaching(store.connections.place):
        try:
            await store.redis.execute_command("XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
            return False
    return True


def read_entry(shard: int, queue: str, entry_id: bytes, fields: Sequence[bytes] | None) -> Entry:
    """One entry, or what is wrong with it; never raises for whatever bytes it holds."""
    if fields and len(fields) == 4 and fields[0] == b"jid" and fields[2] == b"kind":
        try:
            return Entry(shard, queue, entry_id, check_jid(fields[1].decode("ascii")), fields[3].decode())
        except (BadJid, UnicodeDecodeError) as error:
            return Entry(shard, queue, entry_id, "", "", tuple(fields), f"bad_entry: {error}")
    if not fields:
        return Entry(shard, queue, entry_id, "", "", (), "deleted: the entry was removed while it was pending")
    return Entry(shard, queue, entry_id, "", "", tuple(fields), "bad_entry: fields other than jid and kind")
