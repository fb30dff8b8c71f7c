"""Limits as a producer meets them: what is in, what is not, and when to come again."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import busq
from tests.interface.commands import busq as command
from tests.runtime.bench import bench


async def test_enqueue_many_puts_in_what_fits_and_names_the_rest(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        specs = [bus.options(max_queue=2).spec("k", n) for n in range(4)]
        with pytest.raises(
            busq.QueueFull, match=r"queue 'default' is full: 2 jobs wait in it and the limit .* is 2"
        ) as e:
            await bus.enqueue_many([*specs, bus.spec("k", 9)])
        assert (e.value.queue, e.value.waiting, e.value.limit) == ("default", 2, 2)
        assert e.value.jids == [spec.jid for spec in specs[2:]]
        assert {tuple(job.args or ()) for job in await bus.list(state="queued")} == {(0,), (1,), (9,)}
        with pytest.raises(busq.QueueFull):
            await bus.enqueue_many(specs[2:])


async def test_a_rate_says_when_to_come_again(redis_url: str) -> None:
    async with busq.Bus(redis_url, queue_rate=0.01, group_rate=500) as bus:
        await bus.options(group="g").enqueue("k")
        with pytest.raises(busq.RateLimited, match=r"queue 'default' takes 0\.01 jobs a second \(queue_rate\)") as e:
            await bus.options(group="g", jid="mine").enqueue("k")
        assert (e.value.what, e.value.name, e.value.rate, e.value.jids) == ("queue", "default", 0.01, ["mine"])
        assert 90 < e.value.retry_after_s <= 100


async def test_a_group_has_a_rate_of_its_own(redis_url: str) -> None:
    async with busq.Bus(redis_url, group_rate=0.01) as bus:
        await bus.options(group="a b").enqueue("k")
        with pytest.raises(busq.RateLimited, match="group 'a b'"):
            await bus.options(group="a b").enqueue("k")
        await bus.options(group="c").enqueue("k")
        await bus.enqueue_many([bus.spec("k") for _ in range(5)])


def test_the_blocking_calls_know_limits_too(redis_url: str) -> None:
    bus = busq.Bus(redis_url, queue_limit=2)

    @bus.job
    def add(n: int) -> int:
        return n

    add.blocking.enqueue(1)
    with pytest.raises(busq.QueueFull):
        add.options(max_queue=1).blocking.enqueue(2)
    add.blocking.enqueue(3)
    with pytest.raises(busq.QueueFull):
        bus.blocking.enqueue("add", 4)
    bus.blocking.close()


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "5", 1_000_000_001])
def test_a_limit_that_is_no_number_of_jobs_is_refused_here(wrong: Any) -> None:
    with pytest.raises(busq.UsageError, match="max_queue"):
        busq.Bus("redis://nowhere").options(max_queue=wrong).spec("k")


@pytest.mark.parametrize(
    "error", [busq.QueueFull("q", 5, 5, ["a"]), busq.RateLimited("group", "g", 2.5, 0.4, ["a", "b"])]
)
def test_an_error_of_a_limit_survives_pickling(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_full_queue_is_the_answer_no(redis_url: str) -> None:
    assert command("enqueue", "add", "--max-queue", "1", url=redis_url).returncode == 0
    full = command("enqueue", "add", "--max-queue", "1", url=redis_url)
    assert (full.returncode, full.stdout) == (1, "")
    assert full.stderr.startswith("busq: queue 'default' is full: 1 jobs wait in it")
    assert command("enqueue", "add", "--max-queue", "0", url=redis_url).returncode == 2


async def test_a_child_is_part_of_what_was_let_in(redis_url: str) -> None:
    async with bench(redis_url, queue_limit=1) as b:

        @b.bus.job
        async def leaf() -> int:
            return 1

        @b.bus.job
        async def root() -> int:
            job = busq.current_job()
            with pytest.raises(busq.UsageError, match="max_queue is for producers outside"):
                job.spawn(leaf.options(max_queue=1))
            for _ in range(3):
                await job.spawn(leaf)
            return 3

        handle = await root.enqueue()
        await b.work(concurrency=1)
        assert await handle.result(timeout=30) == 3
        assert (await handle.get()).children == 3
