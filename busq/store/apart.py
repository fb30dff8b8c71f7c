"""
Reading several streams of a cluster, where no call may touch two shards.

Each shard gets a read of its own, all at once. Where they wait, the first that brings something ends the others: by
CLIENT UNBLOCK, which the server decides in one step, so that a read either brings its entries or has left them. A read
that were merely given up might just have been given some.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis import exceptions as redis_errors

from busq import tasks
from busq.store.address import Node
from busq.store.cluster import MOST_HOPS, Cluster, Words, slot_of

UNBLOCK_AGAIN_S = 0.05  # a read may not have begun to wait when it is called back
UNBLOCK_WITHIN_S = 1.0  # a node that does not answer keeps what others brought no longer than this

Answers = tuple[list[Any], Exception | None]
"""What was read, and what kept a read from its end: its entries may be pending under our name."""


async def read_at_once(cluster: Cluster, reads: Sequence[Words]) -> Answers:
    """Reads that do not wait, one for each shard."""
    answers = await asyncio.gather(*(cluster.execute_command(*words) for words in reads), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, Exception):
            raise answer
    return _together(answers)


async def read_blocked(cluster: Cluster, reads: Sequence[Words]) -> Answers:
    """Reads that wait, one for each shard: until the first brings something or fails, or all have waited enough."""
    waiting = [_Waiting(cluster, words) for words in reads]
    running = {asyncio.create_task(each.run()): each for each in waiting}
    try:
        left = set(running)
        while left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            if any(read.exception() is not None or read.result() for read in done):
                break
        until = asyncio.get_running_loop().time() + UNBLOCK_WITHIN_S
        while left and asyncio.get_running_loop().time() < until:
            await asyncio.gather(*(running[read].call_back() for read in left))
            _, left = await asyncio.wait(left, timeout=UNBLOCK_AGAIN_S)
    finally:
        await tasks.end(*running)
    return _together([_outcome(read) for read in running])


class _Waiting:
    """One blocking read on a connection of its own, which can be called back."""

    def __init__(self, cluster: Cluster, words: Words) -> None:
        self._cluster = cluster
        self._words = words
        self._at: tuple[Any, int] | None = None  # the node's client and the number of our connection there

    async def run(self) -> Any:
        slot = slot_of(self._words)
        asked: Node | None = None
        for _ in range(MOST_HOPS):
            node = asked or await self._cluster.slots.holder(slot)
            try:
                return await self._read(node, asking=asked is not None)
            except (redis_errors.MovedError, redis_errors.AskError) as error:
                told = (error.host or node[0], error.port)
                asked = None if isinstance(error, redis_errors.MovedError) else told  # MovedError is an AskError too
                if asked is None:
                    self._cluster.slots.moved(error.slot_id, told)
            except (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError):
                self._cluster.slots.failed(node)
                raise
        raise redis_errors.TryAgainError("sent round the cluster too often")

    async def call_back(self) -> None:
        if self._at is not None:
            client, number = self._at
            with suppress(redis_errors.RedisError, OSError, TimeoutError):
                async with asyncio.timeout(UNBLOCK_WITHIN_S):
                    await client.execute_command("CLIENT UNBLOCK", number)

    async def _read(self, node: Node, *, asking: bool) -> Any:
        client: Any = self._cluster.client(node)
        pool = client.connection_pool
        connection = await pool.get_connection()
        try:
            sent = [("CLIENT ID",), *([("ASKING",)] if asking else []), self._words]
            await connection.send_packed_command([b"".join(connection.pack_command(*words)[0] for words in sent)])
            self._at = client, await connection.read_response()
            if asking:
                await connection.read_response()
            return await connection.read_response()
        finally:
            self._at = None
            await pool.release(connection)


def _outcome(read: asyncio.Task[Any]) -> Any:
    if read.cancelled():
        return redis_errors.TimeoutError("a read could not be called back")
    return read.exception() or read.result()


def _together(answers: Sequence[Any]) -> Answers:
    found: list[Any] = []
    trouble: Exception | None = None
    for answer in answers:
        if isinstance(answer, Exception):
            trouble = trouble or answer
        else:
            found += answer or ()
    return found, trouble
