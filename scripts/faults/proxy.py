"""
A TCP proxy before the server that can do to its connections what networks do.

    delay        every piece waits
    dribble      one byte at a time
    cut_reply    the next request reaches the server and takes effect; its reply never comes back, the connection is cut
    cut_request  the next request never reaches the server, the connection is cut
    half_open    nothing passes either way, and nobody is told
    reset        the connection ends with RST in the middle of a reply

Counted are connections that were hit, not wishes: a fault that met no connection did nothing.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress

from busq.cli.embedded import HOST

PIECE = 65536


class Link:
    """One client's connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.delay_s = 0.0
        self.dribble = False
        self.cut_reply = False
        self.cut_request = False
        self.reset = False
        self.subscribed = False
        self.asked = False  # since `cut_reply` was wished for
        self.passing = asyncio.Event()
        self.passing.set()

    def heal(self) -> None:
        self.delay_s, self.dribble = 0.0, False
        self.cut_reply = self.cut_request = self.reset = False
        self.passing.set()

    def abort(self) -> None:
        """End both sides; the client's with RST."""
        sock = self.client.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for each in (self.client, self.server):
            each.transport.abort()


class Proxy:
    """Serves on a port of its own between `async with` and its end."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.links: set[Link] = set()
        self.deafened = 0
        self._deaf = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def deafen(self) -> None:
        """From now on nothing passes on a connection that carries a subscription; nobody is told."""
        self._deaf = True
        for link in self.links:
            self._hear(link)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link: Link | None = None
        try:
            from_server, to_server = await asyncio.open_connection(HOST, self._upstream)
            link = Link(writer, to_server)
            self.links.add(link)
            both = {asyncio.create_task(self._up(link, reader)), asyncio.create_task(self._down(link, from_server))}
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in both:
                    each.cancel()
                await asyncio.gather(*both, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the connection is over, and that is all there is to it
        finally:
            self._tasks.discard(task)
            if link is None:
                writer.transport.abort()
            else:
                self.links.discard(link)
                link.abort()

    async def _up(self, link: Link, reader: asyncio.StreamReader) -> None:
        while piece := await reader.read(PIECE):
            await link.passing.wait()
            if link.cut_request:
                break
            link.asked = True
            link.subscribed |= b"SUBSCRIBE" in piece
            self._hear(link)
            await _pass(link, link.server, piece)

    def _hear(self, link: Link) -> None:
        if self._deaf and link.subscribed and link.passing.is_set():
            link.passing.clear()
            self.deafened += 1

    async def _down(self, link: Link, reader: asyncio.StreamReader) -> None:
        while piece := await reader.read(PIECE):
            await link.passing.wait()
            if link.cut_reply and link.asked:
                break
            if link.reset:
                link.client.write(piece[: len(piece) // 2])
                break
            await _pass(link, link.client, piece)


async def _pass(link: Link, to: asyncio.StreamWriter, piece: bytes) -> None:
    if link.delay_s:
        await asyncio.sleep(link.delay_s)
    if not link.dribble:
        to.write(piece)
        await to.drain()
        return
    for i in range(min(len(piece), 400)):
        to.write(piece[i : i + 1])
        await asyncio.sleep(0)
    to.write(piece[400:])
    await to.drain()
