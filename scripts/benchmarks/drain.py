"""
Drain: how fast one worker process empties a full queue of no-op coroutine jobs.

Both sides begin with the whole queue in Redis. The clock runs from the first job's start, told by the handler, to
the moment when the stream is empty: both delete an entry only when its job has ended and is recorded. That moment
is found by asking for the stream's length every few milliseconds, of both sides alike.
"""

from __future__ import annotations

import asyncio
import time
from multiprocessing.connection import Connection

from redis import Redis

from benchmarks import floor
from benchmarks.figures import Figure, Requirement
from benchmarks.processes import PATIENCE_S, Helper, Place, fresh_place, until_closed, work
from busq.protocol.codec import EMPTY_PAYLOAD
from busq.protocol.keys import ShardKeys

REQUIRED = Requirement("at least", 0.4, aim=0.8)
LOOK_EVERY_S = 0.003
GATHERED = "floor, endings gathered"
TUNED = "floor, tuned past redis-py"
FLOORS = ("floor", "floor without tasks", GATHERED, TUNED)


def measure(url: str, pairs: int, jobs: int) -> list[Figure]:
    rates: dict[str, list[float]] = {name: [] for name in ("busq", *FLOORS)}
    for turn in range(pairs):
        for name in list(rates) if turn % 2 else reversed(rates):
            with fresh_place(url) as place:
                seconds = _busq(place, jobs) if name == "busq" else _floor(place, jobs, name)
                rates[name].append(jobs / seconds)
    figures = [Figure.of("drain", name, "jobs/s", values) for name, values in rates.items()]
    for name in FLOORS:
        required = REQUIRED if name == "floor" else None
        ratios = [mine / its for mine, its in zip(rates["busq"], rates[name], strict=True)]
        figures.append(Figure.of("drain", f"busq / {name}", "x", ratios, required))
    return figures


# The sides -----------------------------------------------------------------------------------------------


def _busq(place: Place, jobs: int) -> float:
    asyncio.run(fill(place, jobs))
    stream = ShardKeys(place.namespace, 0).stream("default").decode()
    with Helper(be_worker, place) as worker:
        return wait_for_end(place, stream, worker)


def _floor(place: Place, jobs: int, name: str) -> float:
    asyncio.run(_fill_floor(place, jobs))
    with Helper(_be_consumer, place, name) as consumer:
        return wait_for_end(place, place.stream, consumer)


def wait_for_end(place: Place, stream: str, helper: Helper) -> float:
    """Seconds from the first start, which the helper tells, until the stream is empty."""
    first: float | None = None
    with Redis.from_url(place.url) as redis:
        while first is None:
            told = helper.hear()
            first = told if told != "ready" else None
        while redis.xlen(stream):
            if time.monotonic() - first > PATIENCE_S:
                raise RuntimeError(f"the queue was not empty after {PATIENCE_S:g} s")
            time.sleep(LOOK_EVERY_S)
        return time.monotonic() - first


async def fill(place: Place, jobs: int) -> None:
    async with place.bus() as bus:
        await bus.enqueue_many([bus.spec("noop") for _ in range(jobs)])


async def _fill_floor(place: Place, jobs: int) -> None:
    async with floor.connect(place) as redis:
        await floor.make_group(redis, place)
        await floor.enqueue(redis, place, "noop", [EMPTY_PAYLOAD] * jobs)


# In processes of their own -------------------------------------------------------------------------------


class _First:
    """Tells the moment of the first start, once."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.told = False

    def tell(self) -> None:
        self.told = True
        self._pipe.send(time.monotonic())


async def be_worker(pipe: Connection, place: Place) -> None:
    bus, first = place.bus(), _First(pipe)

    @bus.job
    async def noop() -> None:
        if not first.told:
            first.tell()

    await work(pipe, bus)


async def _be_consumer(pipe: Connection, place: Place, name: str) -> None:
    first = _First(pipe)

    async def noop(payload: bytes) -> None:
        if not first.told:
            first.tell()

    if name == "floor without tasks":
        await until_closed(pipe, floor.drain_without_tasks(place, noop))
    else:
        await until_closed(pipe, floor.Consumer(place, noop, gathered=name == GATHERED, tuned=name == TUNED).drain())
