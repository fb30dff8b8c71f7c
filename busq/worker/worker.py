"""
A worker: its parts put together, run, drained and stopped.

    intake ──> reception ──> runner ──> outbox        in the handlers' loop
    listener, beat, watch over that loop               in the control thread

It stops in reverse order of need: intake first; then handlers may end, are asked to, and are handed back; the
listener and the beat last, so that a cancel is heard and leases hold until the last job has ended.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

from busq import events, tasks
from busq.callables import Pool
from busq.clock import SystemClock
from busq.config import Settings
from busq.errors import BusUnavailable
from busq.handlers import Handler, Handlers
from busq.protocol.cancel import Cause, TripFacts
from busq.protocol.hook import hook_queue
from busq.store import suspects
from busq.store.drains import Whole
from busq.store.outage import Outage
from busq.store.roster import process_card, process_name
from busq.store.store import Store
from busq.store.streams import Streams
from busq.worker import health
from busq.worker.attempt import Attempt
from busq.worker.control import Control
from busq.worker.executors.base import Executor
from busq.worker.executors.coroutine import CoroutineExecutor
from busq.worker.executors.hello import hello_for, without_secrets
from busq.worker.executors.process import ProcessExecutor
from busq.worker.executors.thread import ThreadExecutor
from busq.worker.intake import Intake
from busq.worker.ladder import KILL_PATIENCE_S
from busq.worker.loopwatch import LoopWatch
from busq.worker.meter import UNMETERED, Meter
from busq.worker.pace import Pace
from busq.worker.reception import Reception
from busq.worker.runner import Runner
from busq.worker.slots import Slots
from busq.worker.standin import Leave, StandIn

TELL_LIMIT_S = 5.0  # how long a stopping worker tries to tell Redis what it has to tell

log = events.logger("busq.worker")


class Worker:
    """
    Runs the jobs of some queues with the handlers of one application.

    `queues` left out: `default` and every queue that a handler names. `concurrency` is the number of coroutine
    slots (100); threads and child processes have as many slots as the process may use CPUs, or as `concurrency` says
    when it is given. `child_setup` (module:function) is called in each child process before it does anything else.
    `told_to_drain` is called in the control thread when the bus asks this worker to drain, which it then does anyway.
    """

    def __init__(
        self,
        settings: Settings,
        handlers: Handlers,
        *,
        queues: Sequence[str] = (),
        concurrency: int | None = None,
        child_setup: str = "",
        told_to_drain: Callable[[], object] = lambda: None,
        meter: Meter = UNMETERED,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self.name = process_name(settings)
        self._settings = settings
        self._handlers = handlers
        self._queues = list(queues) or sorted(handlers.queues())
        hooked = map(hook_queue, self._queues) if handlers.have_hooks else ()
        self._served = list(dict.fromkeys([*self._queues, *hooked]))
        self._loop_factory = loop_factory
        self._child_setup = child_setup
        self._told_to_drain = told_to_drain
        self._meter = meter
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._limits = {
            Pool.COROUTINE: concurrency or 100,
            Pool.THREAD: concurrency or cpus,
            Pool.PROCESS: concurrency or cpus,
        }
        self.ready = False
        self.draining = False
        self.unready = ""
        """Why it takes no more jobs although nobody asked it to stop, in words; "" while it does."""
        self.unfit = ""
        """The same, where the data of the bus is not what it was and this process cannot work with it."""
        self.empties_pod = False
        """Whether the bus has asked all workers of this host to drain: then none shall be started in their place."""
        self._drains_by_wish = False
        self._outage = Outage(log)
        self._stand_in: StandIn | None = None
        self._clock = SystemClock()
        self._began = self._clock.monotonic()
        self._opened = False
        self._services: dict[str, asyncio.Task[None]] = {}

    # The whole life ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """
        Work until `stop` is called, then drain; returns when nothing of ours is left to tell.

        Raise `BusUnavailable` or `ConfigError` when it cannot start.
        """
        await self._open()
        intake = asyncio.create_task(self._intake.run())
        telling = asyncio.create_task(self._runner.outbox.run())
        self._services = {"intake": intake, "outbox": telling}
        self.ready = True
        events.tell(
            log, events.WORKER_STARTED, worker=self.name, queues=self._queues, slots=self._limits[Pool.COROUTINE]
        )
        stopping = asyncio.create_task(self._stop_asked.wait())
        try:
            # Intake and outbox run for ever; one that ends has found a mistake in busq, which must not pass quietly.
            await asyncio.wait({intake, telling, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.draining, self.ready = True, False
            stopping.cancel()
            await tasks.end(intake)
            left = await self._drain()
            await self._leave(telling)
        for service in (intake, telling):
            if not service.cancelled() and service.exception() is not None:
                raise service.exception()  # type: ignore[misc]
        events.tell(log, events.WORKER_STOPPED, worker=self.name, abandoned=left, suspects=len(self._runner.suspects))

    def stop(self) -> None:
        """Drain and end. Called again: hurry through the wait that is on. Safe in a signal handler of the loop."""
        if self._stop_asked.is_set() and not self._drains_by_wish:
            self._hurry_asked.set()
        self._drains_by_wish = False
        self._stop_asked.set()

    def drain(self) -> None:
        """
        As `stop`, but a `stop` that follows is the first of its kind and hurries nothing. Call it in the loop.

        Whoever takes a pod down asks it to drain and then sends its SIGTERM, which is meant as no hurry.
        """
        self._drains_by_wish = True
        self._stop_asked.set()

    def stop_for_certain(self, leave: Leave, *, by_wish: bool = False) -> None:
        """
        Make sure that `stop` (`by_wish`: `drain`) is not in vain: beside it, each time. Safe from any thread.

        When a drain would be over and the handlers' loop is blocked, the control thread hands everything back and
        calls `leave`, which ends the process.
        """
        if self._stand_in is not None:
            self._stand_in.told_to_stop(leave, by_wish=by_wish)

    @property
    def loop_lag_s(self) -> float:
        """How late the handlers' loop is right now, in seconds. Safe from any thread."""
        return 0.0 if self._stand_in is None else self._stand_in.watch.lag_s

    @property
    def lifeless(self) -> str:
        """Why only a new process can mend this one, in words; "" while all is well. Safe from any thread."""
        return "" if self._stand_in is None else self._stand_in.lifeless

    @property
    def leftovers(self) -> int:
        """How many abandoned attempts still run code in this process: then it must not wait for its threads."""
        return len(self._runner.suspects) + len(self._runner.running)

    def health(self) -> health.Health:
        """How it fares, at any moment of its life. Call it in the handlers' loop."""
        settings = self._settings
        facts = health.Facts(
            name=self.name,
            queues=self._queues,
            uptime_s=round(self._clock.monotonic() - self._began, 1),
            started=self.ready or self.draining,
            draining=self.draining,
            drains_within_s=settings.shutdown_timeout_s
            + settings.cleanup_s
            + settings.force_s
            + KILL_PATIENCE_S
            + TELL_LIMIT_S,
            lease_s=settings.lease_s,
            loop_lag_s=round(self.loop_lag_s, 3),
            lifeless=self.lifeless,
            unready=self.unready,
            unfit=self.unfit,
        )
        if not self._opened:
            return health.before_opening(facts, self._limits)
        return health.examine(
            facts,
            slots=self._slots,
            runner=self._runner,
            control=self._control,
            outage=self._outage,
            services=self._services,
            now=asyncio.get_running_loop().time(),
        )

    # Opening -----------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._stop_asked, self._hurry_asked = asyncio.Event(), asyncio.Event()
        hello = hello_for(self._settings, self._of_pool(Pool.PROCESS), self._child_setup)
        self._store = Store(self._settings, by=self.name, rings=False)
        await self._store.open()
        self._streams = Streams(self._store, self._served)
        await self._streams.open()
        self._pace = Pace()
        self._slots = Slots(self._limits, self._pace)
        self._runner = Runner(
            self._settings,
            self._store,
            self._slots,
            loop,
            too_many_suspects=self._wear_out,
            outage=self._outage,
            meter=self._meter,
        )
        self._threads = ThreadExecutor(loop, self._runner.reported, slots=self._limits[Pool.THREAD])
        self._processes = ProcessExecutor(
            loop, self._runner.reported, self._runner.begun, self._runner.hands, hello,
            without_secrets(os.environ, self._settings.url), self._pace, slots=self._limits[Pool.PROCESS],
        )  # fmt: skip
        executors: dict[Pool, Executor] = {
            Pool.COROUTINE: CoroutineExecutor(loop, self._runner.reported),
            Pool.THREAD: self._threads,
            Pool.PROCESS: self._processes,
        }
        self._runner.use(executors)
        reception = Reception(
            self._settings, self._handlers, self._store, self._slots, self._runner.outbox, self._runner.begin,
            displaced=lambda: self._runner.displaced(),
        )  # fmt: skip
        served = {queue: self._handlers.of_queue(queue) for queue in self._served}
        watch = LoopWatch(loop, lambda: self._runner.running)
        stand_in = StandIn(self._settings, self._runner, watch, loop, name=self.name, queues=self._served)
        self._card = process_card("worker", self._settings.host or "")
        self._control = Control(
            self._settings, self, loop, by=self.name, info=self._info, occasions=reception.occasions,
            stand_in=stand_in, outage=self._outage, meter=self._meter, loop_factory=self._loop_factory,
        )  # fmt: skip
        self._intake = Intake(
            self._streams, self._slots, reception, served, self._runner.knows,
            reconcile_attempts=self._runner.reconcile, beats=lambda: self._control.reachable, outage=self._outage,
        )  # fmt: skip
        self._runner.watcher = self._control
        self._runner.displaced = self._intake.reconcile_soon
        await self._control.start()
        self._stand_in = stand_in
        self._opened = True

    def _of_pool(self, pool: Pool) -> list[Handler]:
        return [handler for handler in self._handlers if handler.pool is pool]

    def _info(self) -> bytes:
        return self._card.encoded(
            queues=self._queues,
            slots={str(pool): slots for pool, slots in self._limits.items()},
            running=len(self._runner.running),
            suspects=len(self._runner.suspects),
            draining=self.draining,
        )

    # What the control thread heard ---------------------------------------------------------------------------

    @property
    def running(self) -> dict[str, Attempt]:
        return self._runner.running

    def heard(self, attempt: Attempt, facts: TripFacts, heard_by: str) -> None:
        self._runner.ladder.trip(attempt, facts, heard_by=heard_by)

    def superseded(self, attempt: Attempt, state: str) -> None:
        self._runner.superseded(attempt, state)

    def asked_to_drain(self, whole: Whole) -> None:
        """The bus, or whoever keeps this worker, asks it to drain. Safe from any thread, and to repeat."""
        self.empties_pod |= whole is Whole.POD
        events.tell(log, events.WORKER_ASKED_TO_DRAIN, worker=self.name, whole=str(whole))
        self._told_to_drain()
        self._loop.call_soon_threadsafe(self.drain)

    def history_changed(self, unfit: str) -> None:
        """What is pending under our name may be other than we know; `unfit`: why we can go on no more, in words."""
        self._intake.reconcile_soon()
        if unfit and not self._stop_asked.is_set():
            self.unfit = unfit
            events.tell(log, events.BUS_LOST, part="history", trouble="", error=unfit)
            self.stop()

    def _wear_out(self, count: int) -> None:
        """More abandoned code runs in here than a process should carry: drain, so that a fresh one can take over."""
        if self._stop_asked.is_set():
            return
        limit = self._settings.suspects_limit
        self.unready = f"{count} abandoned handlers run on in this process, with a limit of {limit}: it drains and ends"
        events.tell(log, events.SUSPECTS_TOO_MANY, worker=self.name, suspects=count, limit=limit)
        self.stop()

    # Stopping ------------------------------------------------------------------------------------------------

    async def _drain(self) -> int:
        """Let jobs end, then ask them to, then hand them back. Answers how many of those had not stopped."""
        settings = self._settings
        events.tell(log, events.WORKER_DRAINING, worker=self.name, running=len(self._runner.running))
        self._processes.retire_idle()
        await self._ended_within(settings.shutdown_timeout_s, may_hurry=True)
        if self._runner.running:
            facts = TripFacts(cause=Cause.SHUTDOWN, reason="the worker is stopping", grace_s=settings.cleanup_s)
            self._runner.trip_all(facts)
            self._hurry_asked.clear()
            await self._ended_within(settings.cleanup_s, may_hurry=True)
        if any(attempt.handler.pool is Pool.PROCESS for attempt in self._runner.running.values()):
            # These can be ended, and are before their jobs go to somebody else: SIGTERM now, then SIGKILL.
            await self._ended_within(settings.force_s + KILL_PATIENCE_S, may_hurry=False)
        return self._runner.hand_back_all()

    async def _ended_within(self, seconds: float, *, may_hurry: bool) -> None:
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(self._runner.all_ended())]
        if may_hurry:
            waits.append(asyncio.create_task(self._hurry_asked.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _leave(self, telling: asyncio.Task[None]) -> None:
        """Tell everything, give back what was read and not started, fall silent, and go off the roster."""
        try:
            async with asyncio.timeout(TELL_LIMIT_S):
                await self._runner.outbox.empty()
                await self._intake.leave()
                await self._runner.outbox.empty()
                self._control.stop()  # before the good-bye: a beat after it would put us on the roster again
                for shard in range(self._store.shards):
                    await self._store.forget(shard, self.name, self._served, own_wish=True)
                    # What still runs here ends with this process, and that is about to end.
                    await suspects.clear_owner(self._store, shard, self.name)
        except (TimeoutError, BusUnavailable) as error:
            # The lease runs out by itself, and a watchdog takes over what is still under our name.
            events.tell(log, events.BUS_LOST, error=str(error) or "no answer", untold=self._runner.outbox.waiting)
        await tasks.end(telling)
        self._control.stop()
        await self._processes.close()
        await self._threads.close()
        await self._runner.close()
        await self._store.close()
