"""
Process pool: how fast no-op jobs go through kept child processes, records and all.

Beside it, in turns, `concurrent.futures.ProcessPoolExecutor` with chunksize 1, as many children and as many calls. It
keeps no records and talks to nobody. Children are started and warm on both sides before the clock runs. Ours begins
with the whole queue in Redis, and a job counts when its end is recorded.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection

from redis import Redis

import busq
from benchmarks.figures import Figure, Requirement
from benchmarks.processes import Helper, Place, fresh_place, work
from busq.protocol.keys import ShardKeys

REQUIRED = Requirement("at least", 0.8)
LOOK_EVERY_S = 0.003
WARM = 64

handlers = busq.Bus()


@handlers.job(pool="process")
def noop(n: int) -> None: ...


def plain_noop(n: int) -> None: ...


def measure(url: str, pairs: int, jobs: int) -> list[Figure]:
    ours, its = [], []
    for turn in range(pairs):
        for name in ("ours", "its") if turn % 2 else ("its", "ours"):
            if name == "its":
                its.append(jobs / _executor(jobs))
            else:
                with fresh_place(url) as place:
                    ours.append(_busq(place, jobs))
    ratios = [a / b for a, b in zip(ours, its, strict=True)]
    return [
        Figure.of("process", "busq, pool='process'", "jobs/s", ours),
        Figure.of("process", "ProcessPoolExecutor, chunksize 1", "jobs/s", its),
        Figure.of("process", "busq / ProcessPoolExecutor", "x", ratios, REQUIRED),
    ]


def children() -> int:
    """As many on both sides as a worker has by itself."""
    return len(os.sched_getaffinity(0))


def _executor(jobs: int) -> float:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(children(), mp_context=spawn) as executor:
        list(executor.map(plain_noop, range(WARM), chunksize=1))
        began = time.monotonic()
        list(executor.map(plain_noop, range(jobs), chunksize=1))
        return time.monotonic() - began


def _busq(place: Place, jobs: int) -> float:
    """Jobs in a second, counted once the children are warm."""
    asyncio.run(_fill(place, jobs + WARM))
    stream = ShardKeys(place.namespace, 0).stream("default").decode()
    with Helper(_be_worker, place) as worker, Redis.from_url(place.url) as redis:
        assert worker.hear() == "ready"
        while (left := int(redis.xlen(stream))) > jobs:
            time.sleep(LOOK_EVERY_S)
        began = time.monotonic()
        while redis.xlen(stream):
            time.sleep(LOOK_EVERY_S)
        return left / (time.monotonic() - began)


async def _fill(place: Place, jobs: int) -> None:
    async with place.bus() as bus:
        for start in range(0, jobs, 1000):
            await bus.enqueue_many([bus.spec("noop", n) for n in range(start, min(jobs, start + 1000))])


async def _be_worker(pipe: Connection, place: Place) -> None:
    await work(pipe, place.bus(handlers))
