"""
Real workers and watchdogs at work on what the ghost has left and on jobs of their own.

Notices of cancels are sent where nobody listens, so that a cancel is heard by its record or not at all; on the
channels that workers do listen to there is only what nobody meant.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import busq
from busq.config import Settings
from busq.protocol.cancel import CancelRequest
from busq.protocol.states import is_terminal
from busq.store.store import Store
from busq.watchdog.watchdog import Watchdog
from busq.worker.worker import Worker
from sabotages.ghost import QUEUE
from sabotages.recorder import Recorder

PATIENCE_S = 15.0  # for what nothing keeps from happening; in a sabotaged tree it may never happen
SHORT_OF_PATIENCE_S = 0.3
DEAF_S = 1.5
HOLD_GRACE_S = 6.0
CROWD = 120


class Staff:
    def __init__(self, url: str, given: dict[str, Any], recorder: Recorder) -> None:
        self.settings = Settings.load({}, url=url, **given)
        self.bus = busq.Bus(url, **given)
        self.recorder = recorder
        self.canceller = Store(self.settings, by="canceller")
        self.canceller._constants["notice_prefix"] = b"nobody-listens:"
        self.begun: set[str] = set()
        self.jids: list[str] = []
        self.gate = asyncio.Event()
        self._services: dict[Worker | Watchdog, asyncio.Task[None]] = {}
        self._patience_s = PATIENCE_S
        self._declare()

    # Handlers --------------------------------------------------------------------------------------------

    @contextmanager
    def witnessed(self) -> Iterator[Callable[[], None]]:
        """Write down that an attempt begins and ends; called inside, that it has seen a cancel."""
        job = busq.current_job()
        who = {"role": "handler", "jid": job.jid, "fence": job.attempt, "attempt": secrets.token_hex(6)}
        self.recorder.tell("h_start", "info", val={"kind": job.kind}, **who)
        self.begun.add(job.jid)

        def seen() -> None:
            self.recorder.tell("h_cancel_seen", "info", val={"cause": job.cause and str(job.cause)}, **who)

        try:
            yield seen
        finally:
            self.recorder.tell("h_end", "info", **who)

    def _declare(self) -> None:
        bus = self.bus

        @bus.job(queue=QUEUE)
        async def ghostly() -> int:
            with self.witnessed():
                return 1

        @bus.job
        async def quick(n: int) -> int:
            with self.witnessed():
                return n

        # Time enough to hear a cancel, however busy the machine is: nobody else is to end it before.
        @bus.job(grace=HOLD_GRACE_S)
        async def hold() -> None:
            with self.witnessed() as seen:
                try:
                    await self.gate.wait()
                except asyncio.CancelledError:
                    seen()
                    raise

        @bus.job
        async def deaf() -> str:
            with self.witnessed():
                until = time.monotonic() + DEAF_S
                while time.monotonic() < until:
                    try:
                        await asyncio.sleep(0.05)
                    except asyncio.CancelledError:
                        continue
                return "as if nothing had been"

        @bus.job(retries=1)
        async def fails() -> None:
            with self.witnessed():
                raise RuntimeError("as it was told")

        @hold.on_cancel
        async def clean(job: busq.CancelledJob) -> None:
            return None

        self.quick, self.hold, self.deaf, self.fails = quick, hold, deaf, fails

    # Services --------------------------------------------------------------------------------------------

    async def serve(self, service: Worker | Watchdog) -> None:
        task = asyncio.create_task(service.run())
        self._services[service] = task
        ready = (lambda: service.ready) if isinstance(service, Worker) else (lambda: service.last_pass is not None)
        await self.until(lambda: ready() or task.done())

    async def end(self, service: Worker | Watchdog, *, hurry: bool = False) -> None:
        service.stop()
        if hurry:
            service.stop()
        await asyncio.wait({self._services.pop(service)}, timeout=PATIENCE_S)

    async def close(self) -> None:
        self.gate.set()
        for service in list(self._services):
            await self.end(service, hurry=True)
        await self.canceller.close()
        await self.bus.close()

    async def until(self, true: Callable[[], Any]) -> bool:
        """Whether it came to be true in time."""
        end = time.monotonic() + self._patience_s
        while time.monotonic() < end:
            answer = true()
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer:
                return True
            await asyncio.sleep(0.01)
        self._patience_s = SHORT_OF_PATIENCE_S  # something is broken: the rest need not be waited for as long
        return False

    # Calls -----------------------------------------------------------------------------------------------

    async def send(self, specs: list[busq.JobSpec[Any]]) -> list[str]:
        ops = {spec.jid: self.recorder.asked("enqueue", spec.jid) for spec in specs}
        await self.bus.enqueue_many(specs)
        for jid, op in ops.items():
            self.recorder.answered("enqueue", op, jid, "enqueued")
        self.jids += ops
        return list(ops)

    async def cancel(self, jid: str) -> str:
        """Written down, and announced where nobody listens."""
        op = self.recorder.asked("cancel", jid)
        [answer] = await self.canceller.cancel([jid], CancelRequest(reason="on stage"), request=secrets.token_hex(8))
        self.recorder.answered("cancel", op, jid, str(answer.verdict))
        return str(answer.verdict)

    async def read(self, jid: str) -> str:
        op = self.recorder.asked("read", jid)
        job = await self.bus.get(jid)
        self.recorder.answered("read", op, jid, str(job.state))
        return str(job.state)

    async def has_ended(self, jid: str) -> bool:
        return is_terminal((await self.bus.get(jid)).state)


async def employ(url: str, given: dict[str, Any], recorder: Recorder) -> None:
    staff = Staff(url, given, recorder)
    await staff.canceller.open()
    try:
        for _ in range(2):
            await staff.serve(Watchdog(staff.settings))
        await _act(staff)
        await staff.until(lambda: _at_rest(staff))
    finally:
        await staff.close()


async def _are_listened_for(redis: Any, channels: list[bytes]) -> bool:
    return all(count for _, count in await redis.pubsub_numsub(*channels))


async def _act(staff: Staff) -> None:
    first = Worker(staff.settings, staff.bus.handlers, queues=["default"])
    await staff.serve(first)
    deaf, hold, unwanted, drained = await staff.send(
        [staff.deaf.spec(), staff.hold.spec(), staff.hold.spec(), staff.hold.spec()]
    )
    crowd = await staff.send([staff.quick.spec(n) for n in range(CROWD)])
    await staff.send([staff.fails.spec(), staff.fails.spec(), staff.quick.options(delay=0.05).spec(0)])
    await staff.until(lambda: {deaf, hold, unwanted, drained} <= staff.begun)
    async with busq.Bus(staff.settings.url) as other:
        redis = (await other._link()).store.redis
        channels = [b"cancel:" + jid.encode() for jid in (unwanted, hold)]
        await staff.until(lambda: _are_listened_for(redis, channels))
        for channel in channels:
            await redis.publish(channel, b"cancel")
    await staff.cancel(deaf)
    await staff.cancel(hold)
    for jid in crowd[::3]:
        await staff.cancel(jid)
        await staff.read(jid)
    await staff.until(lambda: staff.has_ended(hold))
    await staff.until(lambda: staff.has_ended(deaf))
    # A drain, with one that runs: another worker has it, and only then is it asked to stop.
    second = Worker(staff.settings, staff.bus.handlers)
    await staff.serve(second)
    staff.begun.discard(drained)
    await staff.end(first)
    await staff.until(lambda: drained in staff.begun)
    await staff.cancel(drained)
    await staff.until(lambda: staff.has_ended(drained))
    staff.gate.set()
    for jid in [*staff.jids, "left-running", "left-asked", "left-read"]:
        await staff.until(lambda jid=jid: staff.has_ended(jid))  # type: ignore[misc]


async def _at_rest(staff: Staff) -> bool:
    """Nothing stands in a queue, and nothing waits for anything."""
    redis = staff.canceller.redis
    keys = staff.canceller.keys(0)
    for queue in await redis.smembers(keys.queues):
        if await redis.xlen(keys.stream(queue.decode())):
            return False
    sets = [keys.scheduled, keys.deadlines, keys.timers, keys.waiting, keys.cascades]
    settled = (await staff.bus.stats()).rules
    return not settled and not any([await redis.zcard(key) for key in sets])
