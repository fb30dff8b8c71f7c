"""Work for several shards side by side: one that is slow, or fails, keeps only itself waiting."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from busq.tasks import Abreast

NEVER_SO_LONG_S = 30.0


class Work:
    """What each shard's work does: it answers ten times its number, unless it is held or made to fail."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()
        self.held: dict[int, asyncio.Event] = {}
        self.failing: set[int] = set()
        self.all_begun = asyncio.Event()

    async def __call__(self, shard: int) -> int:
        self.begun[shard] += 1
        if len(self.begun) == 2:
            self.all_begun.set()
        if shard in self.held:
            await self.held[shard].wait()
        if shard in self.failing:
            raise OSError(f"shard {shard}")
        return shard * 10


async def test_answers_come_in_the_order_of_the_shards() -> None:
    assert await Abreast[int]().round(range(3), Work(), within_s=None) == [0, 10, 20]


async def test_what_has_not_ended_is_not_waited_for_and_not_begun_again() -> None:
    work, rounds = Work(), Abreast[int]()
    work.held[1] = asyncio.Event()
    for _ in range(3):
        assert await rounds.round(range(3), work, within_s=0.01) is None
    assert work.begun == {0: 3, 1: 1, 2: 3}
    work.held[1].set()
    assert await rounds.round(range(3), work, within_s=NEVER_SO_LONG_S) == [0, 10, 20]
    assert work.begun == {0: 4, 1: 1, 2: 4}


async def test_one_that_fails_is_told_when_the_others_have_ended_and_tried_again_in_the_next_round() -> None:
    work, rounds = Work(), Abreast[int]()
    work.failing = {0}
    with pytest.raises(OSError, match="shard 0"):
        await rounds.round(range(3), work, within_s=None)
    assert work.begun == {0: 1, 1: 1, 2: 1}
    work.failing = set()
    assert await rounds.round(range(3), work, within_s=None) == [0, 10, 20]


async def test_ending_it_cancels_what_is_still_going_on() -> None:
    work, rounds = Work(), Abreast[int]()
    work.held[1] = asyncio.Event()
    assert await rounds.round(range(2), work, within_s=0.01) is None
    await rounds.end()
    assert len(asyncio.all_tasks()) == 1


async def test_being_cancelled_cancels_all_of_it() -> None:
    work, rounds = Work(), Abreast[int]()
    work.held[1] = asyncio.Event()
    task = asyncio.create_task(rounds.round(range(2), work, within_s=None))
    await work.all_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(asyncio.all_tasks()) == 1
