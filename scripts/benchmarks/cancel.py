"""
Cancel: from the call in one process to the `CancelledError` in a handler of another.

Beside it, in turns, a bare redis-py PUBLISH to a `get_message` loop in another process, also on uvloop. The moment
of each call travels in the message: as the reason of a cancel, as the text of a bare one. Cancels hit jobs that
have run for 50 ms and longer, one at a time, a few milliseconds apart.
"""

from __future__ import annotations

import asyncio
import time
from multiprocessing.connection import Connection

from redis.asyncio import Redis

import busq
from benchmarks.figures import Figure, Requirement, latencies
from benchmarks.processes import Helper, Place, fresh_place, until_closed, work

REQUIRED = {50.0: Requirement("under", 3), 99.0: Requirement("under", 10)}
RUN_FOR_S = 0.06
APART_S = 0.005


def measure(url: str, pairs: int, samples: int) -> list[Figure]:
    each = -(-samples // pairs)
    cancels: list[list[float]] = []
    bare: list[list[float]] = []
    with (
        fresh_place(url) as place,
        Helper(_be_worker, place) as worker,
        Helper(_be_client, place) as client,
        Helper(be_subscriber, place) as subscriber,
        Helper(be_publisher, place) as publisher,
    ):
        for helper in (worker, subscriber):
            assert helper.hear() == "ready"
        for turn in range(pairs + 1):
            bare.append(publish(publisher, subscriber, each))
            cancels.append(_cancel(client, worker, each))
            if turn == 0:  # connections opened, scripts loaded
                bare.clear()
                cancels.clear()
    return latencies("cancel", cancels, bare, REQUIRED, floor_name="bare PUBLISH")


def publish(publisher: Helper, subscriber: Helper, count: int) -> list[float]:
    publisher.tell(count)
    return [subscriber.hear() for _ in range(count)]


def _cancel(client: Helper, worker: Helper, count: int) -> list[float]:
    client.tell(count)
    for _ in range(count):
        worker.hear()
    time.sleep(RUN_FOR_S)
    client.tell("cancel")
    return [worker.hear() for _ in range(count)]


# In processes of their own -------------------------------------------------------------------------------


async def _be_worker(pipe: Connection, place: Place) -> None:
    bus = place.bus()

    @bus.job
    async def sleep_long() -> None:
        pipe.send("started")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            heard = time.monotonic()
            pipe.send(heard - float(busq.current_job().reason))
            raise

    await work(pipe, bus)


async def _be_client(pipe: Connection, place: Place) -> None:
    async with place.bus() as bus:
        while True:
            handles = await bus.enqueue_many([bus.spec("sleep_long") for _ in range(pipe.recv())])
            pipe.recv()
            for handle in handles:
                await bus.cancel(handle.jid, reason=repr(time.monotonic()))
                await asyncio.sleep(APART_S)


async def be_publisher(pipe: Connection, place: Place) -> None:
    async with Redis.from_url(place.url) as redis:
        while True:
            for _ in range(pipe.recv()):
                await redis.publish(f"{place.namespace}:bare", repr(time.monotonic()))
                await asyncio.sleep(APART_S)


async def be_subscriber(pipe: Connection, place: Place) -> None:
    async with Redis.from_url(place.url) as redis, redis.pubsub() as ear:
        await ear.subscribe(f"{place.namespace}:bare")

        async def listen() -> None:
            while True:
                message = await ear.get_message(timeout=1.0)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    pipe.send("ready")
                else:
                    pipe.send(time.monotonic() - float(message["data"]))

        await until_closed(pipe, listen())
