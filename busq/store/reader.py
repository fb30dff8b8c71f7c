"""
Questions asked by people: one job, lists, counts, who works, what died.

Read-only and bounded: a list never walks further than its limit and one step allow, however many jobs there are. A job
that has been decided to stop is shown so, whether its record says it yet or not.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from busq.errors import BadRecord, JobNotFound
from busq.protocol.job import (
    Event,
    Job,
    LoggedEvent,
    decided,
    event_from_line,
    history_from_record,
    job_from_record,
    moment,
    text,
)
from busq.protocol.keys import GROUP
from busq.protocol.states import State
from busq.store import roster, suspects, watch
from busq.store.connection import reaching
from busq.store.forms import Look
from busq.store.roster import Member
from busq.store.store import Store
from busq.store.suspects import Suspect

STEP = 200  # members of an index in one step of a list
RECORDS = 50  # whole records in one script call: about half a millisecond of the server's
SCAN_MOST = 20_000  # members looked at for one list, however rare the matches are


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """One queue: entries that nobody has read, entries that workers hold, and the age of the oldest unread (s)."""

    queue: str
    ready: int
    held: int
    oldest_s: float | None


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """
    The bus in numbers.

    `now` counts live jobs by state; for `succeeded`, `failed`, `cancelled` it counts records that are still kept.
    `total` counts since the bus was made, `endings` how the execution of cancelled jobs ended, `verdicts` what was
    answered to cancels of single jobs. `rules` are live cancels by filter, `settling` those of them whose hits are
    still being written to the records.
    """

    now: dict[str, int]
    total: dict[str, int]
    queues: list[QueueStats]
    suspects: int
    dead: int
    rules: int = 0
    settling: int = 0
    endings: dict[str, int] = {}
    verdicts: dict[str, int] = {}


class Listing(msgspec.Struct, frozen=True):
    """
    Jobs that match. `looked_at` were looked at for them; `more`: there may be others, for not all were.
    """

    jobs: list[Job]
    looked_at: int
    more: bool


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


class Reader:
    def __init__(self, store: Store) -> None:
        self._store = store

    # One job -----------------------------------------------------------------------------------------------

    async def job(self, jid: str) -> Job:
        """The record of one job. Raise `JobNotFound`."""
        (look,) = await self._store.look(self._store.shard_of(jid), [jid])
        if b"state" not in look.record:
            raise JobNotFound(jid)
        return _shown(jid, look)

    async def history(self, jid: str) -> list[Event]:
        """What happened to one job, oldest first. Raise `JobNotFound`."""
        with reaching(self._store.connections.place):
            record: Mapping[bytes, bytes] = await self._store.redis.hgetall(self._store.job_key(jid))
        if b"state" not in record:
            raise JobNotFound(jid)
        return history_from_record(record)

    # Lists -------------------------------------------------------------------------------------------------

    async def jobs(
        self,
        *,
        states: Sequence[State] = (),
        kind: str | None = None,
        queue: str | None = None,
        group: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Jobs that match, live ones first, newest endings first; at most `limit`."""
        return (await self.listing(states=states, kind=kind, queue=queue, group=group, limit=limit)).jobs

    async def listing(
        self,
        *,
        states: Sequence[State] = (),
        kind: str | None = None,
        queue: str | None = None,
        group: str | None = None,
        limit: int = 100,
    ) -> Listing:
        """The same, and whether all that there is was looked at."""
        filters = {name: value for name, value in (("kind", kind), ("queue", queue), ("group", group)) if value}
        found: list[Job] = []
        seen: set[str] = {""}
        looked_at = 0
        for shard in range(self._store.shards):
            async for jids in self._candidates(shard, set(states or State), queue):
                looked_at += len(jids)
                fresh = [jid for jid in jids if jid not in seen]
                seen.update(fresh)
                fitting = await self._fitting(shard, fresh, filters)
                for start in range(0, len(fitting), RECORDS):
                    records = await self._records(shard, fitting[start : start + RECORDS])
                    found += [job for job in records if not states or job.state in states]
                    if len(found) >= limit:
                        break
                if len(found) >= limit or looked_at >= SCAN_MOST:
                    return Listing(found[:limit], looked_at, more=True)
        return Listing(found, looked_at, more=False)

    async def _fitting(self, shard: int, jids: Sequence[str], filters: Mapping[str, str]) -> Sequence[str]:
        """Those whose record says so: three short fields, before the whole of it is asked for."""
        if not jids or not filters:
            return jids
        with reaching(self._store.connections.place):
            pipe = self._store.redis.pipeline(transaction=False)
            for jid in jids:
                pipe.hmget(self._store.keys(shard).job(jid), *filters)
            told = await watch.answered(pipe)
        wanted = list(filters.values())
        return [jid for jid, values in zip(jids, told, strict=True) if [*map(text, values or ())] == wanted]

    async def _candidates(self, shard: int, states: set[State], queue: str | None) -> AsyncIterator[list[str]]:
        """Jids that may be in one of these states, from the indexes that know; a step at a time."""
        keys = self._store.keys(shard)
        if states & {State.RUNNING, State.CANCELLING, State.QUEUED}:
            walk = self._entries if State.QUEUED in states else self._held
            for name in await watch.queues(self._store, shard):
                if queue in (None, name):
                    async for jids in walk(keys.stream(name)):
                        yield jids
        ended = {State.SUCCEEDED: keys.succeeded, State.FAILED: keys.failed, State.CANCELLED: keys.cancelled_jobs}
        if State.SCHEDULED in states:
            async for jids in self._members(keys.scheduled, newest_first=False):
                yield jids
        if State.CANCELLED in states and await self._is_settling(shard):
            left = SCAN_MOST // 2  # so that those whose records say it are come by as well
            async for jids in self._not_started(shard):
                yield jids
                left -= len(jids)
                if left <= 0:
                    break
        if states & {State.CANCELLING, State.WAITING}:
            async for jids in self._members(keys.waiting, newest_first=False):
                yield jids
            async for jids in self._members(keys.deadlines, newest_first=False):
                yield jids
        for state, key in ended.items():
            if state in states:
                async for jids in self._members(key, newest_first=True):
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

    async def _not_started(self, shard: int) -> AsyncIterator[list[str]]:
        """What may have been decided to stop while its record does not say so yet."""
        keys = self._store.keys(shard)
        for queue in await watch.queues(self._store, shard):
            async for jids in self._entries(keys.stream(queue)):
                yield jids
        async for jids in self._members(keys.scheduled, newest_first=False):
            yield jids

    async def _is_settling(self, shard: int) -> bool:
        """Whether there are rules, or cancelled parents, of which not every record has been told."""
        keys = self._store.keys(shard)
        with reaching(self._store.connections.place):
            newest, walked = await self._store.redis.hmget(keys.rules, "newest", "walked")
            cascades = await self._store.redis.exists(keys.cascades)
        return bool(cascades) or int(newest or 0) > int(walked or 0)

    async def _records(self, shard: int, jids: Sequence[str]) -> list[Job]:
        if not jids:
            return []
        try:
            looks = await self._store.look(shard, jids)
        except BadRecord:  # some key is no record: each by itself then
            return [] if len(jids) == 1 else [job for jid in jids for job in await self._records(shard, [jid])]
        found = []
        for jid, look in zip(jids, looks, strict=True):
            with suppress(BadRecord):  # a list shows what it can read
                if b"state" in look.record:
                    found.append(_shown(jid, look))
        return found

    # Numbers -----------------------------------------------------------------------------------------------

    async def stats(self) -> Stats:
        now: dict[str, int] = dict.fromkeys(State, 0)
        total: dict[str, int] = {}
        endings: dict[str, int] = {}
        verdicts: dict[str, int] = {}
        queues: dict[str, QueueStats] = {}
        suspected = dead = rules = settling = 0
        for shard in range(self._store.shards):
            keys = self._store.keys(shard)
            with reaching(self._store.connections.place):
                pipe = self._store.redis.pipeline(transaction=False)
                pipe.hgetall(keys.counters)
                for index in (
                    keys.scheduled, keys.waiting, keys.deadlines, keys.succeeded, keys.failed, keys.cancelled_jobs,
                    keys.suspects,
                ):  # fmt: skip
                    pipe.zcard(index)
                pipe.xlen(keys.dead)
                pipe.zcount(keys.waiting, "+inf", "+inf")  # cancelling, and their attempts have ended
                pipe.zcount(keys.cancelled, "+inf", "+inf")  # cancelling, or cancelled with an entry still unread
                pipe.hkeys(keys.rules)
                pipe.hget(keys.rules, "walked")
                counters, *counts, held_rules, walked = await pipe.execute()
            scheduled, waiting, cancelling, *ended, letters, parked, marked = counts
            live = [int(number) for number in held_rules if number.isdigit()]
            rules = max(rules, len(live))
            settling = max(settling, sum(number > int(walked or 0) for number in live))
            for name, count in counters.items():
                sort, _, word = name.decode().rpartition(":")
                counted = {"ended": endings, "verdict": verdicts}.get(sort, total)
                so_far = counted.get(word, 0)
                # A rule is decided in every shard, and is one rule all the same.
                counted[word] = max(so_far, int(count)) if name == b"rules" else so_far + int(count)
            own = [await self._queue(shard, queue) for queue in await watch.queues(self._store, shard)]
            held = sum(each.held for each in own)
            now[State.SCHEDULED] += scheduled
            now[State.WAITING] += waiting - parked
            now[State.CANCELLING] += cancelling
            now[State.QUEUED] += max(0, sum(each.ready for each in own) - max(0, marked - cancelling))
            now[State.RUNNING] += max(0, held - (cancelling - parked))
            for state, count in zip((State.SUCCEEDED, State.FAILED, State.CANCELLED), ended, strict=False):
                now[state] += count
            suspected += ended[3]
            dead += letters
            for each in own:
                queues[each.queue] = _together(queues.get(each.queue), each)
        return Stats(
            now={str(state): count for state, count in now.items()},
            total=total,
            queues=sorted(queues.values(), key=lambda each: each.queue),
            suspects=suspected,
            dead=dead,
            rules=rules,
            settling=settling,
            endings=endings,
            verdicts=verdicts,
        )

    async def _queue(self, shard: int, queue: str) -> QueueStats:
        """Counted from the stream and its pending list; `lag` would be blind after some deletions."""
        stream = self._store.keys(shard).stream(queue)
        now_ms = await watch.server_now_ms(self._store, shard)
        with reaching(self._store.connections.place):
            length = await self._store.redis.xlen(stream)
            group: dict[str, Any] = {}
            if length and await self._store.redis.exists(stream):
                groups = await self._store.redis.xinfo_groups(stream)
                group = next((each for each in groups if each["name"] == GROUP), {})
            held = group.get("pending", 0)
            after = (group.get("last-delivered-id") or b"0-0").decode()
            oldest = await self._store.redis.xrange(stream, f"({after}", "+", count=1) if length > held else []
        age = (now_ms - int(oldest[0][0].split(b"-")[0])) / 1000 if oldest else None
        return QueueStats(
            queue=queue, ready=max(0, length - held), held=held, oldest_s=None if age is None else max(0.0, age)
        )

    # Processes, suspects, dead letters, the log ------------------------------------------------------------

    async def members(self) -> list[Member]:
        """Every worker and watchdog, each once, with its longest lease."""
        best: dict[str, Member] = {}
        for shard in range(self._store.shards):
            for member in await roster.members(self._store, shard):
                if member.name not in best or best[member.name].lease_ms < member.lease_ms:
                    best[member.name] = member
        return sorted(best.values(), key=lambda member: member.name)

    async def suspects(self) -> list[Suspect]:
        return [each for shard in range(self._store.shards) for each in await suspects.listed(self._store, shard)]

    async def dead(self, *, limit: int = 100) -> list[DeadLetter]:
        """Dead letters, oldest first, of every shard; an id names its shard too (`0/1700000000000-0`)."""
        found: list[DeadLetter] = []
        for shard in range(self._store.shards):
            with reaching(self._store.connections.place):
                letters = await self._store.redis.xrange(self._store.keys(shard).dead, count=limit)
            found += [_letter(shard, entry_id, fields) for entry_id, fields in letters]
        return found[:limit]

    async def bury_for_good(self, letter_id: str) -> bool:
        """Remove one dead letter; False when there is none of this id."""
        shard, _, entry_id = letter_id.partition("/")
        if not shard.isdigit() or int(shard) >= self._store.shards:
            return False
        with reaching(self._store.connections.place):
            return bool(await self._store.redis.xdel(self._store.keys(int(shard)).dead, entry_id))

    async def log(self, *, limit: int = 50) -> list[LoggedEvent]:
        """The newest lines of the bus-wide log, oldest first."""
        found: list[LoggedEvent] = []
        for shard in range(self._store.shards):
            with reaching(self._store.connections.place):
                entries = await self._store.redis.xrevrange(self._store.keys(shard).events, count=limit)
            for entry_id, fields in entries:
                found += _logged(shard, entry_id, fields.values())
        found.sort(key=lambda each: [int(part) for part in each.id.partition("/")[2].split("-")])
        return found[-limit:]


def _shown(jid: str, look: Look) -> Job:
    job = job_from_record(jid, look.record)
    if look.wish is None:
        return job
    cause, reason, source, scope = look.wish
    return decided(job, cause=cause, reason=reason, source=source, scope=scope)


def _logged(shard: int, entry_id: bytes, lines: Iterable[bytes]) -> Iterator[LoggedEvent]:
    """The lines that share an entry, and the jobs that share a line: each is numbered in there."""
    number = 0
    for line in lines:
        jids, _, rest = line.partition(b"\t")
        event = event_from_line(rest)
        for jid in jids.split(b" "):
            number += 1
            yield LoggedEvent(id=f"{shard}/{entry_id.decode()}-{number}", jid=text(jid) or "", event=event)


def _together(one: QueueStats | None, other: QueueStats) -> QueueStats:
    if one is None:
        return other
    ages = [age for age in (one.oldest_s, other.oldest_s) if age is not None]
    return QueueStats(
        queue=one.queue, ready=one.ready + other.ready, held=one.held + other.held, oldest_s=max(ages, default=None)
    )


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
