"""
One connection: redis-py's, with what its asyncio connections lack.

The thing to hold in mind: a connection does not belong to a place. It may be given a way to ask where it shall lead,
and does so at each connect, so closing it is all that anybody has to do who finds that it leads to the wrong one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection

from busq.store.address import Address, Node
from busq.store.tls import TlsRefused, explain, tls_trouble

Seek = Callable[[], Awaitable[Node]]
"""Says where a new connection shall lead."""


class Ours(AbstractConnection):
    """
    What redis-py's asyncio connections do not do.

    Commands are written by hiredis, as its blocking connections do: a batch has a thousand arguments. A write
    is limited by `asyncio.timeout`: with `wait_for`, which redis-py uses, Python 3.11 loses a cancellation that comes
    together with the end of the write, and a task that reads for ever never hears that it shall stop.

    With `seek` a connection asks at each connect where it shall lead, and there for the role: a replica is no use.
    One that is answered READONLY is closed, and so asks again. Trouble with TLS is told as such and not tried again.
    uvloop answers a write to a connection that has ended with a `RuntimeError`; here it is lost, like any other.
    """

    def __init__(self, *, seek: Seek | None = None, **how: Any) -> None:
        super().__init__(**how)
        self._seek = seek

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if self.is_connected:
            return
        if self._seek is not None:
            self.host, self.port = await self._seek()
        try:
            await super().connect_check_health(check_health, retry_socket_connect)
            if self._seek is not None:
                await self._require_primary()
        except (redis_errors.ConnectionError, OSError) as error:
            trouble = tls_trouble(error)
            if trouble is None:
                raise
            raise TlsRefused(explain(trouble)) from error

    async def _require_primary(self) -> None:
        try:
            await self.send_command("ROLE", check_health=False)
            role = await self.read_response()
        except redis_errors.ResponseError:
            return  # closed to this user: a replica will show by its READONLY
        if role[0] != b"master":
            await self.disconnect(nowait=True)
            raise redis_errors.ConnectionError(f"{self.host}:{self.port} is not the primary (any more)")

    async def read_response(self, *args: Any, **how: Any) -> Any:
        try:
            return await super().read_response(*args, **how)
        except redis_errors.ReadOnlyError:
            if self._seek is None:
                raise
            await self.disconnect(nowait=True)
            raise redis_errors.ConnectionError(f"{self.host}:{self.port} is not the primary any more") from None

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        limit_s, self.socket_timeout = self.socket_timeout, None
        writer = self._writer
        try:
            async with asyncio.timeout(limit_s):
                await super().send_packed_command(command, check_health)
        except TimeoutError:
            raise redis_errors.TimeoutError("Timeout writing to socket") from None
        except RuntimeError as error:
            if writer is None or not writer.transport.is_closing():
                raise
            raise redis_errors.ConnectionError("Connection closed by server.") from error
        finally:
            self.socket_timeout = limit_s

    def pack_command(self, *args: Any) -> list[bytes]:
        if isinstance(args[0], str) and " " in args[0]:
            args = (*args[0].split(), *args[1:])
        return [hiredis.pack_command(args)]


class _TcpConnection(Ours, Connection):
    pass


class _TlsConnection(Ours, SSLConnection):
    async def _connect(self) -> None:
        try:
            await super()._connect()  # type: ignore[no-untyped-call]
        except TimeoutError:
            # A server without TLS takes our greeting for the beginning of a command, and waits for the rest.
            raise redis_errors.TimeoutError(
                f"{self.host}:{self.port} answers no TLS handshake: it is frozen, or speaks no TLS on this port"
            ) from None


class _UnixConnection(Ours, UnixDomainSocketConnection):
    pass


def connection_class(address: Address) -> type[Ours]:
    """The kind of connection that leads to this address."""
    if not address.nodes:
        return _UnixConnection
    return _TlsConnection if address.tls else _TcpConnection
