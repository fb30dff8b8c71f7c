"""
Light load: from the enqueue to the handler's first line, one job at a time, some 20 ms apart.

Beside it, in turns, an XADD to the floor's consumer. The moment before the call travels as the job's argument.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from multiprocessing.connection import Connection

from benchmarks import floor
from benchmarks.figures import Figure, Requirement, latencies
from benchmarks.processes import Helper, Place, fresh_place, until_closed, work
from benchmarks.turns import Measured, in_turns

REQUIRED = {99.0: Requirement("under", 3)}
APART_S = 0.02


def measure(url: str, pairs: int, samples: int) -> list[Figure]:
    with (
        fresh_place(url) as place,
        Helper(_be_worker, place) as worker,
        Helper(_be_producer, place) as producer,
        Helper(_be_consumer, place) as consumer,
        Helper(_be_floor_producer, place) as floor_producer,
    ):
        for helper in (worker, consumer):
            assert helper.hear() == "ready"
        sides = [partial(_round, floor_producer, consumer), partial(_round, producer, worker)]
        its, ours = in_turns(pairs, samples, sides)
    return latencies("start", ours, its, REQUIRED, floor_name="XADD to floor")


def _round(producer: Helper, consumer: Helper, count: int) -> Measured:
    producer.tell(count)
    return [consumer.hear() for _ in range(count)]


# In processes of their own -------------------------------------------------------------------------------


async def _be_worker(pipe: Connection, place: Place) -> None:
    bus = place.bus()

    @bus.job
    async def tell(sent: float) -> None:
        pipe.send(time.monotonic() - sent)

    await work(pipe, bus)


async def _be_producer(pipe: Connection, place: Place) -> None:
    async with place.bus() as bus:
        while True:
            for _ in range(pipe.recv()):
                await bus.enqueue("tell", time.monotonic())
                await asyncio.sleep(APART_S)


async def _be_consumer(pipe: Connection, place: Place) -> None:
    async def tell(payload: bytes) -> None:
        pipe.send(time.monotonic() - float(payload))

    async with floor.connect(place) as redis:
        await floor.make_group(redis, place)
    pipe.send("ready")
    await until_closed(pipe, floor.Consumer(place, tell).drain())


async def _be_floor_producer(pipe: Connection, place: Place) -> None:
    async with floor.connect(place) as redis:
        while True:
            for _ in range(pipe.recv()):
                await redis.xadd(place.stream, {"kind": "tell", "payload": repr(time.monotonic())})
                await asyncio.sleep(APART_S)
