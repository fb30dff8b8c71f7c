"""
What the proxies before Redis share: connections accepted, joined to the server's, and all of them ended at the end.

Two works go on for each connection, one for each direction; when one of them is over the connection is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from busq.cli.embedded import HOST

Directions = tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]


class Relay:
    """`upstream`: the server's port. What passes, and how, is for those who inherit to say (`relay`)."""

    def __init__(self, upstream: int | None) -> None:
        self._upstream = upstream
        self._tasks: set[asyncio.Task[None]] = set()

    def relay(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> Directions:
        """From the client to the server, and back."""
        raise NotImplementedError

    @property
    def place(self) -> str:
        return f"{HOST}:{self._port}/0"

    async def __aenter__(self) -> Self:
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

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            from_server, upstream = await asyncio.open_connection(HOST, self._upstream)
            await _first_of(*self.relay((reader, writer), (from_server, upstream)))
        except (OSError, asyncio.CancelledError):
            pass  # the connection is over, and that is all there is to it
        finally:
            self._tasks.discard(task)
            for each in (writer, upstream):
                if each is not None:
                    each.transport.abort()


async def _first_of(*works: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
