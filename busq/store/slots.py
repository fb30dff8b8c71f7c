"""
Which node of a cluster holds which slot, as far as is known.

The map is read from the cluster (CLUSTER SLOTS) when it is needed first, after an error, and after a node has said
MOVED. What a node says of a slot it does not hold counts at once; the rest of the map may be old, and whoever goes
wrong by it is told so. Nodes are asked one after the other, the next one soon: a frozen node must not hold us up.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from redis import exceptions as redis_errors

from busq import tasks
from busq.errors import ConfigError
from busq.store.address import Node

ASK_NEXT_AFTER_S = 0.25  # without an answer
REFRESH_EVERY_S = 1.0  # for what MOVED has told: a migration tells it for every slot
SHUNNED_S = 5.0  # so long is a node that failed not chosen where any node would do


class SlotMap:
    """`ask(node)` gives a node's answer to CLUSTER SLOTS; `place` names the cluster in errors."""

    def __init__(self, starts: Sequence[Node], ask: Callable[[Node], Awaitable[Any]], *, place: str) -> None:
        self._starts = list(starts)
        self._ask = ask
        self._place = place
        self._holders: dict[int, Node] = {}
        self._stale = True
        self._read_at = 0.0
        self._failed_at: dict[Node, float] = {}
        self._reading: asyncio.Task[None] | None = None
        self._sought: Node | None = None

    @property
    def primaries(self) -> list[Node]:
        """Every node that holds a slot."""
        return sorted(set(self._holders.values()))

    async def holder(self, slot: int | None) -> Node:
        """Who holds this slot; for None any primary, one that has not failed of late if there is such a one."""
        if not self._holders:
            await self.refresh()
        elif self._stale and time.monotonic() - self._read_at >= REFRESH_EVERY_S:
            with suppress(redis_errors.RedisError, OSError):  # the old map will do
                await self.refresh()
        if slot is None:
            return self._any()
        if slot not in self._holders:
            self._stale = True
            raise redis_errors.ClusterDownError(f"no node holds slot {slot}")
        return self._holders[slot]

    async def seek(self) -> Node:
        """A primary for a new connection that may lead to any: by the newest map, and not where the last one led."""
        await self.refresh()
        self._sought = self._any(but=self._sought)
        return self._sought

    def moved(self, slot: int, node: Node) -> None:
        """A node said that this slot is held by that one."""
        self._holders[slot] = node
        self._stale = True

    def failed(self, node: Node) -> None:
        """This node could not be reached, or did not answer."""
        self._failed_at[node] = time.monotonic()
        self._stale = True

    async def refresh(self) -> None:
        """Read the map. Raise redis-py's `ConnectionError` when no node tells it, `ConfigError` where is no cluster."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_heed)
        await asyncio.shield(self._reading)

    async def aclose(self) -> None:
        if self._reading is not None:
            await tasks.end(self._reading)

    def _any(self, but: Node | None = None) -> Node:
        now = time.monotonic()
        well = [node for node in self.primaries if now - self._failed_at.get(node, -SHUNNED_S) >= SHUNNED_S]
        choice = [node for node in well if node != but] or well or self.primaries
        return random.choice(choice)  # no secret hangs on it

    async def _read(self) -> None:
        nodes = list({*self.primaries, *self._starts})
        random.shuffle(nodes)
        nodes.sort(key=lambda node: self._failed_at.get(node, 0.0))
        asked: set[asyncio.Task[dict[int, Node]]] = set()
        troubles: list[Exception] = []
        try:
            while nodes or asked:
                if nodes:
                    asked.add(asyncio.create_task(self._answer_of(nodes.pop(0))))
                done, asked = await asyncio.wait(
                    asked, timeout=ASK_NEXT_AFTER_S if nodes else None, return_when=asyncio.FIRST_COMPLETED
                )
                for answered in done:
                    try:
                        self._holders = answered.result()
                    except (redis_errors.RedisError, OSError, ConfigError) as error:
                        troubles.append(error)
                    else:
                        self._stale, self._read_at = False, time.monotonic()
                        return
        finally:
            await tasks.end(*asked)
        raise _gravest(troubles, self._place)

    async def _answer_of(self, node: Node) -> dict[int, Node]:
        try:
            answer = await self._ask(node)
        except redis_errors.ResponseError as error:
            if "cluster support disabled" in str(error):
                raise ConfigError(
                    f"url: {self._place!r} is no cluster; write redis:// in place of redis+cluster://"
                ) from None
            raise
        except (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError):
            self.failed(node)
            raise
        holders: dict[int, Node] = {}
        for first, last, (host, port, *_), *_ in answer:
            named = host.decode() if isinstance(host, bytes) else host or ""
            holder = (named if named not in ("", "?") else node[0], int(port))
            holders.update(dict.fromkeys(range(int(first), int(last) + 1), holder))
        if not holders:
            raise redis_errors.ConnectionError(f"{node[0]}:{node[1]} knows of no slots")
        return holders


def _heed(read: asyncio.Task[None]) -> None:
    if not read.cancelled():
        read.exception()  # whoever waited has been told; nobody may be left


def _gravest(troubles: Sequence[Exception], place: str) -> Exception:
    """What to raise when no node gave a map: what waiting does not mend, else what all of them said."""
    for sort in (ConfigError, redis_errors.AuthenticationError, redis_errors.NoPermissionError):
        for trouble in troubles:
            if isinstance(trouble, sort):
                return trouble
    told = next((each for each in troubles if not isinstance(each, redis_errors.ConnectionError)), None)
    if told is not None and not isinstance(told, redis_errors.TimeoutError | OSError):
        return told
    said = "; ".join(dict.fromkeys(str(each) or type(each).__name__ for each in troubles))
    return redis_errors.ConnectionError(f"no node of the cluster answers ({said})")
