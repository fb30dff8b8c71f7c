"""
A key of another type where a job's record should be: somebody else's, and no job's.

Whoever meets it among others deals with those others as ever: no worker ends, no duty of a watchdog stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from structlog.testing import capture_logs

from busq.errors import BadRecord
from busq.protocol.keys import GROUP
from tests.runtime.bench import NEVER_SO_LONG_S, PATIENT, Bench, bench, taken, until

ODD = 2


async def _overwrite(b: Bench, jid: str) -> None:
    store = await b.store()
    await store.redis.delete(store.job_key(jid))
    await store.redis.set(store.job_key(jid), "no record")


async def _all_but_the_odd(b: Bench, jids: Sequence[str], state: str) -> None:
    others = [jid for n, jid in enumerate(jids) if n != ODD]
    ended = await asyncio.gather(*(b.bus.wait(jid, timeout=NEVER_SO_LONG_S) for jid in others))
    assert {str(job.state) for job in ended} == {state}


async def test_a_worker_goes_on_with_its_other_jobs_and_stops_the_one_that_has_lost_its_record(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate, stopped = b.gate(), asyncio.Event()

        @b.bus.job
        async def waits(n: int) -> int:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                stopped.set()
                raise
            return n

        worker = await b.work()
        jids = [handle.jid for handle in await b.bus.enqueue_many(waits.spec(n) for n in range(4))]
        for jid in jids:
            await taken(worker, jid)
        await _overwrite(b, jids[ODD])
        await asyncio.wait_for(stopped.wait(), NEVER_SO_LONG_S)  # a beat has asked about all four
        gate.open()
        await _all_but_the_odd(b, jids, "succeeded")
        assert not any(worker.health().ready.values())


async def test_an_ending_that_finds_no_record_takes_no_other_one_along(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told in one batch, before any beat has asked."""
    async with bench(redis_url, beat_s=3.0, lease_s=60.0) as b:
        gate = b.gate()

        @b.bus.job
        async def waits(n: int) -> int:
            await gate.wait()
            await asyncio.shield(gate.wait())
            return n

        worker = await b.work()
        handles = await b.bus.enqueue_many(waits.spec(n) for n in range(4))
        jids = [handle.jid for handle in handles]
        for jid in jids:
            await taken(worker, jid)
        monkeypatch.setattr(worker._control, "_hear", lambda *told: None)
        await _overwrite(b, jids[ODD])
        gate.open()
        await _all_but_the_odd(b, jids, "succeeded")
        await until(lambda: not worker.running)
        assert await (await waits.enqueue(7)).result(timeout=NEVER_SO_LONG_S) == 7


async def test_overdue_cancels_are_finalized(redis_url: str) -> None:
    async with bench(redis_url) as b:
        gate = b.gate()

        @b.bus.job
        def deaf() -> None:
            gate.block()

        worker = await b.work(concurrency=4)
        jids = [handle.jid for handle in await b.bus.enqueue_many(deaf.spec() for _ in range(4))]
        for jid in jids:
            await taken(worker, jid)
        await b.bus.cancel_many(jids)
        await _overwrite(b, jids[ODD])
        await b.watch()
        await _all_but_the_odd(b, jids, "cancelled")
        gate.open()


async def test_scheduled_jobs_are_queued_and_old_ones_expire(redis_url: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job
        async def short() -> None: ...

        due = await b.bus.enqueue_many(short.options(delay=0.1).spec() for _ in range(4))
        old = await b.bus.enqueue_many(short.options(queue="nobody", expires=0.1).spec() for _ in range(4))
        for handles in (due, old):
            await _overwrite(b, handles[ODD].jid)
        await b.work(queues=["default"])
        await b.watch()
        await _all_but_the_odd(b, [handle.jid for handle in due], "succeeded")
        await _all_but_the_odd(b, [handle.jid for handle in old], "cancelled")


@pytest.mark.parametrize("delay", [None, 60.0], ids=["queued", "scheduled"])
async def test_a_wide_cancel_is_settled(redis_url: str, delay: float | None) -> None:
    async with bench(redis_url) as b:
        options = b.bus.options(group="g", delay=delay)
        jids = [handle.jid for handle in await b.bus.enqueue_many(options.spec("short") for _ in range(4))]
        await _overwrite(b, jids[ODD])
        scope = await b.bus.cancel_group("g")
        await b.watch()
        await scope.wait(timeout=NEVER_SO_LONG_S)
        await _all_but_the_odd(b, jids, "cancelled")


async def test_a_parent_s_cancel_reaches_its_other_children(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> None:
            await gate.wait()

        worker = await b.work()
        for parent in ("first", "second"):
            await b.bus.options(jid=parent).enqueue("waits")
            await taken(worker, parent)
        below = {
            parent: await b.bus.enqueue_many(b.bus.options(parent=parent, delay=60).spec("waits") for _ in range(4))
            for parent in ("first", "second")
        }
        await _overwrite(b, below["first"][ODD].jid)
        await b.watch()
        for parent, children in below.items():
            await b.bus.cancel(parent)
            await _all_but_the_odd(b, [child.jid for child in children], "cancelled")


async def test_a_child_ends_whose_parent_has_no_record(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> None:
            await gate.wait()

        @b.bus.job
        async def short() -> int:
            return 1

        worker = await b.work()
        await b.bus.options(jid="above").enqueue("waits")
        await taken(worker, "above")
        child = await b.bus.options(parent="above", delay=0.2).enqueue("short")
        await _overwrite(b, "above")
        await b.watch()
        assert (await b.bus.wait(child.jid, timeout=NEVER_SO_LONG_S)).state == "succeeded"


async def test_what_a_lost_worker_held_is_taken_over_and_the_odd_entry_is_a_dead_letter(redis_url: str) -> None:
    with capture_logs() as lines:
        async with bench(redis_url, lease_s=0.6) as b:

            @b.bus.job
            async def short() -> None: ...

            jids = [handle.jid for handle in await b.bus.enqueue_many(short.spec() for _ in range(4))]
            store = await b.store()
            stream = store.keys(0).stream("default")
            await store.redis.xgroup_create(stream, GROUP, id="0")
            await store.redis.xreadgroup(GROUP, "dead", {stream: ">"}, count=10)
            await _overwrite(b, jids[ODD])
            await b.watch()
            await b.work()
            await _all_but_the_odd(b, jids, "succeeded")
            [letter] = await (await b.bus._link()).reader.dead()
            assert letter.reason.startswith("unknown_jid")
    assert not [line for line in lines if line["event"] == "sweep.failed"]


async def test_a_batch_of_cancels_goes_through_and_says_so(redis_url: str) -> None:
    async with bench(redis_url) as b:
        jids = [handle.jid for handle in await b.bus.enqueue_many(b.bus.spec("short") for _ in range(4))]
        await _overwrite(b, jids[ODD])
        answers = await b.bus.cancel_many(jids)
        assert [str(answer.verdict) for answer in answers] == ["cancelled", "cancelled", "not_found", "cancelled"]


async def test_the_others_are_listed_and_the_odd_one_is_named_when_it_is_asked_for(redis_url: str) -> None:
    async with bench(redis_url) as b:
        jids = [handle.jid for handle in await b.bus.enqueue_many(b.bus.spec("short") for _ in range(4))]
        await _overwrite(b, jids[ODD])
        listed = {job.jid for job in await b.bus.list()}
        of_kind = {job.jid for job in await b.bus.list(kind="short")}
        assert listed == of_kind == set(jids) - {jids[ODD]}
        with pytest.raises(BadRecord, match="cannot work with"):
            await b.bus.get(jids[ODD])
