"""
Parents and children, shown in the store's verbs alone: counting, waiting, finalizers, and cancels that go down.

A parent is over when its last child is. `CHILD` stands scheduled until a test does something with it.
"""

from __future__ import annotations

import pytest

from busq.protocol.cancel import Ended, Verdict
from busq.protocol.states import State, Verb
from busq.protocol.tree import DEEPEST
from busq.store import suspects
from busq.store.forms import NewJob, Refusal
from busq.store.reader import Reader
from tests.store.bench import CHILD_DELAY_S, DEADLINE_S, LEASE_S, QUEUE, Bench, Held, put_in

S, V = State, Verb
DELAYED = {"delay_s": CHILD_DELAY_S}


async def _parent(bench: Bench, *children: str, **fields: str) -> Held:
    """A running job with these children, all queued."""
    parent = await bench.run(**fields)
    for jid in children:
        assert (await bench.spawn(parent, jid))[0] == "enqueued"
    return parent


async def _children(bench: Bench, jid: str) -> list[str]:
    return [child.decode() for child in await bench.redis.zrange(bench.a.keys(0).children(jid), 0, -1)]


async def _end(bench: Bench, jid: str, outcome: str = "succeeded") -> None:
    """One attempt of a queued job, that finishes so; or a cancel."""
    if outcome == "cancelled":
        await bench.cancel(jid, reason="no more", source="api")
        return
    held = await _begun(bench, jid)
    await bench.settle(V.FINISH, held, outcome, error=b"\x01error" if outcome == "failed" else b"")


async def _begun(bench: Bench, jid: str) -> Held:
    """An attempt of a queued job, whatever its kind; its entry may have been read by `a` before."""
    record = await bench.record(jid)
    await bench.read()
    held = Held(jid, record[b"entry"])
    assert (await bench.begin(held, kind=record[b"kind"].decode())).word == "started"
    return held


# Counting and waiting ---------------------------------------------------------------------------------------


async def test_a_parent_counts_its_children_and_those_that_are_open(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "one", "two", "three")
        job = await bench.job(parent.jid)
        assert (job.children, job.open_children) == (3, 3)
        assert await _children(bench, parent.jid) == ["one", "two", "three"]
        child = await bench.job("two")
        assert (child.parent, child.depth, child.on_parent_cancel) == (parent.jid, 1, "cancel")
        await _end(bench, "one")
        await _end(bench, "two", "failed")
        await _end(bench, "three", "cancelled")
        job = await bench.job(parent.jid)
        assert (job.state, job.children, job.open_children, job.failed_children) == (S.RUNNING, 3, 0, 1)
        assert await _children(bench, parent.jid) == []


async def test_a_child_that_is_sent_again_is_counted_once(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        for _ in range(2):
            assert (await bench.spawn(parent, "child", call="one"))[0] == "enqueued"
        assert (await bench.job(parent.jid)).children == 1


async def test_a_parent_that_returns_waits_for_its_children_and_holds_nothing(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "child")

        assert await bench.settle(V.FINISH, parent, result=b"\x01result") == ("settled", "waiting")
        assert await bench.settle(V.FINISH, parent, result=b"\x01result") == ("settled", "waiting")
        job = await bench.job(parent.jid)
        assert (job.state, job.finished_at) == (S.WAITING, None)
        assert await bench.redis.pttl(bench.a.job_key(parent.jid)) == -1
        assert parent.entry not in await bench.entries()
        assert await bench.redis.zrange(bench.a.keys(0).waiting, 0, -1) == [parent.jid.encode()]
        assert (await bench.beat(held=[parent]))[0].word == "stale"
        await _end(bench, "child")
        record = await bench.record(parent.jid)
        assert (record[b"state"], record[b"result"]) == (b"succeeded", b"\x01result")
        assert await bench.redis.zcard(bench.a.keys(0).waiting) == 0
        assert await bench.redis.pttl(bench.a.job_key(parent.jid)) > 0
        assert (await bench.events(parent.jid))[-2:] == ["waiting", "finalized"]


async def test_a_parent_whose_children_have_all_ended_does_not_wait(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "one", "two")
        await _end(bench, "one")
        await _end(bench, "two", "failed")
        assert await bench.settle(V.FINISH, parent) == ("settled", "succeeded")
        assert await bench.redis.zcard(bench.a.keys(0).waiting) == 0


async def test_a_parent_that_fails_does_not_wait_and_its_children_go_on(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "child")
        assert await bench.settle(V.FINISH, parent, "failed", cause="error") == ("settled", "failed")
        await _end(bench, "child")
        assert (await bench.state(parent.jid), await bench.state("child")) == (S.FAILED, S.SUCCEEDED)
        assert await _children(bench, parent.jid) == []


async def test_a_child_whose_parent_has_no_record_any_more_leaves_nothing_behind(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "child")
        await bench.settle(V.FINISH, parent, "failed", cause="error")
        await bench.redis.delete(bench.a.job_key(parent.jid))
        await _end(bench, "child", "failed")
        assert await bench.redis.exists(bench.a.job_key(parent.jid), bench.a.keys(0).children(parent.jid)) == 0


async def test_only_the_first_hundred_failed_children_are_named(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run(retries=0)
        jobs = [NewJob(f"child-{n}", "k", QUEUE, b"p", fields=("parent", parent.jid)) for n in range(103)]
        await bench.a.enqueue(jobs, call="many")
        for entry in await bench.read():
            held = Held(entry.jid, entry.id)
            await bench.begin(held)
            await bench.settle(V.FINISH, held, "failed")
        record = await bench.record(parent.jid)
        assert record[b"failed_kids"].split() == [b"child-%d" % n for n in range(100)]
        assert record[b"kids_failed"] == b"103"


@pytest.mark.parametrize("state", [S.SCHEDULED, S.QUEUED, S.RUNNING, S.WAITING])
async def test_any_live_job_may_be_given_children(url: str, state: State) -> None:
    async with Bench(url) as bench:
        parent = await put_in(bench, state)
        assert await bench.admit("late", parent=parent.jid) == ("enqueued", S.QUEUED)
        assert await _children(bench, parent.jid) == [*(await _children(bench, parent.jid))[:-1], "late"]


@pytest.mark.parametrize("state", [None, S.CANCELLING, S.SUCCEEDED, S.FAILED, S.CANCELLED])
async def test_a_job_that_has_ended_or_was_asked_to_stop_gains_no_children(url: str, state: State | None) -> None:
    async with Bench(url) as bench:
        parent = await put_in(bench, state)
        before = await bench.snapshot()
        assert await bench.admit("child", parent=parent.jid) == ("orphan", state)
        assert await bench.snapshot() == before


async def test_a_job_under_one_that_was_asked_to_stop_gains_no_children(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "child")
        child = await _begun(bench, "child")
        await bench.cancel(parent.jid)
        assert await bench.spawn(child, "grandchild") == ("orphan", "cancelling", "parent")


async def test_a_parent_whose_finalizer_was_admitted_gains_no_children(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        assert await bench.settle(V.FINISH, parent, finalizer=True) == ("settled", "waiting")
        assert await bench.admit("child", parent=parent.jid) == ("orphan", S.WAITING)


async def test_a_tree_is_only_so_deep(url: str) -> None:
    async with Bench(url) as bench:
        assert await bench.admit("root") == ("enqueued", S.QUEUED)
        parent = "root"
        for depth in range(1, DEEPEST + 1):
            assert await bench.admit(f"job-{depth}", parent=parent) == ("enqueued", S.QUEUED)
            parent = f"job-{depth}"
        before = await bench.snapshot()
        assert await bench.admit("one-more", parent=parent) == ("too_deep", S.QUEUED)
        assert await bench.snapshot() == before


# How a waiting parent ends ----------------------------------------------------------------------------------


async def test_a_cancelled_child_leaves_its_siblings_running_and_its_parent_is_cancelled_in_the_end(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "one", "two", on_cancel="always")
        await bench.settle(V.FINISH, parent, result=b"\x01result", finalizer=True)
        await _end(bench, "one", "cancelled")
        assert (await bench.state(parent.jid), await bench.state("two")) == (S.WAITING, S.QUEUED)
        await _end(bench, "two")
        job = await bench.job(parent.jid)
        assert (job.state, job.cause, job.source, job.ended) == (S.CANCELLED, "user", "api", Ended.BEFORE_START)
        assert job.reason == "its child one was cancelled: no more"
        assert job.hook is not None
        record = await bench.record(parent.jid)
        assert b"final" not in record
        assert (record.get(b"result"), record[b"evidence_result"]) == (None, b"\x01result")


async def test_a_child_that_was_cancelled_while_its_parent_ran_counts_as_well(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "one")
        await _end(bench, "one", "cancelled")
        assert await bench.settle(V.FINISH, parent, finalizer=True) == ("settled", "cancelled")
        assert parent.entry not in await bench.entries()


async def test_a_finalizer_is_admitted_when_the_last_child_has_ended_and_the_parent_ends_with_it(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "one", "two", group="g", tags='{"t":"x"}')
        await bench.a.note(parent.jid, token=parent.token, attempt=1, saved=b"\x01saved")
        await bench.settle(V.FINISH, parent, result=b"\x01result", finalizer=True)
        await _end(bench, "one", "failed")
        assert b"final" not in await bench.record(parent.jid)
        await _end(bench, "two")
        assert await bench.state(parent.jid) is S.WAITING
        jid = (await bench.record(parent.jid))[b"final"].decode()
        final = await bench.job(jid)
        assert (final.kind, final.queue, final.group, final.tags) == ("k/finalize", QUEUE, "g", {"t": "x"})
        assert (final.finalize_of, final.parent, final.depth) == (parent.jid, parent.jid, 1)
        job = await bench.job(parent.jid)
        assert (job.children, job.open_children, job.failed_children) == (2, 1, 1)
        await bench.read()
        held = Held(jid, (await bench.record(jid))[b"entry"])
        answer = await bench.begin(held, kind="k/finalize")
        for fact in (b"\x01payload", parent.jid.encode(), b"one", b"\x01result", b"\x01saved"):
            assert fact in answer.payload
        await bench.settle(V.FINISH, held)
        record = await bench.record(parent.jid)
        assert (record[b"state"], record[b"result"]) == (b"succeeded", b"\x01result")


async def test_a_finalizer_runs_without_children_too(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        assert await bench.settle(V.FINISH, parent, finalizer=True) == ("settled", "waiting")
        await _end(bench, (await bench.record(parent.jid))[b"final"].decode())
        assert await bench.state(parent.jid) is S.SUCCEEDED


async def test_a_finalizer_that_fails_fails_its_parent(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.settle(V.FINISH, parent, result=b"\x01result", finalizer=True)
        await _end(bench, (await bench.record(parent.jid))[b"final"].decode(), "failed")
        record = await bench.record(parent.jid)
        assert (record[b"state"], record.get(b"cause"), record.get(b"error")) == (b"failed", b"finalize", b"\x01error")
        assert (record.get(b"result"), record[b"evidence_result"]) == (None, b"\x01result")
        assert record.get(b"kids_failed") is None, "it is none of the children"


async def test_a_finalizer_that_is_cancelled_leaves_its_parent_cancelled(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.settle(V.FINISH, parent, finalizer=True)
        await _end(bench, (await bench.record(parent.jid))[b"final"].decode(), "cancelled")
        job = await bench.job(parent.jid)
        assert (job.state, job.cause, job.source) == (S.CANCELLED, "user", "api")


async def test_a_waiting_parent_is_judged_before_it_ends(url: str) -> None:
    """A rule had been decided for it, and its child, which goes on whatever becomes of it, ends before any walk."""
    async with Bench(url) as bench:
        parent = await bench.run(group="g")
        await bench.enqueue("child", parent=parent.jid, policy="wait")
        await bench.settle(V.FINISH, parent)
        scope = await bench.decide(group="g")
        await _end(bench, "child")
        job = await bench.job(parent.jid)
        assert (job.state, job.cause, job.scope) == (S.CANCELLED, "scope", scope)
        look = await bench.look(scope)
        assert (look.counts["signalled"], look.unfinished) == (1, 0)


async def test_a_waiting_parent_under_a_cancelled_job_does_not_end_in_success(url: str) -> None:
    async with Bench(url) as bench:
        root = await _parent(bench, "parent")
        parent = await _begun(bench, "parent")
        await bench.enqueue("child", parent="parent", policy="wait")
        await bench.settle(V.FINISH, parent)
        await bench.cancel(root.jid)
        await _end(bench, "child")
        job = await bench.job("parent")
        assert (job.state, job.cause) == (S.CANCELLED, "parent")


@pytest.mark.parametrize("depth", [50])
async def test_a_deep_chain_closes_when_its_last_job_ends(url: str, depth: int) -> None:
    async with Bench(url) as bench:
        held = await bench.run(await bench.enqueue("job-0"))
        for n in range(1, depth):
            await bench.spawn(held, f"job-{n}")
            await bench.settle(V.FINISH, held)
            held = await _begun(bench, f"job-{n}")
        assert {await bench.state(f"job-{n}") for n in range(depth - 1)} == {S.WAITING}
        assert await bench.settle(V.FINISH, held) == ("settled", "succeeded")
        assert {await bench.state(f"job-{n}") for n in range(depth)} == {S.SUCCEEDED}
        assert await bench.redis.zcard(bench.a.keys(0).waiting) == 0


@pytest.mark.parametrize("how", ["fenced", "tombstoned"])
async def test_a_child_that_is_born_cancelled_is_never_open_and_counts_as_a_cancelled_one(url: str, how: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        if how == "fenced":
            await bench.decide(jid_prefix="child", how={"standing": True})
        else:
            await bench.cancel("child", tombstone_s=60)
        assert (await bench.spawn(parent, "child"))[:2] == (how, "cancelled")
        job = await bench.job(parent.jid)
        assert (job.children, job.open_children) == (1, 0)
        assert await _children(bench, parent.jid) == []
        assert await bench.settle(V.FINISH, parent) == ("settled", "cancelled")


# A parent is cancelled --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", ["finish", "retry", "release", "reclaim"])
async def test_a_cancelled_parent_ends_when_its_attempt_and_its_children_have(url: str, attempt: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, on_cancel="always")
        await bench.enqueue("child", parent=parent.jid, policy="wait")
        await bench.cancel(parent.jid)
        if attempt == "reclaim":
            bench.clock.advance(LEASE_S)
            assert await bench.reclaim(parent, gone=True) == ("ended", "cancelling")
            ended = Ended.KILLED
        else:
            assert await bench.settle(V(attempt), parent, observed=True) == ("settled", "cancelling")
            assert await bench.settle(V(attempt), parent, observed=True) == ("settled", "cancelling")
            ended = Ended.CONFIRMED
        assert parent.entry not in await bench.entries()
        assert b"entry" not in await bench.record(parent.jid)
        assert (await bench.job(parent.jid)).hook is None
        assert (await bench.reclaim(parent, gone=True))[1] == "cancelling"
        await _end(bench, "child")
        job = await bench.job(parent.jid)
        assert (job.state, job.ended) == (S.CANCELLED, ended)
        assert job.hook is not None
        assert not await bench.is_marked(parent.jid)
        assert await bench.redis.zcard(bench.a.keys(0).deadlines) == 0
        assert (await bench.events(parent.jid)).count("waiting") == 1


async def test_a_parent_whose_children_have_ended_is_cancelled_with_its_attempt(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "child")
        await bench.cancel(parent.jid)
        await bench.pass_on()
        assert await bench.state(parent.jid) is S.CANCELLING, "its own attempt is still running"
        assert await bench.settle(V.FINISH, parent) == ("settled", "cancelled")


async def test_a_start_that_is_sent_again_after_a_cancel_parks_its_job_once(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.enqueue("child", parent=parent.jid, policy="wait")
        await bench.cancel(parent.jid)
        for _ in range(2):
            answer = await bench.begin(parent, token=parent.token)
            assert (answer.word, answer.detail) == ("stale", "cancelling")
        assert (await bench.events(parent.jid)).count("waiting") == 1
        await _end(bench, "child")
        assert (await bench.job(parent.jid)).ended is Ended.BEFORE_START


async def test_an_attempt_with_children_that_never_came_to_run_is_parked_when_it_is_given_back(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.enqueue("child", parent=parent.jid, policy="wait")
        await bench.cancel(parent.jid)
        refusal = Refusal(jid=parent.jid, entry=parent.entry, why="lost_reply", unknown=True)
        assert await bench.a.refuse(0, QUEUE, [refusal]) == [("stale", "cancelling")]
        await _end(bench, "child")
        assert (await bench.job(parent.jid)).ended is Ended.BEFORE_START


@pytest.mark.parametrize(("gone", "ended"), [(True, Ended.COMPLETED), (False, Ended.COMPLETED)])
async def test_at_its_deadline_a_parked_parent_ends_as_its_own_attempt_did(url: str, gone: bool, ended: Ended) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.enqueue("child", parent=parent.jid, policy="wait")
        await bench.cancel(parent.jid)
        await bench.settle(V.FINISH, parent)
        bench.clock.advance(DEADLINE_S)
        assert await bench.finalize(parent.jid, gone=gone) == ("finalized", "cancelled")
        assert (await bench.job(parent.jid)).ended is ended
        assert await bench.redis.zcard(bench.a.keys(0).suspects) == 0
        await _end(bench, "child")
        assert (await bench.state(parent.jid), await bench.state("child")) == (S.CANCELLED, S.SUCCEEDED)
        assert await _children(bench, parent.jid) == []


async def test_a_waiting_parent_that_is_cancelled_ends_before_start_when_its_children_have(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "one", "two")
        await bench.settle(V.FINISH, parent, result=b"\x01result")
        assert (await bench.cancel(parent.jid)).verdict is Verdict.SIGNALLED
        assert await bench.pass_on(step=1) == 2
        job = await bench.job(parent.jid)
        assert (job.state, job.ended) == (S.CANCELLED, Ended.BEFORE_START)
        record = await bench.record(parent.jid)
        assert (record.get(b"result"), record[b"evidence_result"]) == (None, b"\x01result")


@pytest.mark.parametrize("ended", ["before the cancel", "after the cancel"])
async def test_a_cancelled_parent_without_an_attempt_is_counted_as_cancelling_and_as_nothing_else(
    url: str, ended: str
) -> None:
    async with Bench(url) as bench:
        await bench.run()
        parent = await _parent(bench, "child")
        if ended == "before the cancel":
            await bench.settle(V.FINISH, parent)
            await bench.cancel(parent.jid)
        else:
            await bench.cancel(parent.jid)
            await bench.settle(V.FINISH, parent)
        now = (await Reader(bench.a).stats()).now
        live = {state: now[state] for state in (S.QUEUED, S.RUNNING, S.WAITING, S.CANCELLING)}
        assert live == {S.QUEUED: 1, S.RUNNING: 1, S.WAITING: 0, S.CANCELLING: 1}
        assert await bench.pass_on() == 1
        now = (await Reader(bench.a).stats()).now
        assert (now[S.RUNNING], now[S.WAITING], now[S.CANCELLING], now[S.CANCELLED]) == (1, 0, 0, 2)


async def test_children_of_a_cancelled_parent_are_listed_as_cancelled_before_they_are_told(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "child")
        await bench.cancel(parent.jid, reason="no more")
        reader = Reader(bench.a)
        assert await reader.jobs(states=[S.QUEUED]) == []
        assert [(job.jid, job.cause) for job in await reader.jobs(states=[S.CANCELLED])] == [("child", "parent")]


async def test_a_finalizer_goes_with_its_parent(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.settle(V.FINISH, parent, finalizer=True)
        await bench.cancel(parent.jid, reason="no more")
        assert await bench.pass_on() == 1
        final = await bench.job((await bench.record(parent.jid))[b"final"].decode())
        assert (final.state, final.cause, final.reason) == (S.CANCELLED, "parent", "no more")
        assert (await bench.job(parent.jid)).cause == "user"
        assert await bench.state(parent.jid) is S.CANCELLED


# Going down -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["", "wait", "abandon"])
async def test_what_becomes_of_a_child_is_what_was_said_of_it(url: str, policy: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.enqueue("child", parent=parent.jid, **({"policy": policy} if policy else {}))
        await bench.enqueue("grandchild", parent="child", **DELAYED)
        await bench.cancel(parent.jid)
        await bench.pass_on()
        stopped = policy == ""
        assert await bench.state("child") is (S.CANCELLED if stopped else S.QUEUED)
        assert await bench.state("grandchild") is (S.CANCELLED if stopped else S.SCHEDULED)
        assert (await bench.job(parent.jid)).open_children == (policy == "wait")
        expected = "cancelling" if policy == "wait" else "cancelled"
        assert await bench.settle(V.FINISH, parent) == ("settled", expected)
        if not stopped:
            await _end(bench, "child")  # it waits for its own child, which nobody has cancelled
            assert await bench.state("child") is S.WAITING
            await bench.cancel("grandchild")
        assert await bench.state(parent.jid) is S.CANCELLED
        assert (await bench.job(parent.jid)).open_children == 0


async def test_a_parent_that_waits_for_abandoned_children_alone_ends_when_they_are(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.enqueue("child", parent=parent.jid, policy="abandon")
        await bench.settle(V.FINISH, parent)
        await bench.cancel(parent.jid)
        assert await bench.state(parent.jid) is S.CANCELLING
        await bench.pass_on()
        assert (await bench.job(parent.jid)).ended is Ended.BEFORE_START
        await _end(bench, "child")
        assert (await bench.state(parent.jid), await bench.state("child")) == (S.CANCELLED, S.SUCCEEDED)
        assert (await bench.job(parent.jid)).open_children == 0


async def test_an_abandoned_child_is_not_waited_for_while_the_attempt_runs_either(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.enqueue("child", parent=parent.jid, policy="abandon")
        await bench.cancel(parent.jid)
        await bench.pass_on()
        assert await bench.state(parent.jid) is S.CANCELLING
        assert await bench.settle(V.FINISH, parent) == ("settled", "cancelled")


@pytest.mark.parametrize("touch", ["start", "promote", "renew", "finish", "cascade"])
async def test_whoever_touches_a_descendant_carries_out_first_that_it_is_cancelled(url: str, touch: str) -> None:
    """Two generations below, and nobody has touched the one in between."""
    async with Bench(url) as bench:
        root = await _parent(bench, "child")
        delay = {"delay_s": 1} if touch == "promote" else {}
        await bench.enqueue("grandchild", parent="child", **delay)
        running = await _begun(bench, "grandchild") if touch in ("renew", "finish") else None
        await bench.cancel(root.jid, reason="no more", source="api")
        assert await bench.state("grandchild") is not S.CANCELLED
        if running is not None and touch == "renew":
            answer = (await bench.beat(held=[running]))[0]
            assert (answer.cause, answer.reason, answer.source) == ("parent", "no more", "api")
        elif running is not None:
            assert await bench.settle(V.FINISH, running) == ("settled", "cancelled")
        elif touch == "promote":
            bench.clock.advance(1)
            assert await bench.promote("grandchild") == ("stale", "cancelled")
        elif touch == "start":
            assert (await bench.begin(await bench.take("grandchild"))).word == "stale"
        else:
            assert await bench.pass_on() == 2
        job = await bench.job("grandchild")
        assert job.state is (S.CANCELLING if touch == "renew" else S.CANCELLED)
        assert (job.cause, job.reason, job.source) == ("parent", "no more", "api")
        facts = [event.facts for event in await bench.history("grandchild") if event.name == "requested"]
        assert facts == ["parent child: no more"]


async def test_a_failed_job_in_between_hands_the_cancel_on(url: str) -> None:
    async with Bench(url) as bench:
        root = await _parent(bench, "child")
        child = await _begun(bench, "child")
        await bench.spawn(child, "grandchild")
        await bench.settle(V.FINISH, child, "failed")
        await bench.spawn(root, "other")
        await bench.cancel(root.jid)
        assert (await bench.begin(await bench.take("grandchild"))).word == "stale"


async def test_a_rule_for_the_root_reaches_the_whole_tree(url: str) -> None:
    async with Bench(url) as bench:
        root = await _parent(bench, "child", group="g")
        await bench.enqueue("grandchild", parent="child", **DELAYED)
        scope = await bench.decide(group="g")
        await bench.walk()
        await bench.pass_on()
        assert [(await bench.job(jid)).cause for jid in (root.jid, "child", "grandchild")] == [
            "scope",
            "parent",
            "parent",
        ]
        assert (await bench.look(scope)).counts == {"cancelled": 0, "signalled": 1}


async def test_descendants_are_those_below_and_not_the_job_itself(url: str) -> None:
    async with Bench(url) as bench:
        root = await _parent(bench, "child")
        await bench.enqueue("grandchild", parent="child")
        await bench.enqueue("stranger")
        await bench.decide(descendants_of=root.jid)
        assert await bench.walk() == 2
        assert [await bench.state(jid) for jid in (root.jid, "child", "grandchild", "stranger")] == [
            S.RUNNING,
            S.CANCELLED,
            S.CANCELLED,
            S.QUEUED,
        ]
        assert [(await bench.job(jid)).cause for jid in ("child", "grandchild")] == ["scope", "scope"]


@pytest.mark.parametrize("state", [S.SCHEDULED, S.QUEUED])
async def test_a_parent_that_never_ran_takes_its_children_with_it(url: str, state: State) -> None:
    async with Bench(url) as bench:
        parent = await put_in(bench, state)
        await bench.enqueue("child", parent=parent.jid, **DELAYED)
        assert (await bench.cancel(parent.jid)).verdict is Verdict.CANCELLED
        assert await bench.pass_on() == 1
        assert await bench.state("child") is S.CANCELLED


async def test_a_parent_that_a_start_finds_expired_takes_its_children_with_it(url: str) -> None:
    async with Bench(url) as bench:
        parent = await put_in(bench, S.QUEUED, expires=1000)
        await bench.enqueue("child", parent=parent.jid, **DELAYED)
        bench.clock.advance(1)
        assert (await bench.begin(parent)).word == "stale"
        assert await bench.pass_on() == 1
        assert await bench.state("child") is S.CANCELLED


@pytest.mark.parametrize("step", [100, 1000])
async def test_a_thousand_children_are_told_in_bounded_steps_by_any_watchdog(url: str, step: int) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        jobs = [NewJob(f"child-{n}", "k", QUEUE, b"p", fields=("parent", parent.jid)) for n in range(1000)]
        await bench.a.enqueue(jobs, call="many")
        await bench.cancel(parent.jid)
        hits = []
        stores = [bench.a, bench.b, bench.dog]
        while (answer := await stores[len(hits) % 3].cascade(0, step=step))[0] != "idle":
            hits.append(answer[1])
        assert hits == [step] * (1000 // step) + [0]
        job = await bench.job(parent.jid)
        assert (job.open_children, job.children) == (0, 1000)
        assert await bench.redis.exists(bench.a.keys(0).children(parent.jid), bench.a.keys(0).cascades) == 0


async def test_every_descendant_has_its_hook(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run(on_cancel="always")
        for jid in ("one", "two"):
            await bench.enqueue(jid, parent=parent.jid, on_cancel="always")
        await bench.enqueue("grandchild", parent="one", on_cancel="always")
        await bench.cancel(parent.jid)
        await bench.pass_on()
        await bench.settle(V.FINISH, parent)
        hooks = {(await bench.job(jid)).hook for jid in (parent.jid, "one", "two", "grandchild")}
        assert None not in hooks
        assert len(hooks) == len(await bench.entries(f"{QUEUE}/on_cancel")) == 4


async def test_workers_are_told_that_a_job_with_children_is_asked_to_stop(url: str) -> None:
    async with Bench(url) as bench, bench.redis.pubsub() as listening:
        parent, single = await _parent(bench, "child"), await put_in(bench, S.RUNNING)
        await listening.subscribe(bench.a.rules_channel)
        assert (await listening.get_message(timeout=10))["type"] == "subscribe"
        await bench.cancel(single.jid)
        await bench.redis.publish(bench.a.rules_channel, "nothing before")
        await bench.cancel(parent.jid)
        heard = [(await listening.get_message(timeout=10))["data"] for _ in range(2)]
        assert heard == [b"nothing before", b"tree"]


async def test_a_cascade_of_a_parent_that_has_no_record_any_more_leaves_nothing_behind(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.enqueue("child", parent=parent.jid)
        await bench.cancel(parent.jid)
        await bench.redis.delete(bench.a.job_key(parent.jid))
        assert await bench.pass_on() == 0
        assert await bench.redis.exists(bench.a.job_key(parent.jid), bench.a.keys(0).cascades) == 0
        await _end(bench, "child")
        assert await bench.state("child") is S.SUCCEEDED
        assert await _children(bench, parent.jid) == []


async def test_a_cause_that_came_down_from_above_stands_before_a_later_rule(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        child = await bench.enqueue(parent=parent.jid, group="g")
        await bench.cancel(parent.jid)
        bench.clock.advance(0.5)
        scope = await bench.decide(group="g")
        await bench.walk()
        assert ((await bench.job(child)).cause, (await bench.look(scope)).counts["cancelled"]) == ("parent", 0)


@pytest.mark.parametrize("state", [S.RUNNING, S.SCHEDULED])
async def test_a_cause_from_above_stands_as_of_its_decision_however_late_that_is_carried_out(
    url: str, state: State
) -> None:
    async with Bench(url) as bench:
        parent = await put_in(bench, state)
        child = await bench.enqueue(parent=parent.jid, **DELAYED)
        await bench.decide(jid_prefix=parent.jid)
        bench.clock.advance(1)
        await bench.decide(jid_prefix=child)
        bench.clock.advance(1)
        for _ in range(2):
            ((cause, *_),) = [look.wish or () for look in await bench.a.look(0, [child])]
            assert cause == "parent"
            await bench.expire(parent.jid)  # whoever touches it carries out what was decided for it


async def test_a_failed_job_that_hands_a_cancel_on_stays_failed(url: str) -> None:
    async with Bench(url) as bench:
        root = await _parent(bench, "child")
        child = await _begun(bench, "child")
        await bench.settle(V.FINISH, child, "failed")
        await bench.cancel(root.jid)
        assert (await bench.cancel("child")).verdict is Verdict.ALREADY_FINISHED
        assert await bench.state("child") is S.FAILED


async def test_a_job_below_one_that_was_cancelled_at_once_does_not_start(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.enqueue()
        await bench.enqueue("child", parent=parent)
        await bench.cancel(parent)
        assert (await bench.begin(await bench.take("child"))).word == "stale"


async def test_a_parked_parent_waits_although_its_children_have_been_told(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "child")
        await _begun(bench, "child")
        await bench.cancel(parent.jid)
        await bench.settle(V.FINISH, parent)
        assert await bench.pass_on() == 1
        assert await bench.state(parent.jid) is S.CANCELLING


async def test_a_job_that_takes_the_jid_of_one_long_gone_is_not_the_parent_of_its_children(url: str) -> None:
    """The record of a failed parent has expired while a child of it is open."""
    async with Bench(url) as bench:
        old = await _parent(bench, "child")
        await bench.settle(V.FINISH, old, "failed")
        await bench.redis.delete(bench.a.job_key(old.jid))

        new = await bench.run(await bench.enqueue(old.jid))
        await bench.spawn(new, "own")
        await bench.settle(V.FINISH, new)
        await _end(bench, "child", "failed")
        job = await bench.job(new.jid)
        assert (job.state, job.open_children, job.failed_children) == (S.WAITING, 1, 0)
        await _end(bench, "own")
        assert await bench.state(new.jid) is S.SUCCEEDED


async def test_a_job_that_takes_the_jid_of_one_long_gone_does_not_cancel_its_children(url: str) -> None:
    async with Bench(url) as bench:
        old = await _parent(bench, "child")
        await bench.settle(V.FINISH, old, "failed")
        await bench.redis.delete(bench.a.job_key(old.jid))
        new = await bench.run(await bench.enqueue(old.jid))
        await bench.spawn(new, "own")
        await bench.cancel(new.jid)
        assert await bench.pass_on() == 1
        assert await bench.state("own") is S.CANCELLED
        await _begun(bench, "child")


async def test_the_code_of_a_parked_parent_that_has_ended_meanwhile_is_no_suspect_again(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench)
        await bench.enqueue("child", parent=parent.jid, policy="wait")
        await bench.cancel(parent.jid)
        await bench.settle(V.FINISH, parent, stopped=False)
        assert await suspects.clear_attempt(bench.a, parent.jid, 1) == 1
        bench.clock.advance(DEADLINE_S)
        assert await bench.finalize(parent.jid) == ("finalized", "cancelled")
        assert (await bench.job(parent.jid)).ended is Ended.ABANDONED
        assert await suspects.listed(bench.a, 0) == []


@pytest.mark.parametrize("verb", [V.FINISH, V.RETRY, V.RELEASE])
async def test_the_worker_of_a_parked_parent_that_a_watchdog_has_taken_over_is_told_so(url: str, verb: Verb) -> None:
    """However often it asks; and it leaves one line of each time, as anybody does who comes second."""
    async with Bench(url) as bench:
        parent = await _parent(bench)
        await bench.enqueue("child", parent=parent.jid, policy="wait")
        await bench.cancel(parent.jid)
        assert await bench.reclaim(parent) == ("ended", "cancelling")
        assert await bench.settle(verb, parent, observed=True) == ("stale", "cancelling")
        await _end(bench, "child")
        assert await bench.settle(verb, parent, observed=True) == ("stale", "cancelled")
        assert (await bench.events(parent.jid)).count("late_result") == 2
        assert (await bench.job(parent.jid)).ended is Ended.ABANDONED


async def test_a_waiting_parent_that_is_asked_to_stop_does_not_count_as_waiting(url: str) -> None:
    async with Bench(url) as bench:
        parent = await _parent(bench, "child")
        await bench.settle(V.FINISH, parent)
        await bench.cancel(parent.jid)
        now = (await Reader(bench.a).stats()).now
        assert (now["waiting"], now["cancelling"]) == (0, 1)


async def test_a_cancel_goes_down_past_a_failed_job(url: str) -> None:
    """Nobody touches what is queued below it: the cascade has to find it."""
    async with Bench(url) as bench:
        root = await _parent(bench, "failed", "sibling")
        between = await _begun(bench, "failed")
        await bench.spawn(between, "below")
        await bench.enqueue("on-its-own", parent=between.jid, policy="wait")
        await bench.spawn(await _begun(bench, "below"), "far-below")
        await bench.settle(V.FINISH, between, "failed")
        await bench.cancel(root.jid)
        await bench.pass_on()
        assert [await bench.state(jid) for jid in ("below", "far-below", "sibling")] == [
            S.CANCELLING, S.CANCELLED, S.CANCELLED
        ]  # fmt: skip
        assert await bench.state("on-its-own") is S.QUEUED
        assert await bench.state("failed") is S.FAILED
        assert await bench.redis.zcard(bench.a.keys(0).cascades) == 0


async def test_a_cancel_goes_down_past_a_failed_job_that_was_the_last_child(url: str) -> None:
    async with Bench(url) as bench:
        root = await _parent(bench, "failed")
        between = await _begun(bench, "failed")
        await bench.spawn(between, "below")
        await bench.settle(V.FINISH, between, "failed")
        await bench.settle(V.RELEASE, root)  # queued again, with no open child of its own
        assert (await bench.cancel(root.jid)).verdict is Verdict.CANCELLED
        assert await bench.pass_on() == 1
        assert await bench.state("below") is S.CANCELLED


async def test_many_failed_jobs_are_passed_in_bounded_steps(url: str) -> None:
    async with Bench(url) as bench:
        root = await _parent(bench, *(f"failed-{n}" for n in range(5)))
        for n in range(5):
            between = await _begun(bench, f"failed-{n}")
            await bench.spawn(between, f"below-{n}")
            await bench.settle(V.FINISH, between, "failed")
        await bench.cancel(root.jid)
        assert await bench.pass_on(step=2) == 5


async def test_what_is_remembered_of_a_failed_job_has_an_expiry(url: str) -> None:
    async with Bench(url) as bench:
        root = await _parent(bench, "failed")
        between = await _begun(bench, "failed")
        await bench.spawn(between, "below")
        await bench.settle(V.FINISH, between, "failed")
        assert await bench.redis.pttl(bench.a.keys(0).fallen(root.jid)) > 0
        await bench.cancel(root.jid)
        await bench.pass_on()
        assert await bench.redis.exists(bench.a.keys(0).fallen(root.jid)) == 0


async def test_a_job_that_takes_the_jid_of_one_long_gone_does_not_abandon_its_children(url: str) -> None:
    async with Bench(url) as bench:
        old = await bench.run()
        await bench.enqueue("child", parent=old.jid, policy="abandon")
        await bench.settle(V.FINISH, old, "failed")
        await bench.redis.delete(bench.a.job_key(old.jid))
        new = await bench.run(await bench.enqueue(old.jid))
        await bench.enqueue("own", parent=new.jid, policy="wait")
        await bench.cancel(new.jid)
        await bench.settle(V.FINISH, new)
        await bench.pass_on()
        job = await bench.job(new.jid)
        assert (job.state, job.open_children) == (S.CANCELLING, 1)
