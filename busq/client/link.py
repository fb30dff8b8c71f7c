"""
A bus's connections in one event loop: the store, the reader, and the ear for announcements.

A connection belongs to the loop that opened it, and one `Bus` may be used from several: `asyncio.run` twice, a
blocking call's own loop. So each loop gets a link of its own, made on first use.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from busq import tasks
from busq.config import Settings
from busq.protocol.durability import Durability
from busq.store.confirming import Confirming
from busq.store.listener import Listener
from busq.store.reader import Reader
from busq.store.scopes import Scopes
from busq.store.store import Store

LOOK_AGAIN_S = 5.0  # a waiter re-reads this often even if nothing rang: announcements may be lost


async def rung(bell: asyncio.Event) -> None:
    """Wait until a bell rings, or until it is time to look again all the same."""
    try:
        async with asyncio.timeout(LOOK_AGAIN_S):
            await bell.wait()
    except TimeoutError:
        return
    finally:
        bell.clear()


class Link:
    def __init__(self, settings: Settings) -> None:
        self.store = Store(settings, by=f"{socket.gethostname()}:{os.getpid()}")
        self.reader = Reader(self.store)
        self.scopes = Scopes(self.store)
        self._rung: dict[bytes, set[asyncio.Event]] = {}
        self._listener = Listener(
            self.store.connections.listening,
            on_notice=lambda channel, message: self._ring(channel),
            on_confirmed=self._ring_all,
        )
        self._listening: asyncio.Task[None] | None = None

    def confirming(self, wanted: frozenset[Durability]) -> Confirming | None:
        """How what a call writes is to be confirmed; None for not at all."""
        return Confirming(wanted, self.store.settings) if wanted else None

    async def open(self) -> None:
        """Meet the bus; safe to repeat."""
        await self.store.open()

    async def close(self) -> None:
        if self._listening is not None:
            await tasks.end(self._listening)
            self._listening = None
        await self.store.close()

    @asynccontextmanager
    async def bell(self, of: str) -> AsyncIterator[asyncio.Event]:
        """
        An event that is set whenever `of`, a job or a scope, may have ended: at an announcement, and after each
        (re)connection.

        It is first set when the server has confirmed the subscription: a record read after that misses nothing.
        """
        channel = self.store.done_prefix + of.encode()
        bell = asyncio.Event()
        self._rung.setdefault(channel, set()).add(bell)
        self._listener.subscribe(channel)
        if self._listening is None or self._listening.done():
            # Not for ever: a bus that is dropped without a close would leave a task that is never to end.
            self._listening = asyncio.create_task(self._listener.run_while_needed())
        try:
            yield bell
        finally:
            self._listener.unsubscribe(channel)
            waiting = self._rung[channel]
            waiting.discard(bell)
            if not waiting:
                del self._rung[channel]

    def _ring_all(self, channels: frozenset[bytes]) -> None:
        for channel in channels:
            self._ring(channel)

    def _ring(self, channel: bytes) -> None:
        for bell in self._rung.get(channel, ()):
            bell.set()
