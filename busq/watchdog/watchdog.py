"""
The watchdog: the sidecar that finalizes overdue cancels and looks after jobs whose worker died.

It needs no application code, holds no job, and any number of them may run. It stands on the roster like a worker, so
that operators see whether one is there. It has three duties, and each of them a loop of its own:

    finalizing   cancels past their deadline   when the next one is due, and every interval: by then they are promised
    pass         all else that falls due       every interval, each kind of work with its share of one
    mending      queues that lost entries      every second; looks through every record where there is one

What one of them finds to do, and how long that takes, keeps the others waiting for the loop's next turn at the most.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from busq import events, tasks
from busq.clock import Clock, SystemClock
from busq.config import Settings
from busq.errors import BadRecord, BusUnavailable
from busq.protocol.trouble import Trouble
from busq.store import figures
from busq.store.counts import Stats
from busq.store.figures import Figures
from busq.store.lineage import Lineage
from busq.store.outage import Backoff, Outage
from busq.store.reader import Reader
from busq.store.roster import process_card, process_name
from busq.store.store import Store
from busq.watchdog import health, mend
from busq.watchdog.health import BOUNDED, FINALIZING, MENDING, PASS
from busq.watchdog.sweep import DONE, Sweeper

MEND_EVERY_S = 1.0  # looks for queues that lost entries
SOONEST_S = 0.02  # between two rounds, however soon something is due

T = TypeVar("T")

log = events.logger("busq.watchdog")


class Watchdog:
    """`final` is told of each cancel that it ended, in seconds since the request."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        final: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        self.name = process_name(settings)
        self.started = False
        self._settings = settings
        self._clock = clock or SystemClock()
        self._store = Store(settings, by=self.name, clock=self._clock)
        self._card = process_card("watchdog", settings.host or "")
        self._outage = Outage(log, clock=self._clock)
        self._lineage = Lineage(self._store, log)
        self._stop = asyncio.Event()
        self._seen_at = float("-inf")
        self._mend_at: dict[int, float] = {}
        self._began = self._clock.monotonic()
        self._done_at: dict[str, float] = {}
        self._passes = 0
        self._done: Counter[str] = Counter(dict.fromkeys(DONE, 0))
        self._final = final
        self._finalizing: tasks.Abreast[float | None] = tasks.Abreast()
        self._passing: tasks.Abreast[float | None] = tasks.Abreast()
        self._keeping: tasks.Abreast[None] = tasks.Abreast()
        self._mending: tasks.Abreast[None] = tasks.Abreast()

    @property
    def last_pass(self) -> float | None:
        """When cancels were last finalized and all else looked after: the older of both; None before each was once."""
        return min(self._done_at.values()) if len(self._done_at) == len(BOUNDED) else None

    def stop(self) -> None:
        """End after the present pass. Safe in a signal handler of the loop."""
        self._stop.set()

    async def run(self) -> None:
        """Watch until `stop` is called. Raise `BusUnavailable` or `ConfigError` when it cannot start."""
        await self._begin()
        sweepers = [
            Sweeper(self._settings, self._store, shard, self._clock, done=self._done, final=self._final)
            for shard in range(self._store.shards)
        ]
        self.started = True
        events.tell(log, events.WATCHDOG_STARTED, watchdog=self.name, interval_s=self._settings.watchdog_interval_s)
        promised = asyncio.create_task(self._repeat(FINALIZING, partial(self._finalize, sweepers)))
        passing = asyncio.create_task(self._repeat(PASS, partial(self._pass, sweepers)))
        mending = asyncio.create_task(self._repeat(MENDING, self._mend))
        try:
            await asyncio.gather(promised, passing)
        finally:
            await tasks.end(promised, passing, mending)
            for abreast in (self._finalizing, self._passing, self._keeping, self._mending):
                await abreast.end()
        await self._leave()
        events.tell(log, events.WATCHDOG_STOPPED, watchdog=self.name)

    async def _begin(self) -> None:
        await self._store.open()
        try:
            await self._store.keep_able()
        except BusUnavailable as error:
            if not self._store.connections.apart:
                raise
            self._outage.began(PASS, error)  # the jobs of the servers that are there are looked after as ever

    async def _repeat(self, duty: str, work: Callable[[], Awaitable[float | None]]) -> None:
        """One duty over and over, with the pause that it asks for; where Redis is away, until it is back."""
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                wait = await work()
                if wait is None:  # some server has not answered yet, which is neither good nor bad
                    wait = SOONEST_S
                else:
                    self._outage.fine(duty)
                    backoff.reset()
            except BusUnavailable as error:
                self._outage.began(duty, error)
                wait = backoff.pause_s()
                if duty == FINALIZING or self._store.connections.apart:  # other servers' jobs are looked after as ever
                    wait = min(wait, self._settings.watchdog_interval_s)
            await self._sleep(wait)

    def health(self) -> health.Health:
        """How it fares, at any moment of its life. Call it in its loop."""
        now = self._clock.monotonic()
        return health.examine(
            name=self.name,
            uptime_s=now - self._began,
            outage=self._outage,
            history_changes=self._lineage.changes,
            data_losses=self._lineage.losses,
            started=self.started,
            stopping=self._stop.is_set(),
            interval_s=self._settings.watchdog_interval_s,
            last_pass_s_ago=None if self.last_pass is None else now - self.last_pass,
            passes=self._passes,
            done=self._done,
        )

    async def stats(self) -> Stats:
        """The bus in numbers. Raise `BusUnavailable`."""
        await self._store.open()
        return await Reader(self._store).stats()

    async def figures(self) -> Figures:
        """The bus in figures. Raise `BusUnavailable`."""
        await self._store.open()
        return await figures.read(self._store, Reader(self._store))

    async def sweep_once(self) -> None:
        """One pass over every shard, for those who drive the watchdog themselves."""
        await self._store.open()
        for shard in range(self._store.shards):
            sweeper = Sweeper(self._settings, self._store, shard, self._clock)
            await sweeper.finalize()
            await sweeper.sweep()

    async def _finalize(self, sweepers: list[Sweeper]) -> float | None:
        """End what is past its deadline in every shard. Return how long to wait, None while some of it goes on."""
        interval_s = self._settings.watchdog_interval_s
        waits = await self._in_every_shard(
            self._finalizing, lambda shard: sweepers[shard].finalize(), within_s=interval_s / 2
        )
        return self._done_with(FINALIZING, waits)

    async def _pass(self, sweepers: list[Sweeper]) -> float | None:
        """One pass over every shard. Return how long to wait for the next, None while some of it goes on."""
        interval_s = self._settings.watchdog_interval_s
        to_be_seen = self._clock.monotonic() - self._seen_at >= self._settings.beat_s

        async def look_after(shard: int) -> float | None:
            try:
                if to_be_seen:
                    await self._store.renew(shard, [], info=self._card.encoded())
                if await self._lineage.look(shard):
                    self._seen_at = float("-inf")  # nothing written of us is certain to be there any more
            except BadRecord as error:  # somebody else wrote there; jobs are looked after all the same
                self._done[events.SWEEP_FAILED] += 1
                events.tell(log, events.SWEEP_FAILED, step="be_seen", error=str(error))
            return await sweepers[shard].sweep()

        if to_be_seen and self._store.connections.apart:
            with suppress(BusUnavailable):  # the round says so
                await self._keeping.round([0], lambda _: self._store.keep_able(), within_s=interval_s)
        elif to_be_seen:
            await self._store.keep_able()
        if to_be_seen:
            self._seen_at = self._clock.monotonic()
        waits = await self._in_every_shard(self._passing, look_after, within_s=interval_s)
        if waits is not None:
            self._passes += 1
            self._tell_hindered(sweepers)
        return self._done_with(PASS, waits)

    async def _in_every_shard(
        self, abreast: tasks.Abreast[T], work: Callable[[int], Coroutine[Any, Any, T]], *, within_s: float
    ) -> list[T] | None:
        """What `work` gave for each shard; None while some of it goes on, at another server."""
        shards = range(self._store.shards)
        if self._store.connections.apart:  # one server that is away must not keep the jobs of others waiting
            return await abreast.round(shards, work, within_s=within_s)
        return [await work(shard) for shard in shards]

    def _done_with(self, duty: str, waits: list[float | None] | None) -> float | None:
        """A round of a duty is over, unless `waits` is None. Return how long to wait for the next."""
        if waits is None:
            return None
        self._done_at[duty] = self._clock.monotonic()
        interval_s = self._settings.watchdog_interval_s
        soonest = min((wait for wait in waits if wait is not None), default=interval_s)
        return min(interval_s, max(SOONEST_S, soonest))

    async def _mend(self) -> float | None:
        ended = await self._in_every_shard(self._mending, self._mend_shard, within_s=MEND_EVERY_S)
        return None if ended is None else MEND_EVERY_S

    async def _mend_shard(self, shard: int) -> None:
        """Queues that lost entries whose jobs are there; after a search with some left, once a lease."""
        if self._clock.monotonic() < self._mend_at.get(shard, 0.0):
            return
        try:
            again = await mend.mend(self._store, shard, self._done)
        except Exception as error:  # an odd record, or a user that may not search: said, and tried again
            if isinstance(error, BusUnavailable) and error.trouble is not Trouble.FORBIDDEN:
                raise
            again = True
            self._done[events.SWEEP_FAILED] += 1
            events.tell(log, events.SWEEP_FAILED, step="mend", error=str(error))
        if again:
            self._mend_at[shard] = self._clock.monotonic() + self._settings.lease_s

    def _tell_hindered(self, sweepers: list[Sweeper]) -> None:
        """Steps that a full server does not take; what must come in time came, so the passes go on as they do."""
        hindered = next((sweeper.hindered for sweeper in sweepers if sweeper.hindered is not None), None)
        if hindered is None:
            self._outage.fine("queueing")
        else:
            self._outage.began("queueing", hindered)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(self._settings.command_timeout_s):
                shards = range(self._store.shards)
                await tasks.all_of(*(self._store.forget(shard, self.name, [], own_wish=True) for shard in shards))
        except (TimeoutError, BusUnavailable, BadRecord) as error:
            events.tell(log, events.BUS_LOST, error=str(error) or "no answer")
        await self._store.close()
