"""How many jobs may wait in a queue, and how many a second may come: judged in the enqueue script, job by job."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from busq.protocol.states import State, Verb
from busq.store.forms import NewJob
from busq.store.store import Store
from tests.store.bench import KIND, QUEUE, Bench

S = State
ENQUEUED = ("enqueued", S.QUEUED)
MOST = 5


async def send(bench: Bench, count: int, *, by: Store | None = None, most: int = 0, **how: Any) -> list[Any]:
    """Enqueue `count` new jobs in one call of the store."""
    queue, delay_ms, fields = how.pop("queue", QUEUE), how.pop("delay_ms", 0), tuple(how.pop("fields", ()))
    jobs = [NewJob(bench.fresh("job"), KIND, queue, b"\x01p", delay_ms, fields, most) for _ in range(count)]
    return await (by or bench.a).enqueue(jobs, call=bench.fresh("call"))


# How many may wait -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waiting", [MOST - 1, MOST, MOST + 1])
@pytest.mark.parametrize("said", ["by the job", "by the settings"])
async def test_a_queue_takes_as_many_as_its_limit_and_refuses_the_rest_of_a_call(
    url: str, waiting: int, said: str
) -> None:
    async with Bench(url, **({} if said == "by the job" else {"queue_limit": MOST})) as bench:
        heard = await send(bench, waiting, most=MOST if said == "by the job" else 0)
        taken = min(waiting, MOST)
        assert heard == [ENQUEUED] * taken + [("full", None, MOST)] * (waiting - taken)
        assert len(await bench.entries()) == taken
        assert await bench.redis.hget(bench.a.keys(0).counters, "enqueued") == b"%d" % taken


async def test_a_job_that_was_refused_left_nothing_and_may_be_sent_again(url: str) -> None:
    async with Bench(url, queue_limit=1) as bench:
        await bench.enqueue()
        before = await bench.snapshot()
        assert await bench.admit("job", call="c") == ("full", None, 1)
        assert await bench.snapshot() == before
        await bench.read()
        assert await bench.admit("job", call="c") == ENQUEUED
        assert await bench.admit("job", call="c") == ENQUEUED  # the answer of a call that came through


async def test_jobs_that_workers_hold_do_not_count(url: str) -> None:
    async with Bench(url, queue_limit=2) as bench:
        held = [await bench.run(), await bench.run()]
        assert await send(bench, 3) == [ENQUEUED, ENQUEUED, ("full", None, 2)]
        await bench.settle(Verb.FINISH, held[0])
        assert await send(bench, 1) == [("full", None, 2)]
        await bench.read(count=1)
        assert await send(bench, 2) == [ENQUEUED, ("full", None, 2)]


async def test_a_queue_that_nobody_has_read_yet_has_a_limit_too(url: str) -> None:
    async with Bench(url, queue_limit=1) as bench:
        assert await send(bench, 2, queue="fresh") == [ENQUEUED, ("full", None, 1)]


async def test_a_delayed_job_is_refused_by_a_full_queue_and_takes_no_place_before_it_is_due(url: str) -> None:
    async with Bench(url, queue_limit=2) as bench:
        assert await send(bench, 3, delay_ms=9_000) == [("enqueued", S.SCHEDULED)] * 3
        assert await send(bench, 2) == [ENQUEUED] * 2
        assert await send(bench, 1, delay_ms=9_000) == [("full", None, 2)]


async def test_what_was_let_in_comes_back_to_a_full_queue(url: str) -> None:
    """Hand-backs, retries, due jobs and children are part of what was let in."""
    async with Bench(url, queue_limit=2) as bench:
        scheduled = await bench.enqueue(delay_s=5)
        held, parent = await bench.run(retries=1), await bench.run()
        await send(bench, 2)
        assert await bench.settle(Verb.RELEASE, held) == ("settled", "queued")
        bench.clock.advance(5)
        assert (await bench.promote(scheduled))[0] == "promoted"
        assert (await bench.spawn(parent, bench.fresh("child")))[0] == "enqueued"
        assert len(await bench.entries()) == 6


async def test_producers_that_race_do_not_pass_the_limit(redis_url: str) -> None:
    """On a real server only: the fake one loses its way when several clients load a script at once."""
    async with Bench(redis_url, queue_limit=20) as bench:
        heard = await asyncio.gather(*(send(bench, 7, by=store) for store in (bench.a, bench.b, bench.dog) * 3))
        assert sum(answer == ENQUEUED for answers in heard for answer in answers) == 20
        assert len(await bench.entries()) == 20


async def test_each_shard_takes_its_share_of_a_limit(url: str) -> None:
    async with Bench(url, queue_limit=10, shards=4) as bench:
        await send(bench, 100)
        own = [bench.a.keys(shard).stream(QUEUE) for shard in range(4)]
        assert [await bench.redis.xlen(stream) for stream in own] == [3, 3, 3, 3]


async def test_a_jid_in_use_and_a_parent_that_is_over_are_told_before_a_limit(url: str) -> None:
    async with Bench(url, queue_limit=1, queue_rate=1) as bench:
        jid = await bench.enqueue()
        assert await bench.admit(jid) == ("in_use", S.QUEUED)
        assert await bench.admit("child", parent="nobody") == ("orphan", None)


async def test_a_job_that_supersedes_leaves_the_older_one_alone_when_it_is_refused(url: str) -> None:
    async with Bench(url, queue_limit=1) as bench:
        older = await bench.enqueue(key="k")
        assert (await bench.admit("newer", key="k"))[0] == "full"
        assert await bench.state(older) is S.QUEUED


# How many may come a second ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [MOST - 1, MOST, MOST + 1])
@pytest.mark.parametrize("of", ["queue", "group"])
async def test_what_comes_in_a_second_may_come_at_once_and_the_rest_later(url: str, of: str, count: int) -> None:
    async with Bench(url, **{f"{of}_rate": MOST}) as bench:
        heard = await send(bench, count, fields=("group", "g"))
        assert heard == [ENQUEUED] * min(count, MOST) + [("limited", None, of, 200)] * (count - MOST)
        assert len(await bench.entries()) == min(count, MOST)


async def test_room_for_one_more_comes_with_time_and_not_before(url: str) -> None:
    async with Bench(url, queue_rate=MOST) as bench:
        await send(bench, MOST)
        bench.clock.advance(0.199)
        assert await send(bench, 1) == [("limited", None, "queue", 1)]
        bench.clock.advance(0.001)
        assert await send(bench, 2) == [ENQUEUED, ("limited", None, "queue", 200)]
        bench.clock.advance(100)
        assert [each[0] for each in await send(bench, MOST + 1)] == ["enqueued"] * MOST + ["limited"]


async def test_less_than_one_a_second_lets_one_come_at_once(url: str) -> None:
    async with Bench(url, queue_rate=0.1) as bench:
        assert await send(bench, 2) == [ENQUEUED, ("limited", None, "queue", 10_000)]
        bench.clock.advance(10)
        assert await send(bench, 2) == [ENQUEUED, ("limited", None, "queue", 10_000)]


async def test_parts_of_a_second_add_up(url: str) -> None:
    """Which of these sums comes out too large depends on the moment."""
    async with Bench(url, queue_rate=11) as bench:
        for n in range(3):
            bench.clock.advance(2.001)
            assert [each[0] for each in await send(bench, 12)] == ["enqueued"] * 11 + ["limited"], n


async def test_queues_and_groups_have_rates_of_their_own(url: str) -> None:
    async with Bench(url, queue_rate=4, group_rate=2) as bench:
        assert [each[0] for each in await send(bench, 3, fields=("group", "a"))] == ["enqueued"] * 2 + ["limited"]
        assert [each[:1] + each[2:3] for each in await send(bench, 3, fields=("group", "b"))] == [
            ("enqueued",), ("enqueued",), ("limited", "group")
        ]  # fmt: skip
        assert (await send(bench, 1))[0][2] == "queue"
        assert await send(bench, 1, queue="other") == [ENQUEUED]


async def test_a_job_that_is_over_one_rate_costs_nothing_of_the_other(url: str) -> None:
    async with Bench(url, queue_rate=2, group_rate=1) as bench:
        await send(bench, 5, fields=("group", "g"))
        assert await send(bench, 2) == [ENQUEUED, ("limited", None, "queue", 500)]


async def test_a_refused_job_costs_no_rate(url: str) -> None:
    async with Bench(url, queue_limit=1, queue_rate=2) as bench:
        await send(bench, 5)
        await bench.read()
        assert await send(bench, 1) == [ENQUEUED]


async def test_a_full_queue_is_told_before_a_rate(url: str) -> None:
    async with Bench(url, queue_limit=1, queue_rate=1) as bench:
        assert await send(bench, 2) == [ENQUEUED, ("full", None, 1)]


async def test_each_shard_takes_its_share_of_a_rate(url: str) -> None:
    async with Bench(url, queue_rate=8, shards=4) as bench:
        heard = await send(bench, 100)
        assert [answer[0] for answer in heard].count("enqueued") == 8


async def test_a_rate_is_forgotten_a_minute_after_it_has_no_say_any_more(url: str) -> None:
    async with Bench(url, queue_rate=2, group_rate=0.5) as bench:
        began = time.monotonic()
        await send(bench, 1, fields=("group", "a group"))
        own = bench.a.keys(0)
        for rate, kept_ms in ((own.rate("queue", QUEUE), 60_500), (own.rate("group", "a group"), 62_000)):
            left_ms = await bench.redis.pttl(rate)
            assert kept_ms - 1000 * (time.monotonic() - began) - 1000 < left_ms <= kept_ms


async def test_nothing_is_read_or_written_for_limits_that_nobody_has_set(url: str) -> None:
    async with Bench(url) as bench:
        await send(bench, 3, fields=("group", "g"))
        assert await bench.redis.keys("*rate*") == []
