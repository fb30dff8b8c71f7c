"""
A TCP proxy between a worker and Redis that loses replies: the command took effect and nobody heard of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from tests.fault.relay import Directions, Relay


class Proxy(Relay):
    """
    `lose` is asked about every piece that the server sends, together with the last piece that the client had sent;
    where it says True the piece is thrown away and the connection is cut. After `stall` nothing passes either way.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.lose: Callable[[bytes, bytes], bool] = lambda reply, asked: False
        self.lost = 0
        self._passing = asyncio.Event()
        self._passing.set()

    @property
    def url(self) -> str:
        return f"redis://{self.place}"

    def stall(self) -> None:
        self._passing.clear()

    def go_on(self) -> None:
        self._passing.set()

    def relay(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> Directions:
        asked = [b""]
        return self._pass(client[0], server[1], asked, ask=True), self._pass(server[0], client[1], asked, ask=False)

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
