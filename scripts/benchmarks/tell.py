"""
Tell: from the decision that a whole group stops to the `CancelledError` in each of its running handlers.

The jobs are coroutines and run in four worker processes at once, all in one group; nobody else tells a handler, for no
watchdog runs. Clocks are `time.monotonic()` of one machine. A handler notes its moment, and each worker hands in what
its handlers have noted when the last of them has.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection

from redis import Redis

from benchmarks.figures import Figure, Requirement, over
from benchmarks.processes import Helper, Place, fresh_place, work
from benchmarks.wide import fill
from busq.protocol.keys import ShardKeys

REQUIRED = Requirement("at most", 1000)
WORKERS = 4
ROUNDS = 3  # at most
LOOK_EVERY_S = 0.01
PATIENCE_S = 120.0


def measure(url: str, pairs: int, running: int) -> list[Figure]:
    heard: list[list[float]] = []
    returned: list[float] = []
    with fresh_place(url) as place, ExitStack() as stack:
        workers = [stack.enter_context(Helper(_be_worker, place, -(-running // WORKERS))) for _ in range(WORKERS)]
        for worker in workers:
            assert worker.hear() == "ready"
        for turn in range(min(pairs, ROUNDS)):
            asyncio.run(fill(place, (("sleep_long", "many") for _ in range(running))))
            _wait_until(place, "started", running * (turn + 1))
            began, decided = asyncio.run(_decide(place))
            returned.append((decided - began) * 1000)
            heard.append([moment - began for moment in _moments(workers, running)])
            _wait_until(place, "cancelled", running * (turn + 1))
    required = {100.0: REQUIRED}
    figures = [Figure.of("tell", "the call itself", "ms", returned)]
    for percent, name in ((50.0, "p50"), (99.0, "p99"), (100.0, "the last one")):
        spread, asked = over(heard, percent), required.get(percent)
        ok = None if asked is None else asked.met_by(spread.max)
        figures.append(Figure("tell", f"{running:,} handlers: {name}", "ms", spread, asked, ok))
    return figures


def _wait_until(place: Place, counter: str, count: int) -> None:
    counters = ShardKeys(place.namespace, 0).counters.decode()
    until = time.monotonic() + PATIENCE_S
    with Redis.from_url(place.url) as redis:
        while int(redis.hget(counters, counter) or 0) < count:
            if time.monotonic() > until:
                raise RuntimeError(f"not {count:,} jobs were {counter} after {PATIENCE_S:g} s")
            time.sleep(LOOK_EVERY_S)


def _moments(workers: list[Helper], count: int) -> list[float]:
    moments: list[float] = []
    until = time.monotonic() + PATIENCE_S
    while len(moments) < count:
        for worker in workers:
            for noted in worker.overheard():
                moments += noted
        if time.monotonic() > until:
            raise RuntimeError(f"{count - len(moments):,} handlers had not observed it after {PATIENCE_S:g} s")
        time.sleep(LOOK_EVERY_S)
    return moments


async def _decide(place: Place) -> tuple[float, float]:
    """The moments before and after the call."""
    async with place.bus() as bus:
        await bus.cancel_group("nobody")  # the connection is open, the script loaded
        began = time.monotonic()
        await bus.cancel_group("many")
        decided = time.monotonic()
    return began, decided


async def _be_worker(pipe: Connection, place: Place, slots: int) -> None:
    bus = place.bus()
    running: set[object] = set()
    noted: list[float] = []

    @bus.job
    async def sleep_long() -> None:
        me = object()
        running.add(me)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            noted.append(time.monotonic())
            running.discard(me)
            if not running:
                pipe.send(noted)
                noted.clear()
            raise

    await work(pipe, bus, concurrency=slots)
