"""
Jobs that match: found through the indexes that know them, and no walk is longer than its limit and one step allow.

A job that has been decided to stop is shown so, whether its record says it yet or not.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress

import msgspec
from redis.exceptions import ResponseError

from busq.errors import BadRecord
from busq.protocol.job import Job, decided, job_from_record, text
from busq.protocol.keys import GROUP
from busq.protocol.states import State
from busq.store import watch
from busq.store.connection import reaching
from busq.store.forms import Look
from busq.store.store import Store

STEP = 200  # members of an index in one step of a list
RECORDS = 50  # whole records in one script call: about half a millisecond of the server's
SCAN_MOST = 20_000  # members looked at for one list, however rare the matches are


class Listing(msgspec.Struct, frozen=True):
    """
    Jobs that match. `looked_at` were looked at for them; `more`: there may be others, for not all were.
    """

    jobs: list[Job]
    looked_at: int
    more: bool


async def found(
    store: Store, *, states: Sequence[State], kind: str | None, queue: str | None, group: str | None, limit: int
) -> Listing:
    """Live ones first, newest endings first; at most `limit`."""
    filters = {name: value for name, value in (("kind", kind), ("queue", queue), ("group", group)) if value}
    jobs: list[Job] = []
    seen: set[str] = {""}
    looked_at = 0
    for shard in range(store.shards):
        async for jids in _Walk(store, shard).candidates(set(states or State), queue):
            looked_at += len(jids)
            fresh = [jid for jid in jids if jid not in seen]
            seen.update(fresh)
            fitting = await _fitting(store, shard, fresh, filters)
            for start in range(0, len(fitting), RECORDS):
                records = await _records(store, shard, fitting[start : start + RECORDS])
                jobs += [job for job in records if not states or job.state in states]
                if len(jobs) >= limit:
                    break
            if len(jobs) >= limit or looked_at >= SCAN_MOST:
                return Listing(jobs[:limit], looked_at, more=True)
    return Listing(jobs, looked_at, more=False)


def shown(jid: str, look: Look) -> Job:
    """A job as people are to see it. Raise `BadRecord`."""
    job = job_from_record(jid, look.record)
    if look.wish is None:
        return job
    cause, reason, source, scope = look.wish
    return decided(job, cause=cause, reason=reason, source=source, scope=scope)


async def _fitting(store: Store, shard: int, jids: Sequence[str], filters: Mapping[str, str]) -> Sequence[str]:
    """Those whose record says so: three short fields, before the whole of it is asked for."""
    if not jids or not filters:
        return jids
    with reaching(store.connections.place):
        pipe = store.redis.pipeline(transaction=False)
        for jid in jids:
            pipe.hmget(store.keys(shard).job(jid), *filters)
        told = await watch.answered(pipe)
    wanted = list(filters.values())
    return [jid for jid, values in zip(jids, told, strict=True) if [*map(text, values or ())] == wanted]


async def _records(store: Store, shard: int, jids: Sequence[str]) -> list[Job]:
    if not jids:
        return []
    try:
        looks = await store.look(shard, jids)
    except BadRecord:  # some key is no record: each by itself then
        return [] if len(jids) == 1 else [job for jid in jids for job in await _records(store, shard, [jid])]
    found = []
    for jid, look in zip(jids, looks, strict=True):
        with suppress(BadRecord):  # a list shows what it can read
            if b"state" in look.record:
                found.append(shown(jid, look))
    return found


class _Walk:
    """Through the indexes of one shard."""

    def __init__(self, store: Store, shard: int) -> None:
        self._store = store
        self._shard = shard
        self._keys = store.keys(shard)

    async def candidates(self, states: set[State], queue: str | None) -> AsyncIterator[list[str]]:
        """Jids that may be in one of these states, from the indexes that know; a step at a time."""
        if states & {State.RUNNING, State.CANCELLING, State.QUEUED}:
            walk = self._entries if State.QUEUED in states else self._held
            for name in await watch.queues(self._store, self._shard):
                if queue in (None, name):
                    async for jids in walk(self._keys.stream(name)):
                        yield jids
        if State.SCHEDULED in states:
            async for jids in self._members(self._keys.scheduled, newest_first=False):
                yield jids
        if State.CANCELLED in states and await self._is_settling():
            left = SCAN_MOST // 2  # so that those whose records say it are come by as well
            async for jids in self._not_started():
                yield jids
                left -= len(jids)
                if left <= 0:
                    break
        if states & {State.CANCELLING, State.WAITING}:
            async for jids in self._members(self._keys.waiting, newest_first=False):
                yield jids
            async for jids in self._members(self._keys.deadlines, newest_first=False):
                yield jids
        for state, index in (
            (State.SUCCEEDED, self._keys.succeeded),
            (State.FAILED, self._keys.failed),
            (State.CANCELLED, self._keys.cancelled_jobs),
        ):
            if state in states:
                async for jids in self._members(index, newest_first=True):
                    yield jids

    async def _held(self, stream: bytes) -> AsyncIterator[list[str]]:
        """Of a queue's entries those that workers hold, however many wait behind them."""
        after = "-"
        while True:
            with reaching(self._store.connections.place):
                try:
                    pending = await self._store.redis.xpending_range(stream, GROUP, after, "+", STEP)
                except ResponseError as error:
                    if not str(error).startswith("NOGROUP"):
                        raise
                    return  # a queue that nobody has ever read
                if not pending:
                    return
                ids = [each["message_id"] for each in pending]
                pipe = self._store.redis.pipeline(transaction=False)
                for entry_id in ids:
                    pipe.xrange(stream, entry_id, entry_id)
                found = await pipe.execute()
            yield [text((fields or {}).get(b"jid")) or "" for entries in found for _, fields in entries or [(b"", {})]]
            after = "(" + ids[-1].decode()

    async def _entries(self, stream: bytes) -> AsyncIterator[list[str]]:
        after = b"-"
        while True:
            with reaching(self._store.connections.place):
                entries = await self._store.redis.xrange(stream, after.decode(), "+", count=STEP)
            if not entries:
                return
            yield [text((fields or {}).get(b"jid")) or "" for _, fields in entries]
            after = b"(" + entries[-1][0]

    async def _members(self, index: bytes, *, newest_first: bool) -> AsyncIterator[list[str]]:
        for start in itertools.count(0, STEP):
            with reaching(self._store.connections.place):
                members = await self._store.redis.zrange(index, start, start + STEP - 1, desc=newest_first)
            if not members:
                return
            yield [text(member) or "" for member in members]

    async def _not_started(self) -> AsyncIterator[list[str]]:
        """What may have been decided to stop while its record does not say so yet."""
        for queue in await watch.queues(self._store, self._shard):
            async for jids in self._entries(self._keys.stream(queue)):
                yield jids
        async for jids in self._members(self._keys.scheduled, newest_first=False):
            yield jids

    async def _is_settling(self) -> bool:
        """Whether there are rules, or cancelled parents, of which not every record has been told."""
        with reaching(self._store.connections.place):
            newest, walked = await self._store.redis.hmget(self._keys.rules, "newest", "walked")
            cascades = await self._store.redis.exists(self._keys.cascades)
        return bool(cascades) or int(newest or 0) > int(walked or 0)
