"""
Cancels by filter as a program sees them, from the call to the last record: workers, a watchdog and a server are real.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import busq
from busq.client import default
from busq.client import link as link_module
from busq.store import watch
from busq.store.store import Store
from tests.runtime.bench import PATIENT, Bench, Gate, bench, until


def waits_on(b: Bench, gate: Gate, **options: Any) -> Any:
    @b.bus.job(**options)
    async def waits() -> None:
        await gate.wait()

    return waits


async def test_a_group_is_cancelled_in_whatever_state_its_jobs_are_and_nothing_else(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()
        waits = waits_on(b, gate)
        await b.work(concurrency=3)
        await b.watch()
        running = await b.bus.enqueue_many(waits.options(group="g").spec() for _ in range(2))
        other = await waits.options(group="h").enqueue()
        for handle in (*running, other):
            await b.reaches(handle.jid, "running")
        waiting = [
            *await b.bus.enqueue_many(waits.options(group="g").spec() for _ in range(3)),
            await waits.options(group="g", delay=60).enqueue(),
        ]
        scope = await b.bus.cancel_group("g", reason="the user left", source="api")
        async with asyncio.timeout(20):
            seen = await scope.wait()
        assert (seen.state, seen.unfinished) == ("settled", 0)
        assert scope.counts == {"cancelled": 4, "signalled": 2}
        assert scope.endings == {"before_start": 4, "confirmed": 2}
        for handle in (*running, *waiting):
            job = await handle.get()
            assert (job.state, job.cause, job.scope, job.reason, job.source) == (
                "cancelled", "scope", scope.id, "the user left", "api",
            )  # fmt: skip
        assert {job.scope for job in await b.bus.list(state="cancelled")} == {scope.id}
        gate.open()
        assert (await other.wait(timeout=10)).state == "succeeded"
        assert await scope.revoke() is False, "nothing is left to take back"
        again = b.bus.scope(scope.id)
        await again.wait(timeout=10)
        assert (again.counts, again.endings) == (scope.counts, scope.endings)


async def test_every_hit_job_says_so_in_its_history(redis_url: str) -> None:
    async with bench(redis_url) as b:
        await b.watch()
        handle = await b.bus.options(group="g").enqueue("k")
        scope = await b.bus.cancel_group("g", reason="no more", source="api")
        await scope.wait(timeout=20)
        events = {event.name: event for event in await handle.history()}
        assert list(events) == ["enqueued", "requested", "finalized"]
        assert (events["requested"].by, events["requested"].facts) == ("api", f"scope {scope.id}: no more")


FILTERS: dict[str, dict[str, Any]] = {
    "group": {"group": "g"},
    "kind": {"kind": "other"},
    "queue": {"queue": "media"},
    "tags": {"tags": {"tenant": "a", "part": "1"}},
    "jid prefix": {"jid_prefix": "order-"},
    "where": {"where": "args.path ^= '/tmp/' and attempt == 0"},
    "descendants": {"descendants_of": "root"},
    "two": {"kind": "k", "where": "queue == 'default' and group == 'g'"},
}
HIT = {
    "group": {"grouped"}, "kind": {"named"}, "queue": {"queued"}, "tags": {"tagged"}, "jid prefix": {"order-17"},
    "where": {"path"}, "descendants": {"child", "grandchild"}, "two": {"grouped"},
}  # fmt: skip


@pytest.mark.parametrize("by", FILTERS)
async def test_each_condition_chooses_its_jobs_and_no_others(redis_url: str, by: str) -> None:
    async with bench(redis_url) as b:
        options = b.bus.options
        await options(jid="root").enqueue("k")
        await options(jid="child", parent="root").enqueue("k")
        await options(jid="grandchild", parent="child").enqueue("k")
        await options(jid="grouped", group="g").enqueue("k")
        await options(jid="named").enqueue("other")
        await options(jid="queued", queue="media").enqueue("k")
        await options(jid="tagged", tags={"tenant": "a", "part": "1"}).enqueue("k")
        await options(jid="half-tagged", tags={"tenant": "a"}).enqueue("k")
        await options(jid="order-17").enqueue("k")
        await options(jid="path").enqueue("k", path="/tmp/a")
        await options(jid="elsewhere").enqueue("k", path="/home/tmp/")
        await b.watch()
        scope = await b.bus.cancel_where(**FILTERS[by])
        await scope.wait(timeout=20)
        assert {job.jid for job in await b.bus.list(state="cancelled")} == HIT[by]
        assert scope.counts == {"cancelled": len(HIT[by]), "signalled": 0}


async def test_jobs_are_chosen_by_their_worker_and_by_the_time_of_their_enqueueing(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()
        waits = waits_on(b, gate)
        worker = await b.work()
        await b.watch()
        old = await waits.enqueue()
        job = await b.reaches(old.jid, "running")
        assert job.enqueued_at is not None
        new = await waits.options(delay=60).enqueue()
        moment = (await new.get()).enqueued_at
        assert moment is not None
        if moment > job.enqueued_at:  # else both came within one ms
            scope = await b.bus.cancel_where(enqueued_before=moment, kind="waits", dry_run=True)
            assert scope.jobs == 1
        hit = await b.bus.cancel_where(worker=worker.name)
        await hit.wait(timeout=20)
        assert (await old.get()).scope == hit.id
        assert (await new.get()).state == "scheduled"


async def test_jobs_enqueued_afterwards_are_not_hit(redis_url: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job
        async def ran() -> str:
            return "ran"

        before = await ran.enqueue()
        scope = await b.bus.cancel_kind("ran")
        after = await ran.enqueue()
        await b.work()
        await b.watch()
        assert await after.result(timeout=10) == "ran"
        await scope.wait(timeout=20)
        assert (await before.get()).scope == scope.id
        assert scope.counts == {"cancelled": 1, "signalled": 0}


async def test_reads_say_cancelled_before_anybody_has_settled_a_record(redis_url: str) -> None:
    """There is neither a worker nor a watchdog."""
    async with bench(redis_url) as b:
        handle = await b.bus.options(group="g").enqueue("k")
        spared = await b.bus.options(group="h").enqueue("k")
        scope = await b.bus.cancel_group("g")
        assert ((await handle.get()).state, (await handle.get()).scope) == ("cancelled", scope.id)
        assert (await handle.wait(timeout=0)).state == "cancelled"
        assert [job.jid for job in await b.bus.list(state="cancelled")] == [handle.jid]
        assert [job.jid for job in await b.bus.list(state="queued")] == [spared.jid]
        assert (await scope.look()).state == "settling"
        assert [rule.id for rule in await b.bus.rules()] == [scope.id]
        stats = await b.bus.stats()
        assert (stats.rules, stats.settling) == (1, 1)


async def test_a_length_of_time_is_reckoned_by_the_clock_of_each_shards_own_server(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cluster the clock of one server says nothing of when a rule ends on another."""
    real = watch.server_now_ms

    async def an_hour_ahead_in_shard_1(store: Store, shard: int = 0) -> float:
        return await real(store, shard) + 3_600_000 * (shard == 1)

    monkeypatch.setattr(watch, "server_now_ms", an_hour_ahead_in_shard_1)
    async with bench(redis_url, shards=2) as b:
        at = datetime.now(UTC) + timedelta(hours=3)
        await b.bus.cancel_kind("a", standing=True, until=7200)
        await b.bus.cancel_kind("b", standing=True, until=at)
        store = await b.store()
        ends = {}
        for shard in range(2):
            for number in (b"1", b"2"):
                stored = await store.redis.hget(store.keys(shard).rules, number)
                ends[shard, number] = int(stored.split(b" ")[2])
        assert ends[0, b"2"] == ends[1, b"2"] == round(at.timestamp() * 1000), "a moment is the same everywhere"
        assert abs(ends[1, b"1"] - ends[0, b"1"] - 3_600_000) < 60_000


async def test_a_standing_rule_hits_later_jobs_until_it_is_revoked(redis_url: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job
        async def ran() -> str:
            return "ran"

        await b.work()
        await b.watch()
        there = await ran.options(delay=60).enqueue()
        scope = await b.bus.cancel_kind("ran", standing=True, until=3600, reason="not today", source="ops")
        late = await ran.enqueue()
        assert ((await late.get()).state, (await late.get()).scope) == ("cancelled", scope.id)
        [rule] = await b.bus.rules()
        assert (rule.id, rule.standing, rule.reason, rule.source) == (scope.id, True, "not today", "ops")
        assert rule.filter.kind == "ran"
        assert rule.until is not None
        assert abs(rule.until - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=5)
        assert (await scope.wait(timeout=20)).state == "standing"
        assert (await there.get()).scope == scope.id
        assert await scope.revoke() is True
        assert await scope.revoke() is True, "sent again it is answered as before"
        assert await b.bus.rules() == []
        assert await (await ran.enqueue()).result(timeout=10) == "ran"
        assert (await scope.wait(timeout=20)).state == "revoked"
        assert scope.counts == {"cancelled": 2, "signalled": 0}


async def test_a_dry_run_shows_the_picture_and_its_digest_cancels_just_that(redis_url: str) -> None:
    async with bench(redis_url) as b:
        await b.watch()
        first = await b.bus.options(group="g", queue="media").enqueue("k")
        second = await b.bus.options(group="g", delay=60).enqueue("other")
        survey = await b.bus.cancel_group("g", dry_run=True)
        assert (survey.jobs, survey.kinds, survey.queues, survey.states) == (
            2, {"k": 1, "other": 1}, {"media": 1, "default": 1}, {"queued": 1, "scheduled": 1},
        )  # fmt: skip
        assert await b.bus.rules() == []
        assert (await b.bus.cancel_group("g", dry_run=True)).digest == survey.digest
        third = await b.bus.options(group="g").enqueue("k")
        with pytest.raises(busq.PictureChanged, match=survey.digest) as caught:
            await b.bus.cancel_group("g", expect=survey.digest)
        assert caught.value.survey.jobs == 3
        assert {(await handle.get()).state for handle in (first, second, third)} == {"queued", "scheduled"}
        scope = await b.bus.cancel_group("g", expect=caught.value.survey.digest)
        await scope.wait(timeout=20)
        assert scope.counts == {"cancelled": 3, "signalled": 0}


async def test_what_comes_between_the_second_look_and_the_decision_is_not_hit(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url) as b:
        await b.watch()
        seen = await b.bus.options(group="g").enqueue("k")
        survey = await b.bus.cancel_group("g", dry_run=True)
        scopes = (await b.bus._link()).scopes
        late: list[busq.JobHandle[Any]] = []

        async def looked(conditions: Any) -> Any:
            found = await type(scopes).survey(scopes, conditions)
            late.append(await b.bus.options(group="g").enqueue("k"))
            return found

        monkeypatch.setattr(scopes, "survey", looked)
        scope = await b.bus.cancel_group("g", expect=survey.digest)
        await scope.wait(timeout=20)
        assert (await seen.get()).scope == scope.id
        assert (await late[0].get()).state == "queued"


async def test_a_wait_for_a_scope_is_woken_and_does_not_poll(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LOOK_AGAIN_S", 3600)
    async with bench(redis_url, **PATIENT) as b:
        tidied = b.gate()
        gate = b.gate()

        @b.bus.job
        async def tidy() -> None:
            try:
                await gate.wait()
            finally:
                await tidied.wait()

        await b.work()
        await b.watch()
        handle = await tidy.options(group="g").enqueue()
        await b.reaches(handle.jid, "running")
        scope = await b.bus.cancel_group("g")
        waiting = asyncio.create_task(scope.wait())

        async def told() -> bool:
            seen = await scope.look()
            return seen.state == "settled" and seen.counts["signalled"] == 1

        await until(told)
        with pytest.raises(TimeoutError, match="1 of 1 signalled jobs"):
            await scope.wait(timeout=0.01)
        assert not waiting.done()
        tidied.open()
        seen = await asyncio.wait_for(waiting, 20)
        assert (seen.counts["signalled"], seen.endings) == (1, {"confirmed": 1})


async def test_an_unknown_scope_is_not_found(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        scope = bus.scope("s-nobody")
        for ask in (scope.look, scope.wait, scope.revoke, lambda: bus.revoke("s-nobody")):
            with pytest.raises(busq.ScopeNotFound, match="s-nobody"):
                await ask()
        assert await bus.rules() == []


@pytest.mark.parametrize("shards", [1, 4])
async def test_a_scope_covers_every_shard(redis_url: str, shards: int) -> None:
    async with bench(redis_url, shards=shards) as b:
        await b.watch()
        handles = await b.bus.enqueue_many(b.bus.options(group="g").spec("k") for _ in range(50))
        assert (await b.bus.cancel_group("g", dry_run=True)).jobs == 50
        scope = await b.bus.cancel_group("g")
        await scope.wait(timeout=20)
        assert scope.counts == {"cancelled": 50, "signalled": 0}
        assert {(await handle.get()).scope for handle in handles} == {scope.id}


# Without an event loop -----------------------------------------------------------------------------------


async def test_the_blocking_calls_do_the_same(redis_url: str) -> None:
    async with bench(redis_url) as b:
        await b.watch()
        await asyncio.to_thread(_blocking, b.url)


def _blocking(url: str) -> None:
    bus = busq.Bus(url).blocking
    jids = [bus.enqueue("k", n).jid for n in range(3)]
    survey = bus.cancel_kind("k", dry_run=True)
    assert (survey.jobs, bus.cancel_where(kind="k", dry_run=True)) == (3, survey)
    scope = bus.cancel_where(kind="k", expect=survey.digest, reason="why")
    assert scope.wait(timeout=20).id == scope.id
    assert (scope.counts, scope.endings) == ({"cancelled": 3, "signalled": 0}, {"before_start": 3})
    assert {bus.get(jid).reason for jid in jids} == {"why"}
    assert bus.scope(scope.id).look().counts == scope.counts
    rule = bus.cancel_group("g", standing=True)
    assert [each.id for each in bus.rules()] == [rule.id]
    assert rule.revoke() is True
    assert bus.revoke(rule.id) is True
    assert bus.cancel_descendants(jids[0]).wait(timeout=20).counts["cancelled"] == 0
    with pytest.raises(busq.ScopeNotFound):
        bus.scope("s-nobody").look()
    bus.close()


async def test_the_blocking_calls_inside_a_loop_name_the_awaitable_form() -> None:
    bus = busq.Bus("redis://127.0.0.1:1/0").blocking
    for words, call in {
        r"await bus\.cancel_where\(": lambda: bus.cancel_where(group="g"),
        r"await bus\.cancel_group\(": lambda: bus.cancel_group("g"),
        r"await bus\.cancel_kind\(": lambda: bus.cancel_kind("k"),
        r"await bus\.cancel_descendants\(": lambda: bus.cancel_descendants("jid"),
        r"await bus\.rules\(": bus.rules,
        r"await bus\.revoke\(": lambda: bus.revoke("s-1"),
        r"await bus\.scope\('s-1'\)\.wait\(": lambda: bus.scope("s-1").wait(),
    }.items():
        with pytest.raises(busq.BlockingCallInLoop, match=words):
            call()
    with pytest.raises(busq.BlockingCallInLoop, match=r"await bus\.cancel_where"):
        busq.cancel_where(group="g")


def test_the_module_level_call_uses_the_url_of_the_environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default.default_bus.cache_clear()
    monkeypatch.setenv("BUSQ_URL", redis_url)
    handle = busq.enqueue("k")
    assert busq.cancel_where(kind="k", dry_run=True).jobs == 1
    scope = busq.cancel_where(kind="k", reason="no")
    assert (handle.get().state, handle.get().scope) == ("cancelled", scope.id)
    default.default_bus().blocking.close()
    default.default_bus.cache_clear()
