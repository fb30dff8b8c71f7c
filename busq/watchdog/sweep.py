"""
What the watchdog does for one shard: gather facts, ask the judgement, have the scripts carry it out.

    overdue cancels        finalize: whatever their worker's lease says            `finalize`, which must come in time

    a clock set back       bring near again what waits for a length of time        `sweep`, a pass of shares
    lost workers           reclaim what they held, then off the roster
    moments of jobs        cancel what has not started, or not ended, in time
    scheduled jobs         queue those that are due
    cancelled parents      pass their cancel on to their children
    rules                  settle what wide cancels have decided, job by job
    expired index members  prune

The two run beside each other, for a bound is promised to who waits for a cancel: no work that can wait may stand before
it, however much there is. Any number of watchdogs may do this at once: each step is a guarded script, and who comes
second hears `stale`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator

from busq import events
from busq.clock import Clock
from busq.config import Settings
from busq.errors import BusUnavailable
from busq.protocol.trouble import Trouble
from busq.store import roster, watch
from busq.store.store import Store
from busq.watchdog.setback import SetBack
from busq.watchdog.takeover import Takeover

SUSPECT_S = 86_400.0  # a suspect whose node has not been heard of for a day leaves the list
PRUNE_LIMIT = 500
PROMOTED = "job.promoted"  # no events of their own: they are told by their own records, and counted here
SETTLED = "job.settled_by_rule"
CASCADED = "job.cancelled_with_parent"
DONE = (
    events.JOB_FINALIZED, events.JOB_RECLAIMED, events.JOB_LOST, events.JOB_EXPIRED, events.WORKER_FORGOTTEN,
    events.SWEEP_FAILED, events.QUEUE_MENDED, PROMOTED, SETTLED, CASCADED,
)  # fmt: skip
"""What a watchdog counts, from 0 on: a figure that appears with its first event has no increase to alert on."""

FLOOD = 10  # steps of finalizing in one shard: then it is the next one's turn
STEPS = 50  # steps of each other kind in one pass, so that one flood does not keep the rest waiting
PASS_SHARE = 0.9  # of the interval: what these may take together, over all shards
SHARE = 1 / 3  # of what is left of that, for one kind of them; there are seven in a pass
JUDGED = 128  # jobs judged in one step of a rule: 1 to 2 ms of the server's time when none is hit
STOPPED = 60  # jobs stopped in one step of a rule, half as many with ties: 2 to 3 ms, which nobody else is served in
PASSED_ON = 50  # children stopped in one step of a cascade: the same
AT_ONCE = 0.0  # ms until something is due: there is more than one pass may do

log = events.logger("busq.watchdog")


class Sweeper:
    """
    One watchdog's view of one shard.

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
        self._set_back = SetBack(store, shard)
        self._takeover = Takeover(settings, store, shard, clock, self._done)
        self._over_at = 0.0
        self.hindered: BusUnavailable | None = None
        """What kept a step of the last sweep from being done, where the other steps could be."""

    async def finalize(self) -> float | None:
        """End the cancels that are past their deadline. Return in how many seconds the next one is, None for none."""
        now_ms = await watch.server_now_ms(self._store, self._shard)
        return await self._guarded(self._finalize_overdue, now_ms)

    async def sweep(self) -> float | None:
        """One pass over all else. Return in how many seconds the next moment or scheduled job is due, None for none."""
        self.hindered = None
        self._over_at = self._clock.monotonic() + self._settings.watchdog_interval_s * PASS_SHARE / self._store.shards
        now_ms = await watch.server_now_ms(self._store, self._shard)
        waits = []
        for step in (
            self._rewind,
            self._take_over_from_the_lost,
            self._expire_due,  # before the next: what is too old is not queued any more
            self._promote_due,
            self._cascade,
            self._carry_out,
            self._prune,
        ):
            try:
                waits.append(await self._guarded(step, now_ms))
            except BusUnavailable as error:
                if error.trouble is not Trouble.OUT_OF_MEMORY:
                    raise
                self.hindered = error  # it admits nothing new; what ends jobs is done all the same
        return min((wait for wait in waits if wait is not None), default=None)

    async def _guarded(self, step: Callable[[float], Awaitable[float | None]], now_ms: float) -> float | None:
        """One step; an odd record in it keeps no other step, and no other job, waiting. Return its wait in seconds."""
        try:
            wait_ms = await step(now_ms)
        except BusUnavailable:
            raise
        except Exception as error:
            self._done[events.SWEEP_FAILED] += 1
            name = getattr(step, "__name__", "step").strip("_")
            events.tell(log, events.SWEEP_FAILED, step=name, error=repr(error))
            return None
        return None if wait_ms is None else wait_ms / 1000

    def _steps_in_time(self, most: int = STEPS) -> Iterator[int]:
        """
        Steps of one kind: one at least, and no more once its share of this pass is over.

        What falls due meanwhile is looked for in the next pass only, and that shall come in time, however many shards
        and kinds of steps there are.
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
        for _ in range(FLOOD):
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
        cards = await roster.cards(self._store, self._shard, sorted(owners))
        return {owner for owner, card in cards.items() if roster.is_gone(card)}

    # A clock that was set back ---------------------------------------------------------------------------

    async def _rewind(self, now_ms: float) -> None:
        for _ in self._steps_in_time():
            if not await self._set_back.step():
                break

    # Workers that died -----------------------------------------------------------------------------------

    async def _take_over_from_the_lost(self, now_ms: float) -> float | None:
        await self._takeover.sight(now_ms)
        for _ in self._steps_in_time(STEPS * 10):
            if not await self._takeover.step():
                return None
        return AT_ONCE

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


def _by_queue(jobs: Iterable[tuple[str, str, str]]) -> dict[str, list[tuple[str, str]]]:
    gathered: dict[str, list[tuple[str, str]]] = {}
    for jid, queue, owner in jobs:
        gathered.setdefault(queue, []).append((jid, owner))
    return gathered
