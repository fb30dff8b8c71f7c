"""
A TCP proxy that counts a process's commands and stops everything at one of them.

Either just before that command reaches Redis, or just after it took effect and before its reply is back: those are all
the moments at which a process can die, as far as Redis can tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import hiredis
from redis.asyncio import Redis

from busq.cli.embedded import HOST


class CountingProxy:
    """`at`: the command, counted from 1 over all connections. `reached` is set when everything stands still."""

    def __init__(self, port: int, *, at: int, after: bool) -> None:
        self._upstream = port
        self._at = at
        self._after = after
        self._tasks: set[asyncio.Task[None]] = set()
        self._still = False
        self.reached = asyncio.Event()
        self.sent: list[str] = []

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self._port}/0"

    @property
    def point(self) -> str:
        """Where it stands still, for people."""
        return f"{'after' if self._after else 'before'} command {self._at}, {self.sent[self._at - 1]}"

    async def __aenter__(self) -> Self:
        self._admin = Redis(host=HOST, port=self._upstream)
        self._server = await asyncio.start_server(self._connected, HOST, 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._admin.aclose()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            from_server, upstream = await asyncio.open_connection(HOST, self._upstream)
            await _first_of(self._up(reader, upstream), self._down(from_server, writer))
        except (OSError, asyncio.CancelledError):
            pass  # the connection is over, and that is all there is to it
        finally:
            self._tasks.discard(task)
            for each in (writer, upstream):
                if each is not None:
                    each.transport.abort()

    async def _up(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader()
        while piece := await reader.read(1 << 16):
            commands.feed(piece)
            while (command := commands.gets()) is not False:
                await self._forward(command, to)

    async def _forward(self, command: list[bytes], to: asyncio.StreamWriter) -> None:
        if self._still:
            await _for_ever()
        self.sent.append(command[0].decode())
        here = self._still = len(self.sent) == self._at
        if not here or self._after:
            to.write(hiredis.pack_command(tuple(command)))
            await to.drain()
        if here:
            if self._after:
                # What is sent now is answered after what was there before: then the command has taken effect.
                await self._admin.ping()
                await self._admin.ping()
            self.reached.set()
            await _for_ever()

    async def _down(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 16):
            if self._still:
                await _for_ever()
            to.write(piece)
            await to.drain()


async def _first_of(*works: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _for_ever() -> None:
    await asyncio.Event().wait()
