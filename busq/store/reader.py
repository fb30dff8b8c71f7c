"""
Questions asked by people: one job, lists, counts, who works, what died.

Read-only and bounded: no answer takes longer the more jobs there are. A job that has been decided to stop is shown so,
whether its record says it yet or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from busq.errors import JobNotFound
from busq.protocol.job import Event, Job, LoggedEvent, event_from_line, history_from_record, text
from busq.protocol.states import State
from busq.store import counts, letters, listing, roster, suspects, watch
from busq.store.connection import reaching
from busq.store.counts import Stats
from busq.store.letters import DeadLetter
from busq.store.listing import Listing, shown
from busq.store.roster import Member
from busq.store.store import Store
from busq.store.suspects import Suspect


class Reader:
    def __init__(self, store: Store) -> None:
        self._store = store

    # One job -----------------------------------------------------------------------------------------------

    async def job(self, jid: str) -> Job:
        """The record of one job. Raise `JobNotFound`."""
        (look,) = await self._store.look(self._store.shard_of(jid), [jid])
        if b"state" not in look.record:
            raise JobNotFound(jid)
        return shown(jid, look)

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
        return await listing.found(self._store, states=states, kind=kind, queue=queue, group=group, limit=limit)

    # The bus -----------------------------------------------------------------------------------------------

    async def now(self) -> datetime:
        """The server's present moment."""
        return datetime.fromtimestamp(await watch.server_now_ms(self._store) / 1000, UTC)

    async def stats(self) -> Stats:
        """Jobs by state, queues, totals."""
        return await counts.counted(self._store)

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
        return await letters.listed(self._store, limit=limit)

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


def _logged(shard: int, entry_id: bytes, lines: Iterable[bytes]) -> Iterator[LoggedEvent]:
    """The lines that share an entry, and the jobs that share a line: each is numbered in there."""
    number = 0
    for line in lines:
        jids, _, rest = line.partition(b"\t")
        event = event_from_line(rest)
        for jid in jids.split(b" "):
            number += 1
            yield LoggedEvent(id=f"{shard}/{entry_id.decode()}-{number}", jid=text(jid) or "", event=event)
