"""
The floor under a cancel: a bare redis-py PUBLISH to a `get_message` loop in another process, also on uvloop.

The moment of each call travels as the text of its message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from redis.asyncio import Redis

from benchmarks.processes import Helper, Place, until_closed
from benchmarks.turns import Measured

APART_S = 0.005


@contextmanager
def publishing(place: Place) -> Iterator[Callable[[int], Measured]]:
    """A call that publishes so many messages, a few milliseconds apart, and answers with what each took."""
    with Helper(_be_subscriber, place) as subscriber, Helper(_be_publisher, place) as publisher:
        assert subscriber.hear() == "ready"

        def publish(count: int) -> Measured:
            publisher.tell(count)
            return [subscriber.hear() for _ in range(count)]

        yield publish


# In processes of their own -------------------------------------------------------------------------------


async def _be_publisher(pipe: Connection, place: Place) -> None:
    async with Redis.from_url(place.url) as redis:
        while True:
            for _ in range(pipe.recv()):
                await redis.publish(f"{place.namespace}:bare", repr(time.monotonic()))
                await asyncio.sleep(APART_S)


async def _be_subscriber(pipe: Connection, place: Place) -> None:
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
