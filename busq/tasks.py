"""
Ending asyncio tasks for certain, and work for several shards of which a slow one keeps only itself waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

AGAIN_AFTER_S = 0.1


async def all_of(*work: Coroutine[Any, Any, object]) -> None:
    """Do these beside each other, each to its end; raise what the first of them raised after all others."""
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def end(*tasks: asyncio.Task[Any]) -> None:
    """
    Cancel these tasks and return when all of them have ended, whatever they end with.

    Cancelled again until they have: on Python 3.11 a cancel that lands while redis-py connects can be swallowed on
    the way, and a task that reads for ever would then never hear of it.
    """
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=AGAIN_AFTER_S)


class Abreast(Generic[T]):
    """
    Rounds of the same work for each of several shards.

    Where shards live on different servers one of them may be away, and the others must not wait for it. What has not
    ended within its round goes on, and is not begun a second time meanwhile.
    """

    def __init__(self) -> None:
        self._going: dict[int, asyncio.Task[T]] = {}

    async def round(
        self, shards: Iterable[int], work: Callable[[int], Coroutine[Any, Any, T]], *, within_s: float | None
    ) -> list[T] | None:
        """
        What each shard's work gave, in the order of the shards; None while some of it is still going on.

        Raise what some of it raised, once the rest has ended too or `within_s` is over.
        """
        for shard in shards:
            if shard not in self._going:
                self._going[shard] = asyncio.create_task(work(shard))
        try:
            await asyncio.wait(self._going.values(), timeout=within_s)
        except asyncio.CancelledError:
            await self.end()
            raise
        ended = {shard: task for shard, task in self._going.items() if task.done()}
        for shard in ended:
            del self._going[shard]
        troubles = [error for task in ended.values() if (error := task.exception()) is not None]
        if troubles:
            raise troubles[0]
        return None if self._going else [ended[shard].result() for shard in sorted(ended)]

    async def end(self) -> None:
        """Cancel what is still going on."""
        going, self._going = list(self._going.values()), {}
        await end(*going)
