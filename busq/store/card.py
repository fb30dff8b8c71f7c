"""
The bus's own card: which wire version it speaks, and how many shards it has for good.

It is one key, so on a cluster it lies on one node, and who starts while that node is away would not know what to look
after on the others. So the mark that each shard bears says the same again, and is asked in its place.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from redis import exceptions as redis_errors

from busq import tasks
from busq.errors import BadRecord, BusUnavailable
from busq.protocol import keys as bus_keys
from busq.protocol.keys import ShardKeys
from busq.protocol.trouble import Trouble
from busq.store.connection import Connections, reaching

WIRE_VERSION = 1
VERSION, SHARDS = "v", "shards"
ASKED = 16  # shards that are asked in place of the card: of so many one lies on a node that is there


class Card(NamedTuple):
    version: int
    shards: int


async def meet(connections: Connections, namespace: str, shards: int) -> Card:
    """The card of a bus, which is made with `shards` where there is none. Raise `BusUnavailable`, `BadRecord`."""
    meta = bus_keys.meta(namespace)
    with reaching(connections.place):
        found = await connections.commands.hmget(meta, VERSION, SHARDS)
        if found[0] is None:
            await make(connections, namespace, shards)
            found = await connections.commands.hmget(meta, VERSION, SHARDS)
    card = _read(*found)
    if card is None:
        raise BadRecord(
            f"{meta.decode()} at {connections.place} holds version {found[0]!r} and shards {found[1]!r}, which "
            "no busq has written; is the namespace somebody else's?"
        )
    return card


async def make(connections: Connections, namespace: str, shards: int) -> None:
    """Write the card where there is none. Raise redis-py's errors, and `BusUnavailable` where this user may not."""
    meta = bus_keys.meta(namespace)
    try:
        # Shards first: who finds a version finds them too.
        await connections.commands.hsetnx(meta, SHARDS, shards)
        await connections.commands.hsetnx(meta, VERSION, WIRE_VERSION)
    except redis_errors.NoPermissionError:
        raise BusUnavailable(
            f"there is no bus {namespace!r} at {connections.place} yet, and this user may not "
            "make one: start a watchdog first (`busq watchdog`)",
            Trouble.FORBIDDEN,
        ) from None


async def ask_the_shards(connections: Connections, namespace: str) -> Card | None:
    """What the first shard that answers says of the bus; None where none does, or this user may not ask."""

    async def ask(shard: int) -> Card | None:
        key = ShardKeys(namespace, shard).birth
        try:
            with reaching(connections.place):
                return _read(*await connections.commands.hmget(key, VERSION, SHARDS))
        except BusUnavailable:
            return None

    asked = [asyncio.create_task(ask(shard)) for shard in range(ASKED)]
    try:
        for answer in asyncio.as_completed(asked):
            if (card := await answer) is not None:
                return card
        return None
    finally:
        await tasks.end(*asked)


def _read(version: bytes | None, shards: bytes | None) -> Card | None:
    if version and version.isdigit() and shards and shards.isdigit() and int(shards):
        return Card(int(version), int(shards))
    return None
