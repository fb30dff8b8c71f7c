"""
Which channels are wanted, asked for and confirmed, kept apart from the connection that carries them.

The thing to hold in mind: answers to SUBSCRIBE and UNSUBSCRIBE come in order but late, and a channel may have been
dropped and wanted again meanwhile. Only the answer to the last command sent for a channel counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

CHUNK = 500
"""Channels in one SUBSCRIBE at most, so that no single command holds the server or the write buffer for long."""


class Subscriptions:
    """
    Which channels are wanted, asked for and confirmed; no input or output.

    Always true: `confirmed` holds exactly the channels whose last command was a SUBSCRIBE that the server has
    answered. A channel that is dropped and wanted again quickly has several answers on their way; only the last
    one counts, so a late confirmation of the earlier subscription is never taken for the present one.
    """

    def __init__(self) -> None:
        self.wanted: dict[bytes, int] = {}
        self.confirmed: set[bytes] = set()
        self._asked: set[bytes] = set()  # the last command sent for it was SUBSCRIBE
        self._owed: dict[bytes, int] = {}  # answers that the server still owes
        self._changed: set[bytes] = set()  # perhaps to be sent
        self._fresh: set[bytes] = set()  # confirmed or wanted once more, and the owner has not been told
        self._waiting: dict[bytes, set[asyncio.Future[None]]] = {}
        self._connected = False

    def start(self) -> None:
        """A new connection is there: everything wanted is to be asked for."""
        self._connected = True
        self._changed = set(self.wanted)

    def stop(self) -> None:
        """The connection is gone, and with it all that the server knew."""
        self._connected = False
        for state in (self.confirmed, self._asked, self._owed, self._changed, self._fresh):
            state.clear()

    def want(self, channel: bytes) -> None:
        self.wanted[channel] = self.wanted.get(channel, 0) + 1
        if channel in self.confirmed:
            self._fresh.add(channel)
        if self._connected:  # else `start` takes all, and an outage gathers nothing
            self._changed.add(channel)

    def forget(self, channel: bytes) -> None:
        count = self.wanted.get(channel, 0)
        if count > 1:
            self.wanted[channel] = count - 1
        elif count == 1:
            del self.wanted[channel]
            if self._connected:
                self._changed.add(channel)

    def commands(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """What is to be sent now; a command counts as sent when it is taken."""
        changed, self._changed = self._changed, set()
        for channels in _chunks(list(changed)):
            # Judged at the last moment: what is wanted may have changed while the chunk before was being sent.
            leave = [channel for channel in channels if channel in self._asked and channel not in self.wanted]
            if leave:
                self._asked.difference_update(leave)
                self.confirmed.difference_update(leave)
                self._owe(leave)
                yield b"UNSUBSCRIBE", leave
            join = [channel for channel in channels if channel in self.wanted and channel not in self._asked]
            if join:
                self._asked.update(join)
                self._owe(join)
                yield b"SUBSCRIBE", join

    def _owe(self, channels: Iterable[bytes]) -> None:
        for channel in channels:
            self._owed[channel] = self._owed.get(channel, 0) + 1

    def answered(self, channel: bytes, *, subscribed: bool) -> bool:
        """Take an answer to SUBSCRIBE or UNSUBSCRIBE; return whether `channel` is confirmed by it."""
        owed = self._owed.pop(channel, 0) - 1
        if owed > 0:
            self._owed[channel] = owed
            return False
        if not subscribed or channel not in self._asked:
            return False
        self.confirmed.add(channel)
        self._fresh.add(channel)
        for waiting in self._waiting.pop(channel, ()):
            if not waiting.done():
                waiting.set_result(None)
        return True

    def news(self) -> frozenset[bytes]:
        """The channels that the owner has to be told of; each is given out once."""
        fresh, self._fresh = self._fresh, set()
        return frozenset(channel for channel in fresh if channel in self.wanted and channel in self.confirmed)

    async def until_confirmed(self, channel: bytes) -> None:
        # Asked again after each wake-up: the connection may have been lost between the answer and this task's turn.
        while channel not in self.confirmed:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(channel, set()).add(waiting)
            try:
                await waiting
            finally:
                others = self._waiting.get(channel)
                if others is not None:
                    others.discard(waiting)
                    if not others:
                        del self._waiting[channel]


def _chunks(channels: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(channels), CHUNK):
        yield channels[start : start + CHUNK]
