"""
Redis goes away, comes back, forgets, freezes, and loses replies, while jobs run.
"""

from __future__ import annotations

import asyncio
import time

import pytest

import busq
from busq.worker.worker import Worker
from tests.fault.proxy import Proxy
from tests.roles import as_role, elsewhere
from tests.runtime.bench import BUSY_S, Bench, bench, taken, until
from tests.servers import RedisServer

KEEPS_DATA = pytest.mark.parametrize("own_server", [{"aof": True}], indirect=True)


def far_bus(b: Bench, proxy: Proxy) -> busq.Bus:
    """The same bus, seen through the proxy."""
    return busq.Bus(as_role(elsewhere(b.url, proxy.place), "worker"), **b.given)


async def all_end(b: Bench, jids: list[str], timeout: float = 30.0) -> list[busq.Job]:
    """Every record, when all are terminal; Redis may be away in between."""
    ended: list[busq.Job] = []
    for jid in jids:

        async def there(jid: str = jid) -> busq.Job | None:
            try:
                job = await b.bus.get(jid)
            except busq.BusUnavailable:
                return None
            return job if job.is_terminal else None

        job = await until(there, timeout)
        assert job is not None
        ended.append(job)
    return ended


async def once_each(b: Bench, jobs: list[busq.Job]) -> None:
    """No job has two endings, and what it says of itself agrees with its history."""
    for job in jobs:
        names = await b.names(job.jid)
        assert names.count("finalized") == 1, names
        assert names.count("started") == job.attempt, names
    counters = (await b.bus.stats()).total
    states = [str(job.state) for job in jobs]
    assert {state: counters.get(state, 0) for state in set(states)} == {s: states.count(s) for s in set(states)}


@KEEPS_DATA
async def test_a_restart_of_redis_loses_no_job_and_ends_none_twice(own_server: RedisServer) -> None:
    async with bench(own_server.url, lease_s=15.0) as b:
        gate = b.gate()

        @b.bus.job
        async def waits(n: int) -> int:
            await gate.wait()
            return n

        @b.bus.job
        async def short(n: int) -> int:
            await asyncio.sleep(0.001)
            return n

        worker = await b.work(concurrency=20)
        await b.watch()
        handles = await b.bus.enqueue_many([waits.spec(n) for n in range(10)] + [short.spec(n) for n in range(100)])
        await until(lambda: len(worker.running) >= 10)
        own_server.kill()
        gate.open()  # ten jobs end while Redis is away
        await until(lambda: not worker.running)
        own_server.start()
        jobs = await all_end(b, [handle.jid for handle in handles])
        assert [job.result for job in jobs] == [*range(10), *range(100)]
        assert {job.attempt for job in jobs[:10]} == {1}, "an ended job is not run again"
        assert {(job.failures, job.losses) for job in jobs} == {(0, 0)}
        await once_each(b, jobs)


async def test_scripts_that_are_forgotten_again_and_again_cost_no_job(own_server: RedisServer) -> None:
    async with bench(own_server.url, lease_s=15.0) as b:

        @b.bus.job
        async def short(n: int) -> int:
            await asyncio.sleep(0.001)
            return n

        handles = await b.bus.enqueue_many(short.spec(n) for n in range(300))
        await b.work(concurrency=5)
        await b.watch()
        with own_server.client() as client:
            for _ in range(50):
                client.script_flush()
                await asyncio.sleep(0.005)
        jobs = await all_end(b, [handle.jid for handle in handles])
        assert [job.result for job in jobs] == list(range(300))
        await once_each(b, jobs)


async def test_a_drain_of_many_jobs_survives_every_connection_being_killed(own_server: RedisServer) -> None:
    async with bench(own_server.url, lease_s=15.0) as b:

        @b.bus.job
        async def short(n: int) -> int:
            await asyncio.sleep(0.001)
            return n

        handles = await b.bus.enqueue_many(short.spec(n) for n in range(500))
        await b.work(concurrency=20)
        await b.watch()
        with own_server.client() as client:
            for _ in range(20):
                client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                await asyncio.sleep(0.01)
        jobs = await all_end(b, [handle.jid for handle in handles])
        assert [job.result for job in jobs] == list(range(500))
        assert {(job.failures, job.losses) for job in jobs} == {(0, 0)}
        await once_each(b, jobs)


async def test_a_lost_reply_of_a_read_is_found_among_the_readers_own_entries(own_server: RedisServer) -> None:
    """The entries bear the worker's name, nobody else gets them, and it has never seen them."""
    async with bench(own_server.url, lease_s=60.0) as b, Proxy(own_server.port) as proxy, far_bus(b, proxy) as far:

        @far.job
        async def short(n: int) -> int:
            return n

        worker = await b.work(far)
        proxy.lose = lambda reply, asked: proxy.lost < 3 and b"XREADGROUP" in asked and b"kind" in reply
        handles = [await b.bus.enqueue("short", n) for n in range(10)]
        jobs = await all_end(b, [handle.jid for handle in handles])
        assert proxy.lost == 3
        assert [job.result for job in jobs] == list(range(10))
        assert {(job.attempt, job.losses) for job in jobs} == {(1, 0)}
        await once_each(b, jobs)
        await b.end(worker)


@pytest.mark.parametrize("lost", [1, 2, 5])
async def test_lost_replies_of_scripts_are_asked_for_again_and_change_nothing_twice(
    own_server: RedisServer, lost: int
) -> None:
    async with bench(own_server.url, lease_s=60.0) as b, Proxy(own_server.port) as proxy, far_bus(b, proxy) as far:
        raised: set[int] = set()  # not by the attempt's number: one whose start lost every reply never ran

        @far.job(retries=1)
        async def short(n: int) -> int:
            if n % 5 == 0 and n not in raised:
                raised.add(n)
                raise ValueError
            return n

        await b.watch()
        worker = await b.work(far)
        count = 0

        def every_third(reply: bytes, asked: bytes) -> bool:
            nonlocal count
            if b"EVALSHA" not in asked or proxy.lost >= lost * 3:
                return False
            count += 1
            return count % 3 == 0

        proxy.lose = every_third
        handles = [await b.bus.enqueue("short", n) for n in range(20)]
        jobs = await all_end(b, [handle.jid for handle in handles])
        assert [job.result for job in jobs] == list(range(20))
        assert [job.failures for job in jobs] == [int(n % 5 == 0) for n in range(20)]
        assert {job.losses for job in jobs} == {0}
        assert proxy.lost > 0
        await until(lambda: not worker.running and worker._slots.used == 0)
        proxy.lose = lambda reply, asked: False
        await b.end(worker)


async def test_a_server_that_lost_everything_is_worked_for_again(own_server: RedisServer) -> None:
    """The running attempt is told that its job is gone; new jobs run."""
    async with bench(own_server.url) as b:
        gate, causes = b.gate(), []

        @b.bus.job
        async def waits() -> None:
            try:
                await gate.wait()
            finally:
                causes.append(busq.current_job().cause)

        @b.bus.job
        async def short(n: int) -> int:
            return n

        worker = await b.work()
        await b.watch()
        handle = await waits.enqueue()
        await b.reaches(handle.jid, "running")
        with own_server.client() as client:
            client.flushall()
        await until(lambda: causes)
        assert causes == [busq.Cause.LEASE_LOST]
        await until(lambda: not worker.running)
        assert await (await short.enqueue(5)).result(timeout=10) == 5
        with pytest.raises(busq.JobNotFound):
            await handle.get()
        await until(lambda: _carded(b))


async def _carded(b: Bench) -> bool:
    members = await b.bus.workers()
    return len(members) == 2 and all(member.card is not None for member in members)


async def test_a_worker_without_redis_does_not_start() -> None:
    bus = busq.Bus("redis://127.0.0.1:1/0")
    with pytest.raises(busq.BusUnavailable, match=r"127\.0\.0\.1:1"):
        await Worker(bus.settings, bus.handlers).run()


async def test_a_worker_knows_within_three_seconds_that_redis_does_not_answer(own_server: RedisServer) -> None:
    """The server freezes: connections stay open, nothing comes. It recovers when the server does."""
    async with bench(own_server.url, command_timeout_s=1.0, lease_s=60.0) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> str:
            await gate.wait()
            return "done"

        worker = await b.work()
        handle = await waits.enqueue()
        await b.reaches(handle.jid, "running")
        assert worker._control.reachable
        own_server.pause()
        paused = time.monotonic()
        await until(lambda: not worker._control.reachable)
        assert time.monotonic() - paused <= 3.0 + b.settings.beat_s + BUSY_S
        own_server.resume()
        await until(lambda: worker._control.reachable)
        await until(lambda: worker._control.hearing)
        gate.open()
        assert await handle.result(timeout=10) == "done"


@KEEPS_DATA
async def test_a_cancel_that_was_accepted_before_the_worker_was_cut_off_is_heard_when_it_is_back(
    own_server: RedisServer,
) -> None:
    settings = {"grace_s": 30.0, "lease_s": 60.0, "command_timeout_s": 0.5}
    async with bench(own_server.url, **settings) as b, Proxy(own_server.port) as proxy, far_bus(b, proxy) as far:
        gate = b.gate()

        @far.job
        async def waits() -> None:
            await gate.wait()

        worker = await b.work(far)
        handle = await b.bus.enqueue("waits")
        await taken(worker, handle.jid)
        proxy.stall()
        assert (await handle.cancel()).verdict == "signalled"
        await until(lambda: worker._outage.words("beat"))
        assert (await handle.get()).state == "cancelling"
        proxy.go_on()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended) == ("cancelled", "confirmed")
        await b.end(worker)
