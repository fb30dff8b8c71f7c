"""
Entries under the name of a worker that is on no roster.

A watchdog forgets a silent worker that holds nothing. What that one had asked for before, on a connection that was cut
meanwhile, the server may give it afterwards: nobody is there then who would beat, and nobody who would be lost.
"""

from __future__ import annotations

from collections import Counter

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
