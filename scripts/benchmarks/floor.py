"""
The floor: a minimal hand-written consumer of a Redis stream, with redis-py, hiredis and uvloop.

No records, no guards, no cancels. Two of them: `tuned` False is what most people would write, redis-py's own calls,
with an XACK and an XDEL of each entry in one pipeline for whatever has ended; the requirements are held against that
one. Reported beside it: `gathered` puts the entries into one XACK and one XDEL, and `tuned` goes past redis-py as well
(commands written by hiredis, answers not touched).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import hiredis
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection

from benchmarks.processes import Place

GROUP = "floor"
COUNT = 100
BLOCK_MS = 2000
PIPELINE = 1000

Handle = Callable[[bytes], Coroutine[Any, Any, None]]


class _WrittenByHiredis:
    def pack_command(self, *args: Any) -> list[bytes]:
        return [hiredis.pack_command(args)]

    def pack_commands(self, commands: Iterable[Any]) -> list[bytes]:
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


async def enqueue(redis: Redis, place: Place, kind: str, payloads: Sequence[bytes], *, tuned: bool = True) -> None:
    for start in range(0, len(payloads), PIPELINE):
        pipeline = redis.pipeline(transaction=False)
        for payload in payloads[start : start + PIPELINE]:
            if tuned:
                pipeline.execute_command("XADD", place.stream, "*", "kind", kind, "payload", payload)
            else:
                pipeline.xadd(place.stream, {"kind": kind, "payload": payload})
        await pipeline.execute()


async def make_group(redis: Redis, place: Place) -> None:
    await redis.execute_command("XGROUP", "CREATE", place.stream, GROUP, "0", "MKSTREAM")  # type: ignore[no-untyped-call]


class Consumer:
    """Runs `handle(payload)` for each entry, in a task each; `drain` never returns."""

    def __init__(self, place: Place, handle: Handle, *, gathered: bool = False, tuned: bool = False) -> None:
        self._place = place
        self._handle = handle
        self._read, self._settle = (_read, _settle) if tuned else (_read_plainly, _settle_plainly)
        if gathered:
            self._settle = _settle_gathered
        self._clients = [connect(place) if tuned else Redis.from_url(place.url) for _ in ("reading", "telling")]
        self._running: set[asyncio.Task[None]] = set()
        self._ended: list[bytes] = []
        self._work = asyncio.Event()

    async def drain(self) -> None:
        loop = asyncio.get_running_loop()
        telling = loop.create_task(self._tell())
        handle, running = self._handle, self._running
        while not telling.done():
            for entry, payload in await self._read(self._clients[0], self._place):
                task = loop.create_task(handle(payload))
                running.add(task)
                task.add_done_callback(partial(self._end, entry))
        telling.result()

    def _end(self, entry: bytes, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        task.result()
        self._ended.append(entry)
        self._work.set()

    async def _tell(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            ended, self._ended = self._ended, []
            await self._settle(self._clients[1], self._place, ended)


async def drain_without_tasks(place: Place, handle: Handle) -> None:
    """The same without tasks: handlers are awaited one by one."""
    redis = Redis.from_url(place.url)
    while True:
        ended = []
        for entry, payload in await _read_plainly(redis, place):
            await handle(payload)
            ended.append(entry)
        if ended:
            await _settle_plainly(redis, place, ended)


# Commands ------------------------------------------------------------------------------------------------


def _read_command(place: Place) -> tuple[Any, ...]:
    return ("XREADGROUP", "GROUP", GROUP, "me", "COUNT", COUNT, "BLOCK", BLOCK_MS, "STREAMS", place.stream, ">")


def _entries(heard: Any) -> list[tuple[bytes, bytes]]:
    return [(entry, fields[3]) for _, entries in heard or () for entry, fields in entries]


async def _read(redis: Redis, place: Place) -> list[tuple[bytes, bytes]]:
    return _entries(await redis.execute_command(*_read_command(place)))  # type: ignore[no-untyped-call]


async def _settle(redis: Redis, place: Place, ended: Sequence[bytes]) -> None:
    pipeline = redis.pipeline(transaction=False)
    pipeline.execute_command("XACK", place.stream, GROUP, *ended)
    pipeline.execute_command("XDEL", place.stream, *ended)
    await pipeline.execute()


async def _read_plainly(redis: Redis, place: Place) -> list[tuple[bytes, bytes]]:
    heard: Any = await redis.xreadgroup(GROUP, "me", {place.stream: ">"}, count=COUNT, block=BLOCK_MS)
    return [(entry, fields[b"payload"]) for _, entries in heard for entry, fields in entries]


async def _settle_gathered(redis: Redis, place: Place, ended: Sequence[bytes]) -> None:
    pipeline = redis.pipeline(transaction=False)
    pipeline.xack(place.stream, GROUP, *ended)
    pipeline.xdel(place.stream, *ended)
    await pipeline.execute()


async def _settle_plainly(redis: Redis, place: Place, ended: Sequence[bytes]) -> None:
    pipeline = redis.pipeline(transaction=False)
    for entry in ended:
        pipeline.xack(place.stream, GROUP, entry)
        pipeline.xdel(place.stream, entry)
    await pipeline.execute()
