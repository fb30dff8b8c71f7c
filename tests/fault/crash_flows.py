"""
What a producer, a worker, a watchdog and a canceller do in one short life, to be killed at each of their commands.

`live` is the whole life, in a process of its own: `url` leads through the proxy that counts, `direct` past it. Producer
and canceller may be run again afterwards, as anybody would who does not know how far they got.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import busq
from busq.config import Settings
from busq.watchdog.watchdog import Watchdog
from busq.worker.worker import Worker
from tests.roles import as_role
from tests.runtime.bench import NEVER_SO_LONG_S, QUICK, until

SETTINGS: dict[str, Any] = {**QUICK, "grace_s": 0.4, "lease_s": 4.0}
PATIENCE_S = 4 * NEVER_SO_LONG_S  # several lives are lived at once, on a machine that may be busy with others too
PARKED = "parked"  # a queue that nobody reads before the end


class Jobs:
    """The handlers, declared on a bus. `lingering`: one of them does not end by itself."""

    def __init__(self, bus: busq.Bus, *, lingering: bool = False) -> None:
        @bus.job
        async def work(n: int) -> int:
            await asyncio.sleep(0)
            return n

        @bus.job(retries=1)
        async def fails_once() -> int:
            if busq.current_job().attempt == 1:
                raise RuntimeError("once")
            return 1

        @bus.job
        async def cancels_itself() -> None:
            await asyncio.shield(bus.cancel(busq.current_job().jid))
            await asyncio.sleep(60)

        @cancels_itself.on_cancel
        async def clean_up(job: busq.CancelledJob) -> str:
            return job.jid

        @bus.job
        async def has_child() -> None:
            job = busq.current_job()
            if not job.saved:
                await job.spawn(work, 1)
                await job.save({"spawned": True})

        @has_child.finalize
        async def gather(job: busq.FinishedJob) -> int:
            return job.children

        @bus.job
        async def waits() -> None:
            await asyncio.sleep(60)

        @bus.job
        async def lingers() -> None:
            await asyncio.sleep(60 if lingering else 0)

        self.work, self.fails_once, self.cancels_itself = work, fails_once, cancels_itself
        self.has_child, self.waits, self.lingers = has_child, waits, lingers


async def produce(url: str, direct: str) -> None:
    async with busq.Bus(as_role(url, "producer"), **SETTINGS) as bus:
        work = Jobs(bus).work
        keyed = work.options(key="k", supersede=True, queue=PARKED)
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: work.options(jid="plain").enqueue(1),
            lambda: bus.enqueue_many(
                [
                    work.options(jid="later", delay=0.05).spec(2),
                    work.options(jid="tagged", tags={"tenant": "a"}, group="g", expires=600).spec(3),
                    work.options(jid="parked", queue=PARKED, deadline=600).spec(4),
                ]
            ),
            lambda: keyed.options(jid="older").enqueue(5),
            lambda: keyed.options(jid="newer").enqueue(6),
        ]
        for call in calls:
            with suppress(busq.JidInUse):  # it was accepted when this life was lived before
                await call()


async def cancel(url: str, direct: str) -> None:
    async with busq.Bus(as_role(url, "canceller"), **SETTINGS) as bus:
        await bus.cancel("queued")
        await bus.cancel_many(["scheduled", "running", "unknown"], tombstone=600)
        await bus.cancel_group("g")
        await bus.cancel_descendants("family")


async def work(url: str, direct: str) -> None:
    """Until what stands in its queue has ended, with all that comes of it, but for a job that it hands back."""
    async with busq.Bus(as_role(direct, "client"), **SETTINGS) as bus:
        Jobs(bus, lingering=True)
        worker = Worker(Settings.load({}, url=as_role(url, "worker"), **SETTINGS), bus.handlers, queues=["default"])
        running = asyncio.create_task(worker.run())
        await until(lambda: _one_runs(bus), PATIENCE_S)
        worker.stop()
        await running


async def _one_runs(bus: busq.Bus) -> bool:
    now = (await bus.stats()).now
    return sum(now.values()) == 1 + sum(now[state] for state in ("succeeded", "failed", "cancelled")) and (
        now["running"] == 1
    )


async def watch(url: str, direct: str) -> None:
    """Some passes over whatever is overdue, until the job of a dead worker is taken over."""
    async with busq.Bus(as_role(direct, "client"), **SETTINGS) as bus:
        dog = Watchdog(Settings.load({}, url=as_role(url, "watchdog"), **SETTINGS))
        running = asyncio.create_task(dog.run())
        await until(lambda: dog.health().passes >= 2 or running.done(), PATIENCE_S)
        await until(lambda: _is_taken_over(bus), PATIENCE_S)
        dog.stop()
        await running


async def _is_taken_over(bus: busq.Bus) -> bool:
    return (await bus.get("lapsed")).state != "running"


FLOWS: dict[str, Callable[[str, str], Awaitable[None]]] = {
    "producer": produce,
    "canceller": cancel,
    "worker": work,
    "watchdog": watch,
}


def live(role: str, url: str, direct: str) -> None:
    async def life() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await FLOWS[role](url, direct)

    asyncio.run(life())
