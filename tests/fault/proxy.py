"""
A TCP proxy between a worker and Redis that loses replies: the command took effect and nobody heard of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from busq.cli.embedded import HOST


class Proxy:
    """
    `lose` is asked about every piece that the server sends, together with the last piece that the client had sent;
    where it says True the piece is thrown away and the connection is cut. After `stall` nothing passes either way.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.lose: Callable[[bytes, bytes], bool] = lambda reply, asked: False
        self.lost = 0
        self._passing = asyncio.Event()
        self._passing.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def place(self) -> str:
        return f"{HOST}:{self._port}/0"

    @property
    def url(self) -> str:
        return f"redis://{self.place}"

    def stall(self) -> None:
        self._passing.clear()

    def go_on(self) -> None:
        self._passing.set()

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
        asked = [b""]
        upstream: asyncio.StreamWriter | None = None
        try:
            from_server, upstream = await asyncio.open_connection(HOST, self._upstream)
            up = asyncio.create_task(self._pass(reader, upstream, asked, ask=True))
            down = asyncio.create_task(self._pass(from_server, writer, asked, ask=False))
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                up.cancel()
                down.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the connection is over, and that is all there is to it
        finally:
            self._tasks.discard(task)
            for each in (writer, upstream):
                if each is not None:
                    each.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: list[bytes], *, ask: bool
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                await self._passing.wait()
                if ask:
                    asked[0] = piece
                elif self.lose(piece, asked[0]):
                    self.lost += 1
                    return
                writer.write(piece)
                await writer.drain()
