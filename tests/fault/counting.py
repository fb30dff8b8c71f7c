"""
A TCP proxy that counts a process's commands and stops everything at one of them.

Either just before that command reaches Redis, or just after it took effect and before its reply is back: those are all
the moments at which a process can die, as far as Redis can tell.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import hiredis
from redis.asyncio import Redis

from busq.store import scripts
from tests.fault.relay import Directions, Relay
from tests.roles import elsewhere

SCRIPTS = {scripts.load(name).sha.encode(): name for name in scripts.names()}


class CountingProxy(Relay):
    """
    Before the server at `url`, a tester's. `at`: the command, counted from 1 over all connections; `reached` is set
    when everything stands still; `sent` names the commands, those of scripts by their verbs.
    """

    def __init__(self, url: str, *, at: int, after: bool) -> None:
        super().__init__(urlsplit(url).port)
        self._behind = url
        self._at = at
        self._after = after
        self._still = False
        self.reached = asyncio.Event()
        self.sent: list[str] = []

    @property
    def url(self) -> str:
        return elsewhere(self._behind, self.place)

    @property
    def point(self) -> str:
        """Where it stands still, for people."""
        return f"{'after' if self._after else 'before'} command {self._at}, {self.sent[self._at - 1]}"

    async def __aenter__(self) -> Self:
        self._admin = Redis.from_url(self._behind)
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        await self._admin.aclose()

    def relay(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> Directions:
        return self._up(client[0], server[1]), self._down(server[0], client[1])

    async def _up(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader()
        while piece := await reader.read(1 << 16):
            commands.feed(piece)
            while (command := commands.gets()) is not False:
                await self._forward(command, to)

    async def _forward(self, command: list[bytes], to: asyncio.StreamWriter) -> None:
        if self._still:
            await _for_ever()
        self.sent.append(SCRIPTS.get(command[1] if len(command) > 1 else b"") or command[0].decode())
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


async def _for_ever() -> None:
    await asyncio.Event().wait()
