"""
The floor: the least that a consumer of a Redis stream can do in Python with redis-py, hiredis and uvloop.

No records, no guards, no cancels; but honest, so as fast as we could make it: commands written by hiredis,
answers not touched by redis-py, entries acknowledged and deleted in whatever batches they end in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import urlsplit

import hiredis
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection

from benchmarks.processes import Place

GROUP = "floor"
COUNT = 100
PIPELINE = 1000

Handle = Callable[[bytes], Coroutine[Any, Any, None]]


class _WrittenByHiredis:
    def pack_command(self, *args: Any) -> list[bytes]:
        return [hiredis.pack_command(args)]

    def pack_commands(self, commands: Sequence[Any]) -> list[bytes]:
        return [b"".join([hiredis.pack_command(command) for command in commands])]


class _Tcp(_WrittenByHiredis, Connection):
    pass


class _Tls(_WrittenByHiredis, SSLConnection):
    pass


class _Unix(_WrittenByHiredis, UnixDomainSocketConnection):
    pass


def connect(place: Place) -> Redis:
    kinds = {"redis": _Tcp, "rediss": _Tls, "unix": _Unix}
    pool: Any = ConnectionPool.from_url(
        place.url, protocol=2, socket_timeout=None, connection_class=kinds[urlsplit(place.url).scheme]
    )
    redis = Redis.from_pool(pool)
    redis.response_callbacks.clear()
    return redis


async def enqueue(redis: Redis, place: Place, kind: str, payloads: Sequence[bytes]) -> None:
    for start in range(0, len(payloads), PIPELINE):
        pipeline = redis.pipeline(transaction=False)
        for payload in payloads[start : start + PIPELINE]:
            pipeline.execute_command("XADD", place.stream, "*", "kind", kind, "payload", payload)
        await pipeline.execute()


async def make_group(redis: Redis, place: Place) -> None:
    await redis.execute_command("XGROUP", "CREATE", place.stream, GROUP, "0", "MKSTREAM")


def _read(place: Place) -> tuple[Any, ...]:
    return ("XREADGROUP", "GROUP", GROUP, "me", "COUNT", COUNT, "BLOCK", 2000, "STREAMS", place.stream, ">")


class Consumer:
    """Runs `handle(payload)` for each entry, in a task each; `drain` never returns."""

    def __init__(self, place: Place, handle: Handle) -> None:
        self._place = place
        self._handle = handle
        self._reading, self._telling = connect(place), connect(place)
        self._running: set[asyncio.Task[None]] = set()
        self._ended: list[bytes] = []
        self._work = asyncio.Event()

    async def drain(self) -> None:
        loop = asyncio.get_running_loop()
        telling = loop.create_task(self._tell())
        read, handle, running = _read(self._place), self._handle, self._running
        while not telling.done():
            for _, entries in await self._reading.execute_command(*read) or ():
                for entry, fields in entries:
                    task = loop.create_task(handle(fields[3]))
                    running.add(task)
                    task.add_done_callback(lambda done, entry=entry: self._end(done, entry))
        telling.result()

    def _end(self, task: asyncio.Task[None], entry: bytes) -> None:
        self._running.discard(task)
        task.result()
        self._ended.append(entry)
        self._work.set()

    async def _tell(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            ended, self._ended = self._ended, []
            await _settle(self._telling, self._place, ended)


async def drain_without_tasks(place: Place, handle: Handle) -> None:
    """The same in one task: handlers are awaited one after the other; what ended is told with the next read."""
    redis = connect(place)
    read = _read(place)
    ended: list[bytes] = []
    while True:
        pipeline = redis.pipeline(transaction=False)
        if ended:
            pipeline.execute_command("XACK", place.stream, GROUP, *ended)
            pipeline.execute_command("XDEL", place.stream, *ended)
        pipeline.execute_command(*read)
        heard = (await pipeline.execute())[-1]
        ended = []
        for _, entries in heard or ():
            for entry, fields in entries:
                await handle(fields[3])
                ended.append(entry)


async def _settle(redis: Redis, place: Place, ended: Sequence[bytes]) -> None:
    pipeline = redis.pipeline(transaction=False)
    pipeline.execute_command("XACK", place.stream, GROUP, *ended)
    pipeline.execute_command("XDEL", place.stream, *ended)
    await pipeline.execute()

