"""
Entries under the name of a worker that is on no roster.

A watchdog forgets a silent worker that holds nothing. What that one had asked for before, on a connection that was cut
meanwhile, the server may give it afterwards: nobody is there then who would beat, and nobody who would be lost.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from redis.asyncio.client import Pipeline
from redis.exceptions import BusyLoadingError

from busq.errors import BusUnavailable
from busq.store import watch
from busq.watchdog.takeover import Takeover
from tests.store.bench import LEASE_S, QUEUE, Bench


async def _passes(takeover: Takeover, bench: Bench, count: int) -> None:
    for _ in range(count):
        await takeover.sight(bench.clock.now_ms)
        while await takeover.step():
            pass
        bench.clock.advance(LEASE_S)


async def test_what_a_worker_was_given_after_it_was_forgotten_is_taken_over(redis_url: str) -> None:
    async with Bench(redis_url) as bench:
        takeover = Takeover(bench.settings, bench.dog, 0, bench.clock, Counter())
        await bench.beat()
        await _passes(takeover, bench, 3)
        assert await bench.redis.zscore(bench.a.keys(0).workers, "a") is None, "it was forgotten"
        jid = await bench.enqueue()
        await bench.take(jid)
        await _passes(takeover, bench, 3)
        held = await bench.take(jid, bench.b)
        assert (await bench.begin(held, bench.b)).word == "started"


async def test_a_worker_that_beats_again_keeps_what_it_was_given_before(redis_url: str) -> None:
    async with Bench(redis_url) as bench:
        takeover = Takeover(bench.settings, bench.dog, 0, bench.clock, Counter())
        held = await bench.take(await bench.enqueue())
        await _passes(takeover, bench, 1)
        await bench.beat()
        await takeover.sight(bench.clock.now_ms)
        assert not await takeover.step()
        assert (await bench.begin(held)).word == "started"
        assert list(await bench.pending(QUEUE)) == [held.entry]


async def test_a_server_that_does_not_serve_a_look_for_strangers_is_said_to_be_away(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its word stands among the answers for each queue, where redis-py raises nothing by itself."""

    async def loading(self: Any, *_: Any, **__: Any) -> list[Exception]:
        return [BusyLoadingError("Redis is loading the dataset in memory")]

    async with Bench(redis_url) as bench:
        await bench.enqueue("one")
        with monkeypatch.context() as patch:
            patch.setattr(Pipeline, "execute", loading)
            with pytest.raises(BusUnavailable, match="loading"):
                await watch.holders(bench.dog, 0)


async def test_a_queue_that_is_no_stream_hides_no_stranger(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        await bench.take(await bench.enqueue())
        await bench.redis.sadd(bench.a.keys(0).queues, "odd")
        await bench.redis.set(bench.a.keys(0).stream("odd"), "1")
        assert await watch.holders(bench.dog, 0) == {"a"}
