"""
Hearing notices on one pub/sub connection that cannot go deaf unnoticed.

The thing to hold in mind: a notice may be lost at any time, so the owner re-reads the durable record, and only a
record read *after* the server has confirmed the subscription is worth anything. That is why the owner is told of
confirmations, once for every `subscribe` and once more for all channels after every new connection.

    subscribe ──> SUBSCRIBE ──> the server confirms ──> on_confirmed(channels) ──> the owner re-reads
                                                    └─> from now on: on_notice(channel, message)

redis-py connects (TLS, AUTH, Sentinel, unix sockets) and parses. Its own pub/sub class is not used: it reconnects
silently, waits for ever on a server that has frozen, and where a socket dies with ETIMEDOUT it spins without ever
yielding. Here a PING goes out on a steady beat and whoever stays silent for too long is hung up on.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from busq.clock import Clock, SystemClock
from busq.errors import ConfigError
from busq.store.subscriptions import Subscriptions

BACKOFF_S = (0.05, 2.0)
"""The first and the longest pause between two tries to connect."""

QUIET_S = 2.5
"""After it has told of a loss: further ones within this time are part of the same story."""

TURN = 256
"""Messages taken before other tasks get their turn, so that a flood cannot hold the loop."""


class _LinkLost(Exception):
    """The connection is of no use any more."""


class Listener:
    """
    Exact channels that come and go, on one connection that is watched and replaced when it fails.

    `make_client` gives a fresh client for every connection; its protocol (RESP2 or RESP3) does not matter.
    `on_notice(channel, message)` and `on_confirmed(channels)` are called in the loop and must not block. A channel
    is named to `on_confirmed` after every `subscribe`, and all of them (perhaps none) in one call once a new
    connection has caught up. All methods belong to the loop in which `run` runs.

    With no channel wanted there is no connection, unless `always_connected`: a worker wants to know that its link
    broke even while no job runs. A bus that never waits costs the server nothing.
    """

    def __init__(
        self,
        make_client: Callable[[], Redis],
        *,
        on_notice: Callable[[bytes, bytes], None],
        on_confirmed: Callable[[frozenset[bytes]], None],
        ping_every_s: float = 1.0,
        dead_after_s: float = 3.0,
        always_connected: bool = False,
        linger_s: float = 5.0,
        clock: Clock | None = None,
        log: structlog.typing.FilteringBoundLogger | None = None,
    ) -> None:
        if not 0 < ping_every_s < dead_after_s:
            raise ConfigError(
                f"ping_every_s: {ping_every_s} will not do; it takes less than dead_after_s ({dead_after_s})"
            )
        self._make_client = make_client
        self._on_notice = on_notice
        self._on_confirmed = on_confirmed
        self._ping_every_s = ping_every_s
        self._dead_after_s = dead_after_s
        self._always_connected = always_connected
        self._linger_s = linger_s
        self._now = (clock or SystemClock()).monotonic
        self._log: structlog.typing.FilteringBoundLogger = log or structlog.get_logger("busq.listener")
        self._book = Subscriptions()
        self._wake = asyncio.Event()  # work for `_write`: channels to send, confirmations to tell
        self._caught_up = False  # the first PONG came: every channel wanted at the start is confirmed
        self._heard_at = 0.0  # the server, by anything it sent
        self._asked_at = 0.0  # the first PING after that
        self._failures = 0  # tries to connect since the link last worked
        self._ever_connected = False
        self._told_at = float("-inf")  # of a loss, in the log
        self._told = False
        self.connected_since: float | None = None
        """When the present connection had caught up, on the clock's monotonic time; None while there is none."""
        self.reconnects = 0
        """How often a connection that failed was replaced."""
        self.last_error: str | None = None
        """What ended the last connection, or the last try to make one."""

    # What the owner asks ---------------------------------------------------------------------------------

    def subscribe(self, *channels: bytes) -> None:
        """Want these channels, from now on and across reconnects. Counted: each call needs one `unsubscribe`."""
        for channel in channels:
            self._book.want(channel)
        self._wake.set()

    def unsubscribe(self, *channels: bytes) -> None:
        """Take back one `subscribe` of each; what nobody wants any more is not heard from this moment on."""
        for channel in channels:
            self._book.forget(channel)
        self._wake.set()

    async def confirmed(self, channel: bytes) -> None:
        """Wait until the server has confirmed `channel` on the present connection; for ever if nobody wants it."""
        await self._book.until_confirmed(channel)

    @property
    def healthy(self) -> bool:
        """Whether a notice sent now would be heard, as far as can be known; true too where none is wanted."""
        if not self._caught_up:
            return not self._needed()
        return self._now() - self._heard_at <= self._dead_after_s

    @property
    def subscriptions(self) -> int:
        """How many channels the server has confirmed on the present connection."""
        return len(self._book.confirmed)

    @property
    def silent_for_s(self) -> float | None:
        """How long ago the server was last heard (a PONG at the latest); None without a connection."""
        return self._now() - self._heard_at if self.connected_since is not None else None

    # One connection after another ------------------------------------------------------------------------

    async def run(self) -> None:
        """Listen until cancelled. What Redis or the network does is survived, noted and never raised."""
        while True:
            while not self._needed():
                self._wake.clear()
                await self._wake.wait()
            await self.run_while_needed()

    async def run_while_needed(self) -> None:
        """The same, but end when nothing has been wanted for a while: for an owner that may just be forgotten."""
        while self._needed():
            try:
                await self._one_connection()
            except Exception as error:  # whatever it was: a listener that gives up is deaf
                self._note_loss(error)
                await asyncio.sleep(self._backoff())

    def _needed(self) -> bool:
        return self._always_connected or bool(self._book.wanted)

    def _backoff(self) -> float:
        shortest, longest = BACKOFF_S
        return random.uniform(shortest, min(longest, shortest * 2 ** min(self._failures, 10)))

    async def _one_connection(self) -> None:
        """Connect and listen until something fails, or until nothing has been wanted for a while."""
        client = self._make_client()  # held until the end: a Sentinel connection knows its pool only weakly
        connection: Any = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        connection.retry = Retry(NoBackoff(), 0)
        try:
            # A task of its own: on Python 3.11 the handshake's `wait_for` can swallow a cancel, which then is not ours.
            await _until_one_ends(self._connect(connection))
            _take_over(connection)
            self._book.start()
            self._asked_at = self._heard_at = self._now()
            await _until_one_ends(self._read(connection), self._write(connection))
        finally:
            self._caught_up = False
            self.connected_since = None
            self._book.stop()
            await _hang_up(connection)

    async def _connect(self, connection: Any) -> None:
        async with asyncio.timeout(self._dead_after_s):
            await connection.connect()

    def _note_loss(self, error: BaseException) -> None:
        self.last_error = f"{type(error).__name__}: {error}"
        self._failures += 1
        # One line for an outage, not one for each try, nor for each of many short ones.
        if self._failures == 1 and self._now() - self._told_at >= QUIET_S:
            self._told, self._told_at = True, self._now()
            self._log.warning("listener.lost", error=self.last_error, channels=len(self._book.wanted))

    # The reading side ------------------------------------------------------------------------------------

    async def _read(self, connection: Any) -> None:
        read, now, book, on_notice = connection.read_response, self._now, self._book, self._on_notice
        taken = 0
        while True:
            reply = await read(disable_decoding=True, disconnect_on_error=False, push_request=True)
            taken += 1
            # redis-py says None where a read did not wait (a push that it keeps for itself, a dead socket in some
            # versions). That is no sign of life, and the only thing that must not happen is a loop that never yields.
            if reply is None or taken % TURN == 0:
                await asyncio.sleep(0)
                if reply is None:
                    continue
            self._heard_at = now()
            kind = reply[0] if isinstance(reply, list) else b"pong"
            if kind == b"message":
                if reply[1] in book.wanted:
                    try:
                        on_notice(reply[1], reply[2])
                    except Exception:
                        # A notice comes from anyone who may PUBLISH; none of them may take the listener down.
                        self._log.exception("listener.notice_failed", channel=reply[1])
            elif kind == b"pong":
                if not self._caught_up:
                    self._catch_up()
            elif book.answered(reply[1], subscribed=kind == b"subscribe"):
                self._wake.set()

    def _catch_up(self) -> None:
        # Replies come in the order of the commands, and the first PING went out after the SUBSCRIBEs of everything
        # that was wanted. So its PONG says that all of those are confirmed.
        self._caught_up = True
        self.connected_since = self._now()
        if self._failures and self._ever_connected:
            self.reconnects += 1
        if self._told and self._ever_connected:
            self._told = False
            self._log.info("listener.reconnected", channels=len(self._book.confirmed), tries=self._failures)
        self._ever_connected = True
        self._failures = 0
        self._wake.set()

    # The writing side ------------------------------------------------------------------------------------

    async def _write(self, connection: Any) -> None:
        """
        Send what is due, tell the owner what is confirmed, raise on silence; never wait for the reader.

        Return when nothing has been wanted for a while.
        """
        told = False
        ping_at = wanted_at = self._now()
        while True:
            self._wake.clear()
            if self._caught_up:
                news = self._book.news()
                if news or not told:
                    told = True
                    self._on_confirmed(news)
            for command, channels in self._book.commands():
                await self._send(connection, command, *channels)
            now = self._now()
            if now >= ping_at:
                ping_at = now + self._ping_every_s
                if self._asked_at <= self._heard_at:  # the one before was answered, this one's wait begins
                    self._asked_at = now
                await self._send(connection, b"PING")
            if self._needed():
                wanted_at = now
            elif now - wanted_at >= self._linger_s:
                return
            await self._pause(min(ping_at, self._dead_at()) - now)
            if self._now() >= self._dead_at():
                await self._second_look()

    async def _send(self, connection: Any, *words: bytes) -> None:
        # The limit is ours, for a frozen server stops reading too and the write buffer fills.
        async with asyncio.timeout(self._dead_after_s):
            await connection.send_packed_command(connection.pack_command(*words), check_health=False)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _dead_at(self) -> float:
        # Silence alone proves nothing when our own loop was held up and no PING was out meanwhile. So a PING must have
        # waited too, as long as it would have in a loop that was not.
        if self._asked_at <= self._heard_at:
            return math.inf
        patience_s = self._dead_after_s - self._ping_every_s
        return max(self._heard_at + self._dead_after_s, self._asked_at + patience_s)

    async def _second_look(self) -> None:
        # After a hold-up the answer may lie in the socket; the reader gets at it before a timer that starts now ends.
        await asyncio.sleep(0.01)
        if self._now() >= self._dead_at():
            raise _LinkLost(f"nothing heard for {self._now() - self._heard_at:.2f} s")


def _take_over(connection: Any) -> None:
    """Make a connected connection ours: no read or write limit but our own, no work on each push."""
    # With a limit of its own redis-py cannot tell a socket's ETIMEDOUT from a limit that has run out.
    connection.socket_timeout = None
    parser: Any = getattr(connection, "_parser", None)
    if hasattr(parser, "set_pubsub_push_handler"):  # RESP3: the stock handler formats every message for a debug line
        parser.set_pubsub_push_handler(_as_it_is)


async def _as_it_is(reply: Any) -> Any:
    return reply


async def _hang_up(connection: Any) -> None:
    """Close at once. A dead peer would keep an orderly close (flush, TLS goodbye) waiting for minutes."""
    writer = getattr(connection, "_writer", None)
    if writer is not None:
        writer.transport.abort()
    await connection.disconnect(nowait=True)


async def _until_one_ends(*sides: Coroutine[Any, Any, None]) -> None:
    # Not a task group: one that is failing already swallows a cancel that comes from outside in the same turn.
    tasks = [asyncio.create_task(side) for side in sides]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):
            raise error
