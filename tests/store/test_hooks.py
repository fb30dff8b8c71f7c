"""What cleans up after a cancelled job: admitted once, by the script that cancels it, and told in its history."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from busq.protocol.cancel import CancelRequest, Cause, Ended
from busq.protocol.hook import hook_kind, hook_queue, read_clean_up
from busq.protocol.jids import check_jid, shard_of
from busq.protocol.job import Job
from busq.protocol.states import State, Verb
from busq.store.forms import Refusal
from tests.store.bench import DEADLINE_S, DELAY_S, KIND, LEASE_S, QUEUE, Bench, Held, but_history, put_in

S = State
HOOKS = hook_queue(QUEUE)
HOOK = hook_kind(KIND)


async def declare(bench: Bench, occasion: str = "always", kind: str = KIND) -> None:
    for shard in range(bench.a.shards):
        await bench.a.declare(shard, {kind: occasion}, keep_s=60)


async def hooks(bench: Bench) -> list[str]:
    """The jids that stand in the queue of clean-ups."""
    found: list[str] = []
    for shard in range(bench.a.shards):
        listed = await bench.redis.xrange(bench.a.keys(shard).stream(HOOKS))
        found += [fields[b"jid"].decode() for _, fields in listed]
    return found


async def hook_of(bench: Bench, jid: str) -> Job:
    """The one hook that there is; it is that of this job."""
    hook = (await bench.job(jid)).hook
    assert await hooks(bench) == [hook]
    return await bench.job(hook or "")


# Every way to end as cancelled -----------------------------------------------------------------------------


async def _queued(bench: Bench) -> tuple[str, int]:
    jid = await bench.enqueue()
    await bench.cancel(jid, request="one")
    await bench.cancel(jid, request="one")
    return jid, 0


async def _scheduled(bench: Bench) -> tuple[str, int]:
    jid = await bench.enqueue(delay_s=DELAY_S)
    await bench.cancel(jid)
    return jid, 0


async def _waiting_for_a_retry(bench: Bench) -> tuple[str, int]:
    held = await put_in(bench, S.RUNNING, retries=3)
    await bench.settle(Verb.RETRY, held, delay_s=1)
    await bench.cancel(held.jid)
    return held.jid, 1


async def _handed_back(bench: Bench) -> tuple[str, int]:
    held = await put_in(bench, S.RUNNING)
    await bench.settle(Verb.RELEASE, held)
    await bench.cancel(held.jid)
    return held.jid, 1


async def _tombstoned(bench: Bench) -> tuple[str, int]:
    await bench.cancel("early", tombstone_s=60)
    for _ in range(2):
        assert (await bench.admit("early", call="one"))[0] == "tombstoned"
    return "early", 0


def _settled(verb: Verb) -> Callable[[Bench], Awaitable[tuple[str, int]]]:
    async def way(bench: Bench) -> tuple[str, int]:
        held = await put_in(bench, S.CANCELLING)
        for _ in range(2):
            assert await bench.settle(verb, held, observed=True) == ("settled", "cancelled")
        return held.jid, 1

    return way


async def _finalized(bench: Bench) -> tuple[str, int]:
    held = await put_in(bench, S.CANCELLING)
    bench.clock.advance(DEADLINE_S)
    assert await bench.finalize(held.jid) == ("finalized", "cancelled")
    assert await bench.finalize(held.jid) == ("stale", "cancelled")
    assert await bench.settle(Verb.FINISH, held) == ("stale", "cancelled")
    return held.jid, 1


async def _reclaimed(bench: Bench) -> tuple[str, int]:
    held = await put_in(bench, S.CANCELLING)
    await bench.beat()
    bench.clock.advance(LEASE_S)
    assert await bench.reclaim(held) == ("ended", "cancelled")
    admitted = await hooks(bench)
    assert await bench.reclaim(held) == ("stale", "cancelled")
    assert await hooks(bench) == admitted, "not late, by a call that is sent again"
    return held.jid, 1


async def _expired(bench: Bench, held: Held) -> None:
    bench.clock.advance(2)
    assert await bench.expire(held.jid) == ("cancelled", "cancelled")
    assert await bench.expire(held.jid) == ("stale", "cancelled")


async def _expired_in_the_queue(bench: Bench) -> tuple[str, int]:
    held = await put_in(bench, S.QUEUED, expires=2000)
    await _expired(bench, held)
    return held.jid, 0


async def _expired_while_scheduled(bench: Bench) -> tuple[str, int]:
    held = await put_in(bench, S.SCHEDULED, due_by=2000)
    await _expired(bench, held)
    return held.jid, 0


async def _expired_between_attempts(bench: Bench) -> tuple[str, int]:
    held = await put_in(bench, S.RUNNING, due_by=2000)
    await bench.settle(Verb.RELEASE, held)
    await _expired(bench, held)
    return held.jid, 1


async def _expired_while_it_ran(bench: Bench) -> tuple[str, int]:
    held = await put_in(bench, S.RUNNING, due_by=2000)
    bench.clock.advance(2)
    for word in ("signalled", "stale"):
        assert (await bench.expire(held.jid))[0] == word
    assert await bench.settle(Verb.FINISH, held, observed=True) == ("settled", "cancelled")
    return held.jid, 1


async def _found_expired_by_a_start(bench: Bench) -> tuple[str, int]:
    held = await put_in(bench, S.QUEUED, expires=2000)
    bench.clock.advance(2)
    for _ in range(2):
        assert (await bench.begin(held, token="one")).detail == "cancelled"
    return held.jid, 0


def _never_came_to_run(**how: Any) -> Callable[[Bench], Awaitable[tuple[str, int]]]:
    async def way(bench: Bench) -> tuple[str, int]:
        held = await put_in(bench, S.QUEUED)
        await bench.begin(held, token="one")
        await bench.cancel(held.jid)
        for _ in range(2):
            assert (await bench.begin(held, **how)).detail == "cancelled"
        return held.jid, 1

    return way


async def _given_back_unknown(bench: Bench) -> tuple[str, int]:
    held = await put_in(bench, S.CANCELLING)
    refusal = Refusal(jid=held.jid, entry=held.entry, why="shutdown", unknown=True)
    assert await bench.a.refuse(0, QUEUE, [refusal]) == [("stale", "cancelled")]
    admitted = await hooks(bench)
    assert await bench.a.refuse(0, QUEUE, [refusal]) == [("stale", "cancelled")]
    assert await hooks(bench) == admitted, "not late, by a call that is sent again"
    return held.jid, 1


WAYS = {
    "queued": _queued,
    "scheduled": _scheduled,
    "waiting for a retry": _waiting_for_a_retry,
    "handed back": _handed_back,
    "tombstoned": _tombstoned,
    "finish": _settled(Verb.FINISH),
    "retry": _settled(Verb.RETRY),
    "release": _settled(Verb.RELEASE),
    "finalize": _finalized,
    "reclaim": _reclaimed,
    "expired in the queue": _expired_in_the_queue,
    "expired while scheduled": _expired_while_scheduled,
    "expired between attempts": _expired_between_attempts,
    "expired while it ran": _expired_while_it_ran,
    "found expired by a start": _found_expired_by_a_start,
    "found by its owner, never run": _never_came_to_run(token="two", adopt=True),
    "started by a call sent again": _never_came_to_run(token="one"),
    "given back, never run": _given_back_unknown,
}


@pytest.mark.parametrize("way", WAYS)
async def test_whoever_makes_a_job_cancelled_admits_its_hook_once(url: str, way: str) -> None:
    async with Bench(url) as bench:
        await declare(bench)
        jid, attempt = await WAYS[way](bench)
        job = await bench.job(jid)
        hook = await hook_of(bench, jid)
        assert (hook.kind, hook.queue, hook.state, hook.hook_of) == (HOOK, HOOKS, S.QUEUED, jid)
        record = await bench.record(hook.jid)
        assert record[b"payload"] == (await bench.record(jid))[b"payload"]
        assert record[b"for_attempt"] == str(attempt).encode()
        assert (record[b"for_cause"].decode(), record[b"for_ended"].decode()) == (job.cause, job.ended)
        assert await bench.redis.sismember(bench.a.keys(0).queues, HOOKS)
        assert await bench.redis.pttl(bench.a.job_key(hook.jid)) == -1
        assert await bench.events(hook.jid) == ["enqueued"]
        await bench.cancel(jid)
        assert len(await hooks(bench)) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_hook_that_opted_out_is_admitted_only_after_an_attempt(url: str, way: str) -> None:
    async with Bench(url) as bench:
        await declare(bench, "attempted")
        _, attempt = await WAYS[way](bench)
        assert len(await hooks(bench)) == (1 if attempt else 0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_kind_without_a_hook_leaves_nothing_to_do(url: str, way: str) -> None:
    async with Bench(url) as bench:
        await declare(bench, kind="another")
        jid, _ = await WAYS[way](bench)
        assert await hooks(bench) == []
        assert (await bench.job(jid)).hook is None
        assert not await bench.redis.sismember(bench.a.keys(0).queues, HOOKS)


@pytest.mark.parametrize("state", [S.SUCCEEDED, S.FAILED])
async def test_a_job_that_ends_otherwise_runs_no_hook(url: str, state: State) -> None:
    async with Bench(url) as bench:
        await declare(bench)
        held = await put_in(bench, state)
        await bench.cancel(held.jid)
        assert await hooks(bench) == []


async def test_a_late_success_that_is_kept_runs_no_hook(url: str) -> None:
    async with Bench(url) as bench:
        await declare(bench)
        held = await put_in(bench, S.CANCELLING, late="keep")
        assert await bench.settle(Verb.FINISH, held, "succeeded") == ("settled", "succeeded")
        assert await hooks(bench) == []


# Who says that there is a hook -----------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "declared", "count"), [("always", "", 1), ("attempted", "always", 0)])
async def test_what_the_producer_says_of_the_hook_stands_before_what_workers_say(
    url: str, said: str, declared: str, count: int
) -> None:
    async with Bench(url) as bench:
        if declared:
            await declare(bench, declared)
        await bench.cancel(await bench.enqueue(on_cancel=said))
        assert len(await hooks(bench)) == count


async def test_a_job_remembers_the_hook_of_the_worker_that_started_it(url: str) -> None:
    """A server that lost what workers declared is told again in a while; jobs that run need not wait for that."""
    async with Bench(url) as bench:
        held = await bench.take(await bench.enqueue())
        assert (await bench.begin(held, occasion="attempted")).word == "started"
        await bench.cancel(held.jid)
        await bench.settle(Verb.FINISH, held)
        assert (await hook_of(bench, held.jid)).state is S.QUEUED


@pytest.mark.parametrize(("occasion", "count"), [("always", 1), ("attempted", 0), ("", 0)])
async def test_a_hook_that_nobody_knew_of_is_admitted_when_the_entry_comes_to_a_worker_that_does(
    url: str, occasion: str, count: int
) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue()
        await bench.cancel(jid)
        assert await hooks(bench) == []
        held = await bench.take(jid)
        for _ in range(2):
            assert (await bench.begin(held, occasion=occasion)).word == "stale"
        assert len(await hooks(bench)) == count
        if count:
            await hook_of(bench, jid)


@pytest.mark.parametrize("by", ["a worker without room", "the watchdog"])
@pytest.mark.parametrize(("occasion", "count"), [("always", 1), ("attempted", 0), ("", 0)])
async def test_a_hook_that_nobody_knew_of_is_not_lost_with_an_entry_that_never_came_to_a_start(
    url: str, by: str, occasion: str, count: int
) -> None:
    """The worker that read it has said by then which hooks it has; it has no slot for the job, or dies."""
    async with Bench(url) as bench:
        jid = await bench.enqueue()
        await bench.cancel(jid)
        await declare(bench, occasion)
        held = await bench.take(jid)
        for _ in range(2):
            if by == "the watchdog":
                assert await bench.reclaim(held) == ("stale", "cancelled")
            else:
                refusal = Refusal(jid=jid, entry=held.entry, why="no_slot")
                assert await bench.a.refuse(0, QUEUE, [refusal]) == [("stale", "cancelled")]
        assert await bench.entries() == []
        assert len(await hooks(bench)) == count


async def test_a_job_that_a_start_finds_expired_has_the_hook_that_its_worker_knows_of(url: str) -> None:
    """Neither its producer nor any worker before had the handler's code, nor its `expires`."""
    async with Bench(url) as bench:
        held = await bench.take(await bench.enqueue())
        bench.clock.advance(2)
        assert (await bench.begin(held, occasion="always", expires_s=1)).detail == "cancelled"
        assert (await hook_of(bench, held.jid)).state is S.QUEUED


@pytest.mark.parametrize("known", ["by its record", "by a worker", "by another kind"])
async def test_a_hook_is_not_admitted_late_where_it_had_been_decided(url: str, known: str) -> None:
    async with Bench(url) as bench:
        if known == "by a worker":
            await declare(bench)
        jid = await bench.enqueue(**({"on_cancel": "attempted"} if known == "by its record" else {}))
        await bench.cancel(jid)
        before = await hooks(bench)
        kind = "another" if known == "by another kind" else KIND
        assert (await bench.begin(await bench.take(jid), kind=kind, occasion="always")).word == "stale"
        assert await hooks(bench) == before


async def test_a_kind_loses_its_hook_only_when_no_worker_has_declared_it_for_a_while(url: str) -> None:
    """During a rollout, workers with the hook and workers without it come and go side by side."""
    async with Bench(url) as bench:

        async def said() -> bytes | None:
            word: bytes | None = await bench.redis.hget(bench.a.keys(0).hooks, KIND)
            return word and word.split()[0]

        await declare(bench)
        bench.clock.advance(59)
        await declare(bench, "")
        assert await said() == b"always"
        await declare(bench, "attempted")
        assert await said() == b"attempted"
        bench.clock.advance(61)
        await declare(bench, "", kind="another")
        assert await said() == b"attempted"
        await declare(bench, "")
        assert await said() is None


# The hook as a job -----------------------------------------------------------------------------------------


async def started(bench: Bench, *, retries: int = 0, **more: int) -> tuple[str, Held]:
    """A cancelled job, and its hook in its first try."""
    held = await put_in(bench, S.RUNNING, on_cancel="always")
    await bench.a.note(held.jid, token=held.token, attempt=1, saved=b"\x01\x05")
    await bench.cancel(held.jid, cause=Cause.SCOPE, reason="enough", source="tests")
    await bench.settle(Verb.FINISH, held, observed=True)
    return held.jid, await begun(bench, held.jid, retries=retries, **more)


async def begun(bench: Bench, jid: str, **terms: int) -> Held:
    hook = await bench.take((await bench.job(jid)).hook or "", queue=HOOKS)
    assert (await bench.begin(hook, kind=HOOK, **terms)).word == "started"
    return hook


async def lines(bench: Bench, jid: str) -> list[str]:
    """What the job's history tells of its hook, without the hook's jid."""
    found = [event for event in await bench.history(jid) if event.name.startswith("hook_")]
    hook = (await bench.job(jid)).hook or "?"
    assert all(event.facts.endswith(f" ({hook})") and event.attempt == 1 for event in found)
    return [f"{event.name} {event.facts.removesuffix(f' ({hook})')}" for event in found]


async def test_a_hook_is_told_of_its_job(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, on_cancel="always")
        await bench.a.note(held.jid, token=held.token, attempt=1, saved=b"\x01\x05")
        await bench.cancel(held.jid, cause=Cause.SCOPE, reason="enough", source="tests")
        await bench.settle(Verb.FINISH, held, observed=True)
        hook = await bench.take((await bench.job(held.jid)).hook or "", queue=HOOKS)
        for token in ("one", "one"):
            answer = await bench.begin(hook, kind=HOOK, retries=3, token=token)
            told = read_clean_up(answer.payload)
            assert (told.jid, told.attempt, told.payload) == (held.jid, 1, b"\x01payload")
            assert (told.cause, told.reason, told.source) == (Cause.SCOPE, "enough", "tests")
            assert (told.ended, told.saved) == (Ended.CONFIRMED, b"\x01\x05")
            assert (answer.attempt, answer.saved, answer.retries) == (1, b"\x01\x05", 3)
        assert await lines(bench, held.jid) == ["hook_started try 1"], "a call that is sent again is told once"
        assert (await bench.events(held.jid))[-2:] == ["finalized", "hook_started"]


ENDINGS: dict[str, Callable[[Bench, Held], Awaitable[object]]] = {
    "succeeded": lambda bench, hook: bench.settle(Verb.FINISH, hook, hook="succeeded"),
    "failed: E": lambda bench, hook: bench.settle(Verb.FINISH, hook, "failed", hook="failed: E"),
    "timed_out, retried": lambda bench, hook: bench.settle(Verb.RETRY, hook, delay_s=1, hook="timed_out"),
    "handed_back": lambda bench, hook: bench.settle(Verb.RELEASE, hook, hook="handed_back"),
    "lost with a": lambda bench, hook: bench.reclaim(hook),
}


@pytest.mark.parametrize("words", ENDINGS)
async def test_how_a_hook_ends_is_told_in_the_history_of_its_job_and_changes_nothing_else(url: str, words: str) -> None:
    async with Bench(url) as bench:
        jid, hook = await started(bench, retries=1)
        before = await bench.record(jid)
        bench.clock.advance(LEASE_S)
        await ENDINGS[words](bench, hook)
        await ENDINGS[words](bench, hook)
        assert await lines(bench, jid) == ["hook_started try 1", f"hook_ended try 1: {words}"]
        assert but_history(await bench.record(jid)) == but_history(before)
        assert await bench.redis.pttl(bench.a.job_key(jid)) > 0
        logged = await bench.redis.xrange(bench.a.keys(0).events)
        told = [
            line for _, fields in logged for line in fields.values() if line.startswith(jid.encode() + b"\thook_ended")
        ]
        assert len(told) == 1


async def test_a_hook_is_tried_again_after_a_failure_and_after_a_loss(url: str) -> None:
    async with Bench(url) as bench:
        jid, hook = await started(bench, retries=1)
        await bench.settle(Verb.RETRY, hook, delay_s=1, hook="failed: E")
        bench.clock.advance(1)
        assert (await bench.dog.promote(0, HOOKS, [hook.jid]))[0] == ("promoted", "queued")
        hook = await begun(bench, jid, retries=1)
        await bench.beat()
        bench.clock.advance(LEASE_S)
        assert await bench.reclaim(hook) == ("reclaimed", "queued")
        hook = await begun(bench, jid, retries=1)
        assert await bench.settle(Verb.RETRY, hook, hook="failed: E") == ("settled", "failed")
        assert await lines(bench, jid) == [
            "hook_started try 1", "hook_ended try 1: failed: E, retried",
            "hook_started try 2", "hook_ended try 2: lost with a",
            "hook_started try 3", "hook_ended try 3: failed: E",
        ]  # fmt: skip
        assert await bench.state(jid) is S.CANCELLED


async def test_a_hook_whose_kind_nobody_knows_is_told_to_have_failed(url: str) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue(on_cancel="always")
        await bench.cancel(jid)
        hook = await bench.take((await bench.job(jid)).hook or "", queue=HOOKS)
        await bench.redis.hset(bench.a.job_key(hook.jid), "refusals", 10)
        refusal = Refusal(jid=hook.jid, entry=hook.entry, why="unknown_kind", delay_ms=1, most_ms=1, limit=10)
        assert await bench.a.refuse(0, HOOKS, [refusal]) == [("buried", "failed")]
        told = [event.facts for event in await bench.history(jid) if event.name == "hook_ended"]
        assert told == [f"try 0: failed: unknown_kind ({hook.jid})"]


async def test_a_hook_that_never_came_to_run_is_told_to_have_been_handed_back(url: str) -> None:
    async with Bench(url) as bench:
        jid, hook = await started(bench)
        refusal = Refusal(jid=hook.jid, entry=hook.entry, why="no_slot", unknown=True)
        assert await bench.a.refuse(0, HOOKS, [refusal]) == [("refused", "queued")]
        assert await lines(bench, jid) == ["hook_started try 1", "hook_ended try 1: handed_back"]


@pytest.mark.parametrize("running", [False, True])
async def test_a_hook_may_be_cancelled_by_its_jid_and_has_no_hook_itself(url: str, running: bool) -> None:
    async with Bench(url) as bench:
        await declare(bench, kind=HOOK)
        held = await put_in(bench, S.CANCELLED, on_cancel="always")
        hook = (await bench.job(held.jid)).hook or ""
        if running:
            begin = await begun(bench, held.jid)
            await bench.cancel(hook)
            assert await bench.settle(Verb.FINISH, begin, observed=True, hook="cancelled") == ("settled", "cancelled")
        else:
            await bench.cancel(hook)
        ended, tries = ("confirmed", "try 1") if running else ("before_start", "try 0")
        assert (await bench.history(held.jid))[-1].facts == f"{tries}: cancelled, {ended} ({hook})"
        assert await bench.state(hook) is S.CANCELLED
        assert await bench.entries(hook_queue(QUEUE)) == ([] if running else [(await bench.record(hook))[b"entry"]])
        assert [name for name in await bench.redis.keys("*queue:*") if name.count(b"/on_cancel") > 1] == []


@pytest.mark.parametrize("reused", [False, True])
async def test_nothing_is_told_of_a_hook_whose_job_has_no_record_any_more(url: str, reused: bool) -> None:
    async with Bench(url) as bench:
        jid, hook = await started(bench)
        await bench.redis.delete(bench.a.job_key(jid))
        if reused:
            await bench.enqueue(jid)
        before = await bench.record(jid)
        assert await bench.settle(Verb.FINISH, hook, hook="succeeded") == ("settled", "succeeded")
        assert await bench.record(jid) == before


# Its jid ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 4, 1024])
def test_a_place_that_is_the_shards_own_number_is_found_there(shards: int) -> None:
    for shard in range(shards):
        assert shard_of(f"{0:032x}.{shard:04x}", shards) == shard


async def test_a_hook_lives_in_the_shard_of_its_job(url: str) -> None:
    async with Bench(url, shards=4) as bench:
        jids = [await bench.enqueue(on_cancel="always") for _ in range(20)]
        await bench.a.cancel(jids, CancelRequest(), request="one")
        found = [(await bench.job(jid)).hook for jid in jids]
        assert len(set(found)) == 20
        for jid, hook in zip(jids, found, strict=True):
            assert check_jid(hook or "") == hook
            assert bench.a.shard_of(hook or "") == bench.a.shard_of(jid)
            assert await bench.state(hook or "") is S.QUEUED
        assert {bench.a.shard_of(jid) for jid in jids} == set(range(4))


async def test_a_hook_takes_no_jid_that_is_in_use(url: str) -> None:
    async with Bench(url) as bench:
        wanted = f"{bench.clock.stamp_ms():012x}{1:020x}.0000"
        await bench.enqueue(wanted)
        before = await bench.record(wanted)
        jid = await bench.enqueue(on_cancel="always")
        await bench.cancel(jid)
        hook = await hook_of(bench, jid)
        assert hook.jid == f"{bench.clock.stamp_ms():012x}{2:020x}.0000"
        assert await bench.record(wanted) == before
