"""
Taking over what lost workers held, one step at a time.

A dead worker may have held very many entries, and its shard may have very many queues. So this is a walk that stands
still between two steps, for as long as its caller likes: the next step goes on from there. What a step has taken over
is no longer held, so a walk that is broken off, or begun by several watchdogs at once, loses nothing but its way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable

import msgspec

from busq import events
from busq.clock import Clock
from busq.config import Settings
from busq.protocol.codec import ErrorInfo, encode_error
from busq.protocol.judgement import Sighting, is_lost
from busq.store import roster, suspects, watch
from busq.store.roster import Member
from busq.store.store import Store
from busq.store.streams import Entry

log = events.logger("busq.watchdog")

_TAKEN = {"reclaimed": events.JOB_RECLAIMED, "lost": events.JOB_LOST, "ended": events.JOB_FINALIZED}


def tell_taken(done: Counter[str], word: str, state: str, *, jid: str, queue: str, worker: str) -> bool:
    """Count and log what became of a job, by the word for it; nothing for other words. Return whether it was taken."""
    event = _TAKEN.get(word)
    if event is None:
        return False
    done[event] += 1
    events.tell(log, event, jid=jid, queue=queue, worker=worker, state=state)
    return True


class Takeover:
    """One watchdog's eye on the workers of one shard; it remembers from pass to pass who was heard of, and when."""

    def __init__(self, settings: Settings, store: Store, shard: int, clock: Clock, done: Counter[str]) -> None:
        self._settings = settings
        self._store = store
        self._shard = shard
        self._clock = clock
        self._done = done
        self._sightings: dict[str, Sighting] = {}
        self._now_ms = 0.0
        self._look_at = 0.0
        self._unlisted: set[str] = set()
        self._walk: AsyncGenerator[None, None] | None = None

    async def sight(self, now_ms: float) -> None:
        """See who is on the roster now; before the steps of each pass, for a worker may be back."""
        members = await roster.members(self._store, self._shard)
        members += await self._strangers({member.name for member in members})
        self._now_ms = now_ms
        self._note(members)
        if self._walk is None:
            lost = [member for member in members if self._is_lost(member.name)]
            self._walk = self._over(lost) if lost else None

    async def _strangers(self, known: set[str]) -> list[Member]:
        """
        Who holds entries and is on no roster; looked for once in a lease, for it is rare.

        A worker was forgotten while it held nothing, and the server gives it afterwards what it had asked for before.
        """
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + self._settings.lease_s
            self._unlisted = await watch.holders(self._store, self._shard)
        self._unlisted -= known
        return [Member(name=name, lease_ms=0.0, lease_until=None, card=None) for name in sorted(self._unlisted)]

    async def step(self) -> bool:
        """Go one step on. Return False when there is nothing left to do until the next sight."""
        if self._walk is None:
            return False
        try:
            await anext(self._walk)
        except BaseException as error:
            self._walk = None
            if isinstance(error, StopAsyncIteration):
                return False
            raise
        return True

    def _note(self, members: Iterable[Member]) -> None:
        now = self._clock.monotonic()
        seen = {}
        for member in members:
            before = self._sightings.get(member.name)
            same = before is not None and before.lease_ms == member.lease_ms
            seen[member.name] = before if same and before is not None else Sighting(member.lease_ms, now)
        self._sightings = seen

    def _is_lost(self, name: str) -> bool:
        sighting = self._sightings.get(name)
        return sighting is not None and is_lost(
            sighting, now=self._clock.monotonic(), server_now_ms=self._now_ms, beat_s=self._settings.beat_s
        )

    async def _over(self, lost: list[Member]) -> AsyncGenerator[None, None]:
        """The walk: worker by worker, queue by queue, from the oldest entry to the newest."""
        queues = await watch.queues(self._store, self._shard)
        for member in lost:
            gone = roster.is_gone(member.card)
            for queue in queues:
                after = b""  # on from there, so that what stays pending keeps nothing behind it waiting
                while self._is_lost(member.name):
                    held = await watch.held_by(self._store, self._shard, queue, member.name, after=after)
                    if not held or not await self._reclaim(member.name, gone, queue, held):
                        break
                    after = held[-1].id
                    yield
                yield
            if self._is_lost(member.name):
                await self._forget(member, gone, queues)
                yield

    async def _reclaim(self, worker: str, gone: bool, queue: str, held: list[Entry]) -> bool:
        """Take over one step of entries. Return False when nothing moved: the worker is back, or what is left stays."""
        events.tell(log, events.WORKER_LOST, worker=worker, queue=queue, held=len(held))
        moved = 0
        for entry in held:
            if entry.flaw:
                raw = msgspec.msgpack.encode(list(entry.raw))
                moved += await self._store.bury(self._shard, queue, entry.id, reason=entry.flaw, raw=raw) == "buried"
        jobs = [(entry.jid, entry.id) for entry in held if not entry.flaw]
        failure = encode_error(ErrorInfo("Lost", f"its worker was lost; the last one was {worker}"))
        answers = await self._store.reclaim(self._shard, queue, worker, jobs, owner_gone=gone, failure=failure)
        for (jid, entry_id), (word, state) in zip(jobs, answers, strict=True):
            if word == "missing":
                raw = msgspec.msgpack.encode([b"jid", jid.encode()])
                await self._store.bury(
                    self._shard, queue, entry_id, reason="unknown_jid: no record of this jid", raw=raw
                )
            tell_taken(self._done, word, state, jid=jid, queue=queue, worker=worker)
            moved += word != "alive"
        return moved > 0

    async def _forget(self, member: Member, gone: bool, queues: list[str]) -> None:
        if gone:
            await suspects.clear_owner(self._store, self._shard, member.name)
        elif any(each.owner == member.name for each in await suspects.listed(self._store, self._shard)):
            return  # its card stays, so that a watchdog beside it can tell when its process is gone
        if await self._store.forget(self._shard, member.name, queues) == "forgotten":
            self._done[events.WORKER_FORGOTTEN] += 1
            events.tell(log, events.WORKER_FORGOTTEN, worker=member.name)
