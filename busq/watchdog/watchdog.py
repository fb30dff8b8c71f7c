"""
The watchdog: the sidecar that finalizes overdue cancels and looks after jobs whose worker died.

It needs no application code, holds no job, and any number of them may run: a loop of passes and nothing else. It
stands on the roster like a worker, so that operators see whether one is there.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from busq import events, tasks
from busq.clock import Clock, SystemClock
from busq.config import Settings
from busq.errors import BusUnavailable
from busq.protocol.trouble import Trouble
from busq.store import figures
from busq.store.figures import Figures
from busq.store.lineage import Lineage
from busq.store.outage import Backoff, Outage
from busq.store.reader import Reader, Stats
from busq.store.roster import process_card, process_name
from busq.store.store import Store
from busq.watchdog import health, mend
from busq.watchdog.sweep import DONE, Sweeper

MEND_EVERY_S = 1.0  # looks for queues that lost entries
SOONEST_S = 0.02  # between two passes, however soon something is due

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
        self.last_pass: float | None = None
        self.started = False
        self._settings = settings
        self._clock = clock or SystemClock()
        self._store = Store(settings, by=self.name, clock=self._clock)
        self._card = process_card("watchdog", settings.host or "")
        self._outage = Outage(log, clock=self._clock)
        self._lineage = Lineage(self._store, log)
        self._stop = asyncio.Event()
        self._seen_at = float("-inf")
        self._anew = False
        self._mend_at: dict[int, float] = {}
        self._began = self._clock.monotonic()
        self._passes = 0
        self._done: Counter[str] = Counter(dict.fromkeys(DONE, 0))
        self._final = final
        self._rounds: tasks.Abreast[float | None] = tasks.Abreast()
        self._keeping: tasks.Abreast[None] = tasks.Abreast()

    def stop(self) -> None:
        """End after the present pass. Safe in a signal handler of the loop."""
        self._stop.set()

    async def run(self) -> None:
        """Watch until `stop` is called. Raise `BusUnavailable` or `ConfigError` when it cannot start."""
        await self._store.open()
        await self._store.keep_able()
        sweepers = [
            Sweeper(self._settings, self._store, shard, self._clock, done=self._done, final=self._final)
            for shard in range(self._store.shards)
        ]
        self.started = True
        events.tell(log, events.WATCHDOG_STARTED, watchdog=self.name, interval_s=self._settings.watchdog_interval_s)
        backoff = Backoff()
        while not self._stop.is_set():
            try:
                wait = await self._pass(sweepers)
                self._outage.fine("pass")
                backoff.reset()
            except BusUnavailable as error:
                self._outage.began("pass", error)
                wait = backoff.pause_s()
                if self._store.connections.apart:  # the other servers' jobs are looked after as ever
                    wait = min(wait, self._settings.watchdog_interval_s)
            await self._sleep(wait)
        await self._rounds.end()
        await self._keeping.end()
        await self._leave()
        events.tell(log, events.WATCHDOG_STOPPED, watchdog=self.name)

    def health(self) -> health.Health:
        """How it fares, at any moment of its life. Call it in its loop."""
        now = self._clock.monotonic()
        return health.examine(
            name=self.name,
            uptime_s=now - self._began,
            outage=self._outage,
            history_changes=self._lineage.changes,
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
            await Sweeper(self._settings, self._store, shard, self._clock).sweep()

    async def _pass(self, sweepers: list[Sweeper]) -> float:
        """One pass over every shard. Return how long to wait for the next."""
        interval_s, shards = self._settings.watchdog_interval_s, range(self._store.shards)
        to_be_seen = self._anew or self._clock.monotonic() - self._seen_at >= self._settings.beat_s
        self._anew = False

        async def look_after(shard: int) -> float | None:
            if to_be_seen:
                await self._store.renew(shard, [], info=self._card.encoded())
            if await self._lineage.look(shard):
                self._anew = True  # nothing that was written of us is certain to be there any more
            await self._mend(shard)
            return await sweepers[shard].sweep()

        waits: list[float | None] | None
        if self._store.connections.apart:  # one server that is away must not keep the jobs of others waiting
            if to_be_seen:
                with suppress(BusUnavailable):  # the round says so
                    await self._keeping.round([0], lambda _: self._store.keep_able(), within_s=interval_s)
            waits = await self._rounds.round(shards, look_after, within_s=interval_s)
        else:
            if to_be_seen:
                await self._store.keep_able()
            waits = [await look_after(shard) for shard in shards]
        if to_be_seen:
            self._seen_at = self._clock.monotonic()
        if waits is None:
            return SOONEST_S
        self.last_pass = self._clock.monotonic()
        self._passes += 1
        self._tell_hindered(sweepers)
        soonest = min((wait for wait in waits if wait is not None), default=interval_s)
        return min(interval_s, max(SOONEST_S, soonest))

    async def _mend(self, shard: int) -> None:
        """Once a second: queues that lost entries whose jobs are there; after a search with some left, once a lease."""
        if self._clock.monotonic() < self._mend_at.get(shard, 0.0):
            return
        try:
            mended, again = await mend.mend(self._store, shard)
            if mended:
                self._done[events.QUEUE_MENDED] += mended
        except BusUnavailable as error:
            if error.trouble is not Trouble.FORBIDDEN:
                raise
            again = True
            events.tell(log, events.SWEEP_FAILED, step="mend", error=str(error))
        self._mend_at[shard] = self._clock.monotonic() + (self._settings.lease_s if again else MEND_EVERY_S)

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
                for shard in range(self._store.shards):
                    await self._store.forget(shard, self.name, [], own_wish=True)
        except (TimeoutError, BusUnavailable) as error:
            events.tell(log, events.BUS_LOST, error=str(error) or "no answer")
        await self._store.close()
