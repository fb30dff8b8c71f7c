"""
Comeback: how soon a bus is as fast as before, once the last of many faults is over.

Two workers drain a backlog of no-op jobs that never runs dry. In the middle one of them is killed and replaced, the
server is frozen, every connection is cut and the script cache is flushed. Counted is what the server says has
succeeded, in windows of a second.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection

from redis import Redis

import busq
from benchmarks.figures import Figure, Requirement
from benchmarks.processes import Helper, Place, fresh_place, work
from busq.protocol.keys import ShardKeys

REQUIRED = Requirement("at most", 10.0)
SHARE = 0.95
BEFORE_S, AFTER_S = 8, 30
WINDOW_S = 1.0
FROZEN_S = 2.0
LEAST = 3000  # that must stand in the queue
AT_ONCE = 2000


def measure(url: str) -> list[Figure]:
    with fresh_place(url) as place, ExitStack() as stack:
        producer = stack.enter_context(Helper(_produce, place))
        workers = [stack.enter_context(Helper(_work, place)) for _ in range(2)]
        for each in (producer, *workers):
            assert each.hear() == "ready"
        with Redis.from_url(url) as redis:
            _windows(redis, place, 3)  # everybody gets going
            before = _windows(redis, place, BEFORE_S)
            workers[0].kill()
            successor = stack.enter_context(Helper(_work, place))
            assert successor.hear() == "ready"
            _hurt(redis)
            after = _windows(redis, place, AFTER_S)
    usual = statistics.median(before)
    # Three windows together: what one of them takes more, the next one may lack.
    back = next(
        (i * WINDOW_S for i in range(len(after) - 2) if statistics.fmean(after[i : i + 3]) >= SHARE * usual),
        float("inf"),
    )
    return [
        Figure.of("comeback", "before the faults", "jobs/s", before),
        Figure.of("comeback", "after them", "jobs/s", after[10:]),
        Figure.of("comeback", f"back at {SHARE:.0%}, after the last fault", "s", [back], REQUIRED),
    ]


def _hurt(redis: Redis) -> None:
    process = int(redis.info("server")["process_id"])
    os.kill(process, signal.SIGSTOP)
    time.sleep(FROZEN_S)
    os.kill(process, signal.SIGCONT)
    redis.execute_command("SCRIPT", "FLUSH")
    for kind in ("pubsub", "normal"):
        redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def _windows(redis: Redis, place: Place, count: int) -> list[float]:
    """Jobs a second, in so many windows one after the other."""
    counters = ShardKeys(place.namespace, 0).counters.decode()
    rates, seen, since = [], int(redis.hget(counters, "succeeded") or 0), time.monotonic()
    for _ in range(count):
        time.sleep(max(0.0, since + WINDOW_S - time.monotonic()))
        now, done = time.monotonic(), int(redis.hget(counters, "succeeded") or 0)
        rates.append((done - seen) / (now - since))
        seen, since = done, now
    return rates


async def _produce(pipe: Connection, place: Place) -> None:
    """Keep the queue from running dry, until the other end of the pipe closes."""
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
    async with place.bus() as bus, asyncio.TaskGroup() as group:
        await bus.enqueue_many(bus.spec("nothing") for _ in range(AT_ONCE))
        pipe.send("ready")
        filling = group.create_task(_fill(place))
        await closed.wait()
        filling.cancel()


async def _fill(place: Place) -> None:
    async with place.bus() as bus:
        while True:
            try:
                if (await bus.stats()).now["queued"] < LEAST:
                    await bus.enqueue_many(bus.spec("nothing") for _ in range(AT_ONCE))
                else:
                    await asyncio.sleep(0.02)
            except busq.BusUnavailable:
                await asyncio.sleep(0.02)


async def _work(pipe: Connection, place: Place) -> None:
    bus = place.bus()

    @bus.job
    async def nothing() -> None:
        pass

    await work(pipe, bus)
