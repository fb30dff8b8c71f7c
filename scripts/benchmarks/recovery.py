"""
Recovery: how long jobs and cancels wait when workers are killed or frozen, watchdogs die, or no message comes through.

All settings are the defaults, so a lease is 15 s, a beat 1 s and a watchdog's interval 0.5 s. Moments are those of
handlers (`time.monotonic()`, the same for all processes of a machine) or, for endings, those in the records.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection

from faults.proxy import Proxy

from benchmarks.figures import Figure, Requirement
from benchmarks.processes import Helper, Place, fresh_place, until_closed, work
from busq.config import Settings
from busq.watchdog.watchdog import Watchdog

LEASE_S = Settings().lease_s
INTERVAL_S = Settings().watchdog_interval_s
BEAT_S = Settings().beat_s

JOBS = 50
GRACE_S = 0.5
WATCHDOGS = (1, 2, 16)
PATIENCE_S = 120.0

Noted = dict[str, list[float]]


def measure(url: str, running: int, cancels: int) -> list[Figure]:
    figures = [_killed(url)]
    figures += [_stubborn(url, count) for count in WATCHDOGS]
    figures += [_deaf(url)]
    figures += _storm(url, running, cancels)
    return figures


# A worker is killed ----------------------------------------------------------------------------------------


def _killed(url: str) -> Figure:
    """From SIGKILL until the last of its jobs has begun anew in another worker."""
    with fresh_place(url) as place, Helper(_watch, place) as dog, Helper(_run_jobs, place) as victim:
        for each in (dog, victim):
            assert each.hear() == "ready"
        asyncio.run(_enqueue(place, JOBS))
        _gather([victim], "started", JOBS)
        with Helper(_run_jobs, place) as successor:
            assert successor.hear() == "ready"
            killed = time.monotonic()
            victim.kill()
            last = max(_gather([successor], "started", JOBS))
    required = Requirement("at most", LEASE_S + 2)
    return Figure.of("recovery", f"{JOBS} jobs of a killed worker begin anew", "s", [last - killed], required)


# A handler does not stop, and its worker is frozen ---------------------------------------------------------


def _stubborn(url: str, count: int) -> Figure:
    """
    How long after its deadline the last of them is final.

    The worker is frozen, so that only watchdogs are left to finalize; where there are several, one is killed meanwhile.
    """
    with fresh_place(url) as place, ExitStack() as stack:
        dogs = [stack.enter_context(Helper(_watch, place)) for _ in range(count)]
        worker = stack.enter_context(Helper(_run_jobs, place))
        for each in (worker, *dogs):
            assert each.hear() == "ready"
        jids = asyncio.run(_enqueue(place, JOBS))
        _gather([worker], "started", JOBS)
        worker.freeze()
        late = asyncio.run(_overdue(place, jids, dogs))
        worker.thaw()
    name = f"stubborn, {count} watchdogs, one killed" if count > 1 else "stubborn, 1 watchdog"
    return Figure.of("recovery", f"{name}: past the deadline", "s", late, Requirement("at most", INTERVAL_S))


async def _overdue(place: Place, jids: list[str], dogs: list[Helper]) -> list[float]:
    async with place.bus() as bus:
        answers = await bus.cancel_many(jids, grace=GRACE_S)
        if len(dogs) > 1:
            await asyncio.sleep(GRACE_S)
            dogs[0].kill()
        late = []
        for answer in answers:
            job = await bus.wait(answer.jid, timeout=PATIENCE_S)
            assert job.finished_at is not None
            assert answer.deadline is not None
            late.append((job.finished_at - answer.deadline).total_seconds())
    return [max(late)]


# No message comes through ----------------------------------------------------------------------------------


def _deaf(url: str) -> Figure:
    """From the cancel until the last handler has observed it, when nothing on pub/sub reaches the worker."""
    with fresh_place(url) as place:
        waits = asyncio.run(_cancel_the_deaf(place))
    required = Requirement("at most", BEAT_S + 0.5)
    return Figure.of("recovery", f"{JOBS} cancels with pub/sub blocked", "s", [max(waits)], required)


async def _cancel_the_deaf(place: Place) -> list[float]:
    port = int(place.url.rpartition(":")[2].partition("/")[0])
    proxy = Proxy(port)
    await proxy.start()
    far = Place(place.url.replace(f":{port}", f":{proxy.port}"), place.namespace)
    with Helper(_run_jobs, far) as worker:
        assert await asyncio.to_thread(worker.hear) == "ready"
        jids = await _enqueue(place, JOBS)
        await asyncio.to_thread(_gather, [worker], "started", JOBS)
        proxy.deafen()
        async with place.bus() as bus:
            asked = time.monotonic()
            await bus.cancel_many(jids, grace=60)
        heard = await asyncio.to_thread(_gather, [worker], "stopped", JOBS)
        assert proxy.deafened, "no connection carried a subscription"
    await proxy.close()
    return [moment - asked for moment in heard]


# A storm of cancels ----------------------------------------------------------------------------------------


def _storm(url: str, running: int, cancels: int) -> list[Figure]:
    """One `cancel_many` over running and queued jobs: until it returns, and until the last handler has observed it."""
    parts = 4
    with fresh_place(url) as place, ExitStack() as stack:
        workers = [stack.enter_context(Helper(_run_jobs, place, -(-running // parts))) for _ in range(parts)]
        for worker in workers:
            assert worker.hear() == "ready"
        jids = asyncio.run(_enqueue(place, running))
        _gather(workers, "started", running)
        jids += asyncio.run(_enqueue(place, cancels - running, queue="nobody"))
        began, returned, verdicts = asyncio.run(_cancel_all(place, jids))
        heard = _gather(workers, "stopped", running)
    recorded = sum(verdict in ("cancelled", "signalled") for verdict in verdicts)
    required = Requirement("at most", 10.0)
    return [
        Figure.of("recovery", f"{cancels:,} cancels recorded", "s", [returned - began], required),
        Figure.of("recovery", f"{running:,} of them delivered", "s", [max(heard) - began], required),
        Figure.of("recovery", "not recorded", "jobs", [cancels - recorded], Requirement("at most", 0)),
    ]


async def _cancel_all(place: Place, jids: list[str]) -> tuple[float, float, list[str]]:
    async with place.bus() as bus:
        await bus.cancel("nobody")  # the connection is open, the script loaded
        began = time.monotonic()
        answers = await bus.cancel_many(jids, grace=60)
        returned = time.monotonic()
    return began, returned, [str(answer.verdict) for answer in answers]


# What they share -------------------------------------------------------------------------------------------


async def _enqueue(place: Place, count: int, *, queue: str = "default") -> list[str]:
    async with place.bus() as bus:
        specs = [bus.options(queue=queue).spec("sleep_long") for _ in range(count)]
        return [handle.jid for handle in await bus.enqueue_many(specs)]


def _gather(workers: list[Helper], what: str, count: int) -> list[float]:
    """The moments of so many of these, as the workers tell them."""
    moments: list[float] = []
    until = time.monotonic() + PATIENCE_S
    while len(moments) < count:
        if time.monotonic() > until:
            raise RuntimeError(f"{count - len(moments):,} jobs had not {what} after {PATIENCE_S:g} s")
        for worker in workers:
            for noted in worker.overheard():
                moments += noted.get(what, [])
        time.sleep(0.01)
    return moments


async def _run_jobs(pipe: Connection, place: Place, slots: int = JOBS) -> None:
    """A worker; its handlers' moments are told every 20 ms, so that what a kill cuts off is little."""
    bus = place.bus()
    noted: Noted = {"started": [], "stopped": []}

    @bus.job
    async def sleep_long() -> None:
        noted["started"].append(time.monotonic())
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            noted["stopped"].append(time.monotonic())
            raise

    async def tell() -> None:
        while True:
            await asyncio.sleep(0.02)
            if any(noted.values()):
                pipe.send({name: list(moments) for name, moments in noted.items()})
                for moments in noted.values():
                    moments.clear()

    telling = asyncio.create_task(tell())
    try:
        await work(pipe, bus, concurrency=slots)
    finally:
        telling.cancel()


async def _watch(pipe: Connection, place: Place) -> None:
    dog = Watchdog(place.bus().settings)
    running = asyncio.create_task(dog.run())
    while dog.last_pass is None and not running.done():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.005)
    pipe.send("ready")
    await until_closed(pipe, _ended(running))


async def _ended(running: asyncio.Task[None]) -> None:
    await running
