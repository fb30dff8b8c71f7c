"""
What a system leaves behind when all its jobs have ended: of every key, only what the table of keys says stays.

Jobs end in every way there is, with hooks, moments, tombstones, children and retries among them.
"""

from __future__ import annotations

import busq
from busq.protocol.keys import GROUP
from busq.store.store import Store
from busq.watchdog.watchdog import Watchdog
from busq.worker.worker import Worker
from tests.runtime.bench import Bench, bench, until

KEPT_S = 4.0  # long enough to be waited for, on a busy machine too
ROSTER = {"{0}:workers", "{0}:worker_info"}
STAYING = {"meta", "{0}:birth", "{0}:queues", "{0}:hooks", "{0}:events", "{0}:counters"}
"""Bounded by the number of kinds and queues, or by a limit."""


async def left_behind(store: Store, *, alive: bool = False) -> dict[str, object]:
    """
    Every key but those that stay; of a queue's stream its entries and those pending.

    `alive`: workers and watchdogs are still there, and stand on the roster and as consumers of their queues.
    """
    left: dict[str, object] = {}
    for key in await store.redis.keys("*"):
        name = key.decode().removeprefix("busq:")
        if name.startswith("{0}:queue:"):
            held = await store.redis.xpending(key, GROUP)
            consumers = [] if alive else await store.redis.xinfo_consumers(key, GROUP)
            if await store.redis.xlen(key) or held["pending"] or consumers:
                left[name] = (await store.redis.xrange(key), held, consumers)
        elif name not in (STAYING | ROSTER if alive else STAYING):
            left[name] = await store.redis.type(key)
    return left


async def everything(b: Bench) -> list[Worker | Watchdog]:
    """Jobs that end in every way, with all that belongs to them. Return who serves them."""
    gate = b.gate()

    @b.bus.job(retries=1, backoff=0.01)
    async def works(how: str) -> None:
        job = busq.current_job()
        if how == "waits":
            await gate.wait()
        if how == "parent":
            await job.spawn(works, "child")
            await (await job.spawn(works.options(delay=60), "child")).cancel()
        if how == "fails" or (how == "once more" and job.attempt == 1):
            raise ValueError(how)

    @works.on_cancel(retries=1)
    async def clean(job: busq.CancelledJob) -> None:
        if job.reason == "odd" or (job.reason == "twice" and busq.current_job().attempt == 1):
            raise ValueError(job.reason)

    @b.bus.job(timeout=0.02)
    def times_out() -> None:
        busq.current_job().wait_cancelled(timeout=10)

    await b.bus.cancel("early", tombstone=60)
    await b.bus.cancel("nobody", tombstone=0.1)
    unread = await works.enqueue("never read")
    await unread.cancel(reason="twice")
    services: list[Worker | Watchdog] = [await b.work(concurrency=8), await b.watch()]
    handles = [unread, await works.options(jid="early").enqueue("tombstoned")]
    handles += [await works.enqueue(how) for how in ("once", "once more", "fails", "parent")]
    handles += [await works.options(deadline=0.1, grace=0.05).enqueue("waits")]
    handles += [await works.options(expires=0.1, deadline=5).enqueue("in time")]
    handles += [await b.bus.options(queue="served-late", expires=0.1).enqueue("works", "x")]
    handles += [await works.options(delay=60, expires=90).enqueue("later"), await works.enqueue("waits")]
    await b.reaches(handles[-1].jid, "running")
    for handle in handles[-2:]:
        await handle.cancel(reason="odd")
    for handle in handles:
        await handle.wait(timeout=20)
    slow = await (await times_out.enqueue()).wait(timeout=20)
    assert slow.cause == "timed_out"
    return [await b.work(queues=["served-late"]), *services]


async def test_of_a_system_whose_jobs_have_all_ended_nothing_is_left(redis_url: str) -> None:
    async with bench(redis_url, keep_succeeded_s=KEPT_S, keep_ended_s=KEPT_S, backoff_s=0.01, backoff_max_s=0.01) as b:
        services = await everything(b)
        store = await b.store()

        async def are_all_gone() -> bool:
            return set(await left_behind(store, alive=True)) == set()

        await until(are_all_gone)
        for service in services:
            await b.end(service)
        assert await left_behind(store) == {}
        assert await store.redis.hkeys(store.keys(0).hooks) == [b"works"]
