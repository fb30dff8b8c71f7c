"""
Connections to Redis, and what counts as "not reachable".

Three kinds, because one set of timeouts fits none of the others: commands (short deadline, re-sent a few times:
every script is safe to send twice), blocking reads (the deadline outlasts the read, never re-sent: a lost reply is
found among the reader's own pending entries) and pub/sub (the listener has its own end-to-end deadline). Bytes
throughout: one undecodable message must not wedge a consumer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff

from busq.config import Settings
from busq.errors import ConfigError
from busq.store.trouble import as_ours

SCHEMES = ("redis", "rediss", "unix")
BLOCK_MS = 2000  # a blocking read asks at least this often, so that a dead connection is found
RESENDS = 3


def require_url(settings: Settings) -> str:
    """The URL to talk to; `ConfigError` with what to do when there is none or it cannot be one."""
    if not settings.url:
        raise ConfigError(
            "no Redis URL: set BUSQ_URL=redis://host:6379/0 or pass one, busq.Bus('redis://…'). "
            "For a first try without a server, `busq dev APP` or `busq demo` start one of their own."
        )
    try:
        parts = urlsplit(settings.url)
    except ValueError as error:
        raise ConfigError(f"url: {redact(settings.url)} will not do: {error}") from None
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"url: {redact(settings.url)!r} has scheme {parts.scheme!r}; it takes redis://, rediss:// (TLS) or unix://"
        )
    return settings.url


def redact(url: str) -> str:
    """The URL without its password, and without anything in its query, for people's eyes."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        user = parts.username or ""
    except ValueError:
        return "(a malformed URL)"
    login = f"{user}:***@" if "@" in parts.netloc else ""
    return urlunsplit((parts.scheme, login + host, parts.path, "***" if parts.query else "", ""))


# redis-py types every reply for both protocols and both decodings at once. Here all is bytes, and where a reply is
# taken apart its shape is checked; so the clients are not typed, once and for all, right here.
Client = Any


class _Ours(AbstractConnection):
    """
    Two things that redis-py's asyncio connections do not do.

    Commands are written by hiredis, as its blocking connections do: a batch has a thousand arguments. And a write
    is limited by `asyncio.timeout`: with `wait_for`, which redis-py uses, Python 3.11 loses a cancellation that comes
    together with the end of the write, and a task that reads for ever never hears that it shall stop.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        limit_s, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(limit_s):
                await super().send_packed_command(command, check_health)
        except TimeoutError:
            raise redis_errors.TimeoutError("Timeout writing to socket") from None
        finally:
            self.socket_timeout = limit_s

    def pack_command(self, *args: Any) -> list[bytes]:
        if isinstance(args[0], str) and " " in args[0]:
            args = (*args[0].split(), *args[1:])
        return [hiredis.pack_command(args)]


class _TcpConnection(_Ours, Connection):
    pass


class _TlsConnection(_Ours, SSLConnection):
    pass


class _UnixConnection(_Ours, UnixDomainSocketConnection):
    pass


_CONNECTIONS = {"redis": _TcpConnection, "rediss": _TlsConnection, "unix": _UnixConnection}


class Connections:
    """The clients of one store. Opened on first use; bound to the event loop that uses them first."""

    def __init__(self, settings: Settings) -> None:
        self._url = require_url(settings)
        self._settings = settings
        self._made: list[Redis] = []
        self.place = redact(self._url)
        """Where this leads, without secrets."""
        self.commands: Client = self._client(
            socket_timeout=settings.command_timeout_s,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), RESENDS),
        )

    def blocking(self) -> Client:
        """A client for blocking reads: raw answers, no re-sending."""
        client = self._client(
            socket_timeout=BLOCK_MS / 1000 + self._settings.command_timeout_s, retry=Retry(NoBackoff(), 0)
        )
        client.response_callbacks.pop("XREADGROUP", None)  # keep the bytes of entries that are not ours
        return client

    def listening(self) -> Redis:
        """A client for pub/sub: no re-sending, and no deadline but the listener's own."""
        return self._client(socket_timeout=None, retry=Retry(NoBackoff(), 0))

    async def close(self) -> None:
        made, self._made = self._made, []
        for client in made:
            await client.aclose()

    def _client(self, **more: Any) -> Redis:
        try:
            pool: Any = BlockingConnectionPool.from_url(
                self._url,
                max_connections=32,
                timeout=20,
                socket_connect_timeout=self._settings.connect_timeout_s,
                socket_keepalive=True,
                health_check_interval=0,
                decode_responses=False,
                protocol=2,
                connection_class=_CONNECTIONS[urlsplit(self._url).scheme],
                **more,
            )
        except ValueError as error:
            raise ConfigError(f"url: {self.place!r} cannot be used: {error}") from None
        client = Redis.from_pool(pool)
        self._made.append(client)
        return client


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Turn every way in which Redis does not serve us into `BusUnavailable`, with what was found and what would do."""
    try:
        yield
    except (redis_errors.RedisError, OSError) as error:
        raise as_ours(error, place) from error
