"""
Connections to Redis, and what counts as "not reachable".

Three kinds, because one set of timeouts fits none of the others: commands (short deadline, re-sent a few times:
every script is safe to send twice), blocking reads (the deadline outlasts the read, never re-sent: a lost reply is
found among the reader's own pending entries) and pub/sub (the listener has its own end-to-end deadline). Bytes
throughout: one undecodable message must not wedge a consumer.

Where Sentinels or a cluster say whom to talk to, every new connection of every kind asks them afresh. So whatever
makes a connection useless (an error, a silence, a primary that was demoted) also finds the new place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff

from busq.config import Settings
from busq.errors import BusUnavailable
from busq.protocol.trouble import Trouble
from busq.redaction import guard, guard_secret
from busq.store.address import Node, Shape, read_address, redact, require_url
from busq.store.cluster import Cluster
from busq.store.sentinel import Primary
from busq.store.slots import SlotMap
from busq.store.trouble import as_ours
from busq.store.wire import Seek, connection_class

__all__ = ["BLOCK_MS", "RESENDS", "Client", "Connections", "reaching", "redact", "require_url"]

BLOCK_MS = 2000  # a blocking read asks at least this often, so that a dead connection is found
RESENDS = 3
MOST_CONNECTIONS = 32  # of one client to one server


# redis-py types every reply for both protocols and both decodings at once. Here all is bytes, and where a reply is
# taken apart its shape is checked; so the clients are not typed, once and for all, right here.
Client = Any


class Connections:
    """The clients of one store. Opened on first use; bound to the event loop that uses them first."""

    def __init__(self, settings: Settings) -> None:
        guard(settings.url)
        guard_secret(settings.sentinel_password)
        self._settings = settings
        self._address = read_address(settings)
        self._made: list[Any] = []
        self._seek: Seek | None = None
        self._listening: Redis | None = None
        self.place = self._address.place
        """Where this leads, without secrets."""
        self._slots: SlotMap | None = None
        if self._address.shape is Shape.CLUSTER:
            self._slots = SlotMap(self._address.nodes, self._ask_for_slots, place=self.place)
            self._seek = self._slots.seek
        if self._address.shape is Shape.SENTINEL:
            primary = Primary(self._address, self._sentinel)
            self._made.append(primary)
            self._seek = primary
        self.commands: Client = self._to_send(settings.command_timeout_s, resends=RESENDS)

    @property
    def apart(self) -> bool:
        """Whether shards live on different servers, so that no call may touch two of them."""
        return self._slots is not None

    def near(self, key: bytes) -> Client:
        """For commands without a key: `commands`, of the server that holds this one."""
        return self.commands.near(key) if self.apart else self.commands

    async def servers(self) -> list[tuple[str, Client]]:
        """Every server that holds a part of the bus: its address without secrets, and a client of it alone."""
        if self._slots is None:
            return [(self.place, self.commands)]
        await self._slots.refresh()
        return [(f"{host}:{port}", self.commands.client((host, port))) for host, port in self._slots.primaries]

    def blocking(self) -> Client:
        """A client for blocking reads: raw answers, no re-sending."""
        return self._to_send(BLOCK_MS / 1000 + self._settings.command_timeout_s, resends=0, raw="XREADGROUP")

    def listening(self) -> Redis:
        """
        The client for pub/sub: no re-sending, and no deadline but the listener's own.

        It is always the same one: what is fresh is the place to which each of its connections asks its way.
        """
        if self._listening is None:
            self._listening = self._client(socket_timeout=None, retry=Retry(NoBackoff(), 0))
        return self._listening

    async def close(self) -> None:
        made, self._made, self._listening = self._made, [], None
        for client in made:
            await client.aclose()

    def _to_send(self, limit_s: float, *, resends: int, raw: str = "") -> Client:
        """A client that waits so long for an answer, and sends again so often; that command's answers are left raw."""
        if self._slots is not None:

            def make(node: Node) -> Redis:
                return _raw(
                    self._of_pool(self._address.options, [node], socket_timeout=limit_s, retry=Retry(NoBackoff(), 0)),
                    raw,
                )

            client = Cluster(self._slots, make, resends=resends, patience_s=self._settings.command_timeout_s)
            self._made.append(client)
            return client
        again = ExponentialWithJitterBackoff(base=0.05, cap=0.5) if resends else NoBackoff()
        return _raw(self._client(socket_timeout=limit_s, retry=Retry(again, resends)), raw)

    def _client(self, **more: Any) -> Redis:
        client = self._of_pool(self._address.options, self._address.nodes[:1], seek=self._seek, **more)
        self._made.append(client)
        return client

    async def _ask_for_slots(self, node: Node) -> Any:
        return await self.commands.client(node).execute_command("CLUSTER SLOTS")

    def _sentinel(self, node: Node) -> Redis:
        return self._of_pool(
            self._address.sentinel_options,
            [node],
            socket_timeout=self._settings.connect_timeout_s,
            retry=Retry(NoBackoff(), 0),
        )

    def _of_pool(self, options: dict[str, Any], nodes: Sequence[Node], **more: Any) -> Redis:
        for host, port in nodes:
            more |= {"host": host, "port": port}
        pool: Any = BlockingConnectionPool(
            connection_class=connection_class(self._address),
            max_connections=MOST_CONNECTIONS,
            timeout=20,
            socket_connect_timeout=self._settings.connect_timeout_s,
            health_check_interval=0,
            decode_responses=False,
            protocol=2,
            **options,
            **more,
        )
        return Redis.from_pool(pool)


def _raw(client: Redis, command: str) -> Redis:
    client.response_callbacks.pop(command, None)  # keeps the bytes of entries that are not ours
    return client


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Turn every way in which Redis does not serve us into `BusUnavailable`, with what was found and what would do."""
    try:
        yield
    except (redis_errors.MovedError, redis_errors.AskError) as error:
        raise BusUnavailable(
            f"Redis at {place} is one node of a cluster, and these keys are on another ({error}). "
            "Write redis+cluster:// in place of redis://, and busq finds each node.",
            Trouble.REFUSED,
        ) from error
    except (redis_errors.RedisError, OSError) as error:
        raise as_ours(error, place) from error
