"""
Which processes are on the bus, and whether one of them is known to be gone.

A lease that ran out says that a process is silent, not that it is dead. Only its own machine can say that: the
card names the process by host, boot, pid and start time, so that a pid which was given to another process since
is not taken for it.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from busq.config import Settings
from busq.protocol.job import moment
from busq.store.connection import reaching
from busq.store.store import Store


class ProcessCard(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a process says of itself with its beat.

    `born` is its start in clock ticks since the machine's boot, `realm` the machine's boot and pid namespace: two
    processes with the same realm can see each other's pids. Both "" where the system does not tell.
    """

    role: str
    host: str
    pid: int
    realm: str = ""
    born: str = ""
    started_at: datetime | None = None
    queues: list[str] = []
    slots: dict[str, int] = {}
    running: int = 0
    suspects: int = 0
    draining: bool = False

    def encoded(self, **now: Any) -> bytes:
        """The card as it is written to the roster, with what has changed since it was made."""
        return msgspec.json.encode(msgspec.structs.replace(self, **now))

    def is_known_gone(self) -> bool:
        """Whether this process certainly does not run any more; False whenever that cannot be known from here."""
        if not self.realm or not self.born or self.realm != _realm():
            return False
        return _born(self.pid) != self.born


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A process on the roster, in one shard. `lease_until` is the server's time; `card` None if it cannot be read."""

    name: str
    lease_ms: float
    lease_until: datetime | None
    card: ProcessCard | None

    def is_alive(self, now: datetime) -> bool:
        """Whether it has been heard of within its lease."""
        return self.lease_until is not None and self.lease_until > now


def host_name(settings: Settings) -> str:
    """What this pod or machine is called on the roster."""
    return settings.host or socket.gethostname()


def process_name(settings: Settings) -> str:
    """A name for this very process that no other has or had."""
    return f"{host_name(settings)}-{os.getpid()}-{secrets.token_hex(3)}"


def process_card(role: str, host: str = "") -> ProcessCard:
    """The card of this very process; `host` in place of what the system calls this machine."""
    return ProcessCard(
        role=role,
        host=host or socket.gethostname(),
        pid=os.getpid(),
        realm=_realm(),
        born=_born(os.getpid()),
        started_at=datetime.now(UTC),
    )


def read_card(data: bytes | None) -> ProcessCard | None:
    """A card from the roster; None for anything that is none."""
    try:
        return msgspec.json.decode(data, type=ProcessCard) if data else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


async def members(store: Store, shard: int) -> list[Member]:
    """Everybody on the roster of one shard."""
    keys = store.keys(shard)
    with reaching(store.connections.place):
        leases: Sequence[tuple[bytes, float]] = await store.redis.zrange(keys.workers, 0, -1, withscores=True)
        cards: Mapping[bytes, bytes] = await store.redis.hgetall(keys.worker_info)
    return [
        Member(
            name=name.decode("utf-8", "replace"),
            lease_ms=lease,
            lease_until=moment(str(lease)),
            card=read_card(cards.get(name)),
        )
        for name, lease in leases
    ]


async def cards(store: Store, shard: int, names: Sequence[str]) -> dict[str, ProcessCard | None]:
    """The cards of these, None for one that has none or one that cannot be read."""
    with reaching(store.connections.place):
        found = await store.redis.hmget(store.keys(shard).worker_info, *names) if names else []
    return {name: read_card(data) for name, data in zip(names, found, strict=True)}


def is_gone(card: ProcessCard | None) -> bool:
    """Whether the process behind a card certainly does not run any more."""
    return card is not None and card.is_known_gone()


def _realm() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When this pid's process began, in ticks since boot; "" when there is none (or a zombie) or it cannot be told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    fields = stat.rpartition(b")")[2].split()  # the name before it may hold anything, brackets too
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
