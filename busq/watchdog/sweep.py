"""
One pass of the watchdog over one shard: gather facts, ask the judgement, have the scripts carry it out.

    overdue cancels        finalize: whatever their worker's lease says
    a clock set back       bring near again what waits for a length of time
    lost workers           reclaim what they held, then off the roster
    moments of jobs        cancel what has not started, or not ended, in time
    cancelled parents      pass their cancel on to their children
    rules                  settle what wide cancels have decided, job by job
    scheduled jobs         queue those that are due
    expired index members  prune

Any number of watchdogs may do this at once: each step is a guarded script, and who comes second hears `stale`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import msgspec

from busq import events
from busq.clock import Clock
from busq.config import Settings
from busq.errors import BusUnavailable
from busq.protocol.codec import ErrorInfo, encode_error
from busq.protocol.judgement import Sighting, is_lost
from busq.protocol.trouble import Trouble
from busq.store import roster, suspects, watch
from busq.store.roster import Member, ProcessCard
from busq.store.store import Store
from busq.store.streams import Entry
from busq.watchdog.setback import SetBack

SUSPECT_S = 86_400.0  # a suspect whose node has not been heard of for a day leaves the list
PRUNE_LIMIT = 500
PROMOTED = "job.promoted"  # no events of their own: they are told by their own records, and counted here
SETTLED = "job.settled_by_rule"
CASCADED = "job.cancelled_with_parent"
DONE = (
    events.JOB_FINALIZED, events.JOB_RECLAIMED, events.JOB_LOST, events.JOB_EXPIRED, events.WORKER_FORGOTTEN,
    events.SWEEP_FAILED, PROMOTED, SETTLED, CASCADED,
)  # fmt: skip
"""What is counted of its passes."""

STEPS = 50  # steps of each kind in one pass, so that one flood does not keep the rest waiting
PASS_SHARE = 0.9  # of the interval: what the steps that can wait may take together, over all shards
SHARE = 1 / 3  # of what is left of that, for one kind of them; there are five in a pass
JUDGED = 128  # jobs judged in one step of a rule: 1 to 2 ms of the server's time when none is hit
STOPPED = 60  # jobs stopped in one step of a rule, half as many with ties: 2 to 3 ms, which nobody else is served in
PASSED_ON = 50  # children stopped in one step of a cascade: the same
AT_ONCE = 0.0  # ms until something is due: there is more than one pass may do

log = events.logger("busq.watchdog")


class Sweeper:
    """
    One watchdog's view of one shard; `sightings` is what it remembers from pass to pass.

    `done` counts by event what came of its passes, and `job.promoted` beside them; for the health page. `final` is told
    of each cancel that it ended, in seconds since the request.
    """

    def __init__(
        self, settings: Settings, store: Store, shard: int, clock: Clock, *, done: Counter[str] | None = None,
        final: Callable[[float], object] = lambda seconds: None,
    ) -> None:  # fmt: skip
        self._final = final
        self._done: Counter[str] = Counter() if done is None else done
        self._settings = settings
        self._store = store
        self._shard = shard
        self._clock = clock
        self._sightings: dict[str, Sighting] = {}
        self._set_back = SetBack(store, shard)
        self._over_at = 0.0
        self.hindered: BusUnavailable | None = None
        """What kept a step of the last pass from being done, where the other steps could be."""

    async def sweep(self) -> float | None:
        """One pass. Return in how many seconds the next deadline, moment or scheduled job is due, None for none."""
        self.hindered = None
        self._over_at = self._clock.monotonic() + self._settings.watchdog_interval_s * PASS_SHARE / self._store.shards
        now_ms = await watch.server_now_ms(self._store, self._shard)
        waits = []
        for step in (
            self._finalize_overdue,
            self._rewind,
            self._take_over_from_the_lost,
            self._expire_due,  # before the next: what is too old is not queued any more
            self._promote_due,
            self._cascade,
            self._carry_out,
            self._prune,
        ):
            try:
                wait_ms = await step(now_ms)
            except BusUnavailable as error:
                if error.trouble is not Trouble.OUT_OF_MEMORY:
                    raise
                self.hindered = error  # it admits nothing new; cancels are settled all the same
                continue
            except Exception as error:  # one odd record must not keep the other steps, and other jobs, waiting
                self._done[events.SWEEP_FAILED] += 1
                events.tell(log, events.SWEEP_FAILED, step=step.__name__.strip("_"), error=repr(error))
                continue
            if wait_ms is not None:
                waits.append(wait_ms / 1000)
        return min(waits) if waits else None

    def _steps_in_time(self, most: int = STEPS) -> Iterator[int]:
        """
        Steps of one kind that can wait: one at least, and no more once its share of this pass is over.

        A cancel that becomes overdue meanwhile is looked for in the next pass only, and that must come in time, however
        many shards and kinds of steps there are.
        """
        now = self._clock.monotonic()
        until = now + max(0.0, self._over_at - now) * SHARE
        for step in range(most):
            if step and self._clock.monotonic() >= until:
                return
            yield step

    async def _prune(self, now_ms: float) -> None:
        # Until nothing is left of what has expired: one step of each pass would be outrun by a busy bus.
        for _ in self._steps_in_time():
            if await self._store.prune(self._shard, limit=PRUNE_LIMIT, suspect_s=SUSPECT_S) < PRUNE_LIMIT:
                break

    # Cancels past their deadline -------------------------------------------------------------------------

    async def _finalize_overdue(self, now_ms: float) -> float | None:
        due = watch.Due([], None)
        for _ in range(STEPS):
            due = await watch.due(self._store, self._shard, self._store.keys(self._shard).deadlines, now_ms)
            if not due.jobs:
                break
            gone = await self._gone_among({owner for _, _, owner in due.jobs})
            for queue, jobs in _by_queue(due.jobs).items():
                overdue = [(jid, owner in gone) for jid, owner in jobs]
                answers = await self._store.finalize(self._shard, queue, overdue)
                for (jid, _), (word, _, asked_s) in zip(overdue, answers, strict=True):
                    if word == "finalized":
                        self._done[events.JOB_FINALIZED] += 1
                        self._final(asked_s)
                        events.tell(log, events.JOB_FINALIZED, jid=jid, queue=queue)
        return AT_ONCE if due.jobs else due.next_ms

    async def _gone_among(self, owners: set[str]) -> set[str]:
        cards = {member.name: member.card for member in await roster.members(self._store, self._shard)}
        return {owner for owner in owners if _is_gone(cards.get(owner))}

    async def _rewind(self, now_ms: float) -> None:
        for _ in self._steps_in_time():
            if not await self._set_back.step():
                break

    # Workers that died -----------------------------------------------------------------------------------

    async def _take_over_from_the_lost(self, now_ms: float) -> None:
        members = await roster.members(self._store, self._shard)
        self._sight(members)
        for member in members:
            if is_lost(
                self._sightings[member.name],
                now=self._clock.monotonic(),
                server_now_ms=now_ms,
                beat_s=self._settings.beat_s,
            ):
                await self._take_over(member)

    def _sight(self, members: Iterable[Member]) -> None:
        now = self._clock.monotonic()
        seen = {}
        for member in members:
            before = self._sightings.get(member.name)
            same = before is not None and before.lease_ms == member.lease_ms
            seen[member.name] = before if same and before is not None else Sighting(member.lease_ms, now)
        self._sightings = seen

    async def _take_over(self, member: Member) -> None:
        gone = _is_gone(member.card)
        queues = await watch.queues(self._store, self._shard)
        for queue in queues:
            for _ in range(STEPS):
                held = await watch.held_by(self._store, self._shard, queue, member.name)
                if not held:
                    break
                events.tell(log, events.WORKER_LOST, worker=member.name, queue=queue, held=len(held))
                if not await self._reclaim(member.name, gone, queue, held):
                    break
        await self._forget(member, gone, queues)

    async def _reclaim(self, worker: str, gone: bool, queue: str, held: list[Entry]) -> bool:
        """Take over one step of entries. Return False when nothing moved: the worker is back, or what is left stays."""
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
            if word in _TAKEN:
                self._done[_TAKEN[word]] += 1
                events.tell(log, _TAKEN[word], jid=jid, queue=queue, worker=worker, state=state)
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

    # Wide cancels ----------------------------------------------------------------------------------------

    async def _carry_out(self, now_ms: float) -> float | None:
        for _ in self._steps_in_time(STEPS * 10):
            word, hit = await self._store.carry_out(self._shard, step=JUDGED, hits=STOPPED)
            if hit:
                self._done[SETTLED] += hit
            if word == "idle":
                return None
            if word == "settled":
                events.tell(log, events.RULES_SETTLED, shard=self._shard)
        return AT_ONCE

    async def _cascade(self, now_ms: float) -> float | None:
        for _ in self._steps_in_time(STEPS * 10):
            word, hit = await self._store.cascade(self._shard, step=PASSED_ON)
            if hit:
                self._done[CASCADED] += hit
            if word == "idle":
                return None
        return AT_ONCE

    # Jobs whose time has come ----------------------------------------------------------------------------

    async def _expire_due(self, now_ms: float) -> float | None:
        due = watch.Due([], None)
        for _ in self._steps_in_time():
            due = await watch.due(self._store, self._shard, self._store.keys(self._shard).timers, now_ms)
            if not due.jobs:
                break
            jids = [jid for jid, _, _ in due.jobs]
            for jid, (word, _) in zip(jids, await self._store.expire(self._shard, jids), strict=True):
                if word in ("cancelled", "signalled"):
                    self._done[events.JOB_EXPIRED] += 1
                    events.tell(log, events.JOB_EXPIRED, jid=jid, answer=word)
        return AT_ONCE if due.jobs else due.next_ms

    async def _promote_due(self, now_ms: float) -> float | None:
        due = watch.Due([], None)
        for _ in self._steps_in_time():
            due = await watch.due(self._store, self._shard, self._store.keys(self._shard).scheduled, now_ms)
            if not due.jobs:
                break
            for queue, jobs in _by_queue(due.jobs).items():
                answers = await self._store.promote(self._shard, queue, [jid for jid, _ in jobs])
                self._done[PROMOTED] += sum(word == "promoted" for word, _ in answers)
        return AT_ONCE if due.jobs else due.next_ms


_TAKEN = {"reclaimed": events.JOB_RECLAIMED, "lost": events.JOB_LOST, "ended": events.JOB_FINALIZED}


def _is_gone(card: ProcessCard | None) -> bool:
    return card is not None and card.is_known_gone()


def _by_queue(jobs: Iterable[tuple[str, str, str]]) -> dict[str, list[tuple[str, str]]]:
    gathered: dict[str, list[tuple[str, str]]] = {}
    for jid, queue, owner in jobs:
        gathered.setdefault(queue, []).append((jid, owner))
    return gathered
