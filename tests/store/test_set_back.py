"""
The server's clock is set back by hours: what was to come in seconds comes in seconds, and nothing comes too early.

The bench's clock is the scripts' clock; that the server's own was set back is told by ids in the log of the shard which
lie ahead of it.
"""

from __future__ import annotations

import pytest

from busq.protocol.cancel import Cause
from busq.protocol.states import State
from busq.store.forms import Rewound
from tests.store.bench import DEADLINE_S, LEASE_S, Bench, Held

S = State
HOUR_S = 3600
STEP = 10


async def set_back(bench: Bench, seconds: int = HOUR_S) -> None:
    now = await bench.redis.time()
    await bench.redis.xadd(bench.a.keys(0).events, {"0": "later"}, id=f"{now[0] * 1000 + seconds * 1000}-0")
    bench.clock.advance(-seconds)


async def look(bench: Bench, index: str = "", rank: int = 0, step: int = STEP) -> Rewound:
    return await bench.dog.rewind(0, index=index, rank=rank, step=step)


async def lease(bench: Bench, worker: str) -> float:
    until: float = await bench.redis.zscore(bench.a.keys(0).workers, worker)
    return (until - bench.clock.now_ms) / 1000


async def cancelling(bench: Bench) -> Held:
    held = await bench.run()
    await bench.cancel(held.jid, cause=Cause.USER)
    return held


async def test_a_cancel_is_due_after_its_own_length_again(url: str) -> None:
    async with Bench(url) as bench:
        held = await cancelling(bench)
        await set_back(bench)
        (answer,) = await bench.dog.finalize(0, held.queue, [(held.jid, False)])
        assert answer.word == "early"
        assert await look(bench, "deadlines") == (pytest.approx(HOUR_S, abs=60), 1, None)
        assert await look(bench, "deadlines") == (pytest.approx(HOUR_S, abs=60), 0, None), "and only once"
        job = await bench.job(held.jid)
        assert job.deadline is not None
        assert job.deadline.timestamp() == bench.clock.now_ms / 1000 + DEADLINE_S
        assert await bench.events(held.jid) == ["enqueued", "started", "requested", "hastened"]
        due = await bench.redis.zscore(bench.a.keys(0).deadlines, held.jid)
        assert due == bench.clock.now_ms + DEADLINE_S * 1000
        bench.clock.advance(DEADLINE_S - 0.001)
        (answer,) = await bench.dog.finalize(0, held.queue, [(held.jid, False)])
        assert answer.word == "early"
        bench.clock.advance(0.001)
        assert await bench.redis.zcount(bench.a.keys(0).deadlines, 0, bench.clock.now_ms) == 1
        (answer,) = await bench.dog.finalize(0, held.queue, [(held.jid, False)])
        assert answer.word == "finalized"


async def test_a_scheduled_job_is_due_after_its_own_delay_again(url: str) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue(delay_s=30)
        await set_back(bench)
        assert (await look(bench, "scheduled")).brought == 1
        bench.clock.advance(29.999)
        assert (await bench.dog.promote(0, "q", [jid]))[0][0] == "early"
        bench.clock.advance(0.001)
        assert await bench.redis.zcount(bench.a.keys(0).scheduled, 0, bench.clock.now_ms) == 1
        assert (await bench.dog.promote(0, "q", [jid]))[0][0] == "promoted"


async def test_the_lease_of_a_worker_that_died_is_over_after_a_lease(url: str) -> None:
    async with Bench(url) as bench:
        await bench.a.renew(0, [])
        held = await bench.run()
        await set_back(bench)
        bench.clock.advance(-5)
        await bench.b.renew(0, [])
        bench.clock.advance(5)
        assert await lease(bench, "a") == HOUR_S + LEASE_S
        assert (await look(bench)).brought == 0
        assert (await lease(bench, "a"), await lease(bench, "b")) == (LEASE_S, LEASE_S - 5)
        jobs = [(held.jid, held.entry)]
        assert (await bench.dog.reclaim(0, held.queue, "a", jobs, owner_gone=False, failure=b""))[0][0] == "alive"
        bench.clock.advance(LEASE_S)
        assert (await bench.dog.reclaim(0, held.queue, "a", jobs, owner_gone=False, failure=b""))[0][0] == "reclaimed"


@pytest.mark.parametrize("seconds", [1, int(LEASE_S) - 1])
async def test_under_a_good_clock_nothing_is_brought_near(url: str, seconds: int) -> None:
    async with Bench(url) as bench:
        await bench.a.renew(0, [])
        held = await cancelling(bench)
        await set_back(bench, seconds)
        before = await lease(bench, "a"), await bench.redis.hgetall(bench.a.job_key(held.jid))
        assert await look(bench, "deadlines") == Rewound()
        assert (await lease(bench, "a"), await bench.redis.hgetall(bench.a.job_key(held.jid))) == before


async def test_what_was_written_after_the_step_is_as_far_away_as_it_says(url: str) -> None:
    async with Bench(url) as bench:
        await set_back(bench)
        jid = await bench.enqueue(delay_s=86_400)
        before = await bench.redis.hgetall(bench.a.job_key(jid))
        assert (await look(bench, "scheduled")).brought == 0
        assert await bench.redis.hgetall(bench.a.job_key(jid)) == before


async def test_what_has_no_record_or_has_ended_gets_nothing_written(url: str) -> None:
    async with Bench(url) as bench:
        held = await cancelling(bench)
        bench.clock.advance(DEADLINE_S)
        await bench.dog.finalize(0, held.queue, [(held.jid, False)])
        far = bench.clock.now_ms + 1
        await bench.redis.zadd(bench.a.keys(0).deadlines, {"nobody": far, held.jid: far})
        await set_back(bench)
        before = await bench.redis.hgetall(bench.a.job_key(held.jid))
        assert await look(bench, "deadlines") == (pytest.approx(HOUR_S, abs=60), 0, None)
        assert not await bench.redis.exists(bench.a.job_key("nobody"))
        assert await bench.redis.hgetall(bench.a.job_key(held.jid)) == before


async def test_a_look_in_small_steps_misses_none(url: str) -> None:
    async with Bench(url) as bench:
        near = [await bench.enqueue(delay_s=10 * (n + 1)) for n in range(5)]
        await set_back(bench)
        far = [await bench.enqueue(delay_s=86_400 + n) for n in range(3)]
        rank: int | None = 0
        brought, steps = 0, 0
        while rank is not None:
            found = await look(bench, "scheduled", rank, step=2)
            brought, rank, steps = brought + found.brought, found.rank, steps + 1
            assert steps < 20
        assert brought == len(near)
        scores = dict(await bench.redis.zrange(bench.a.keys(0).scheduled, 0, -1, withscores=True))
        left = {jid.decode(): (at - bench.clock.now_ms) / 1000 for jid, at in scores.items()}
        assert left == {jid: 10 * (n + 1) for n, jid in enumerate(near)} | {
            jid: 86_400 + n for n, jid in enumerate(far)
        }
