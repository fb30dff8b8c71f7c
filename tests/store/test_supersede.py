"""
Keys, shown in the store's verbs alone: the newest job of a key is the only one that is not asked to stop.
"""

from __future__ import annotations

import pytest

from busq.protocol.cancel import Ended
from busq.protocol.states import State, Verb, is_terminal
from busq.store.forms import NewJob
from tests.store.bench import Bench, put_in

S, V = State, Verb
KEY = {"key": "report:7"}


async def _newest(bench: Bench) -> str | None:
    newest = await bench.redis.hget(bench.a.keys(0).keyed, "report:7")
    return newest.decode() if newest else None


@pytest.mark.parametrize("state", [S.SCHEDULED, S.QUEUED, S.RUNNING, S.WAITING])
async def test_a_newer_job_of_a_key_has_the_older_one_cancelled(url: str, state: State) -> None:
    async with Bench(url) as bench:
        old = await put_in(bench, state, **KEY)
        assert await bench.admit("new", **KEY) == ("enqueued", S.QUEUED)
        job = await bench.job(old.jid)
        assert job.state is (S.CANCELLING if state in (S.RUNNING, S.WAITING) else S.CANCELLED)
        assert (job.cause, job.reason) == ("superseded", "superseded by new")
        assert (await bench.state("new"), await _newest(bench)) == (S.QUEUED, "new")


async def test_an_older_job_in_another_queue_is_superseded_too(url: str) -> None:
    async with Bench(url) as bench:
        old = await bench.enqueue(queue="elsewhere", on_cancel="always", **KEY)
        await bench.enqueue("new", **KEY)
        assert (await bench.job(old)).ended is Ended.BEFORE_START
        assert len(await bench.entries("elsewhere/on_cancel")) == 1
        held = await bench.take(old, queue="elsewhere")
        assert (await bench.begin(held)).word == "stale"
        assert (await bench.entries("elsewhere"), await bench.is_marked(old)) == ([], False)


@pytest.mark.parametrize("state", [S.SUCCEEDED, S.FAILED, S.CANCELLED])
async def test_a_job_that_ended_is_not_superseded_and_its_key_is_free(url: str, state: State) -> None:
    async with Bench(url) as bench:
        old = await put_in(bench, state, **KEY)
        assert await _newest(bench) is None
        before = await bench.record(old.jid)
        await bench.enqueue("new", **KEY)
        assert await bench.record(old.jid) == before


async def test_a_superseded_job_that_ends_leaves_the_key_to_the_newest(url: str) -> None:
    async with Bench(url) as bench:
        old = await put_in(bench, S.RUNNING, **KEY)
        await bench.enqueue("new", **KEY)
        assert await bench.settle(V.FINISH, old, observed=True) == ("settled", "cancelled")
        assert await _newest(bench) == "new"
        await bench.settle(V.FINISH, await bench.run("new"))
        assert await _newest(bench) is None


async def test_an_older_job_that_is_cancelling_keeps_its_first_cause(url: str) -> None:
    async with Bench(url) as bench:
        old = await put_in(bench, S.CANCELLING, **KEY)
        await bench.enqueue("new", **KEY)
        assert (await bench.job(old.jid)).cause == "user"


async def test_a_rule_that_was_decided_before_gives_the_cause(url: str) -> None:
    async with Bench(url) as bench:
        old = await bench.enqueue(group="g", **KEY)
        await bench.decide(group="g")
        await bench.enqueue("new", **KEY)
        assert (await bench.job(old)).cause == "scope"
        assert await bench.state("new") is S.QUEUED


async def test_in_one_call_the_last_job_of_a_key_stays(url: str) -> None:
    async with Bench(url) as bench:
        jobs = [NewJob(f"job-{n}", "k", "q", b"p", fields=("key", "report:7")) for n in range(4)]
        await bench.a.enqueue(jobs, call="one")
        assert [await bench.state(job.jid) for job in jobs] == [S.CANCELLED] * 3 + [S.QUEUED]
        assert await bench.a.enqueue(jobs, call="one") == [("enqueued", S.CANCELLED)] * 3 + [("enqueued", S.QUEUED)]
        assert await _newest(bench) == "job-3"


async def test_the_same_enqueue_sent_again_does_not_come_back_over_a_newer_one(url: str) -> None:
    async with Bench(url) as bench:
        await bench.admit("old", call="one", **KEY)
        await bench.enqueue("new", **KEY)
        assert await bench.admit("old", call="one", **KEY) == ("enqueued", S.CANCELLED)
        assert (await _newest(bench), await bench.state("new")) == ("new", S.QUEUED)


@pytest.mark.parametrize("how", ["fenced", "tombstoned"])
async def test_a_job_that_is_born_cancelled_supersedes_and_leaves_the_key_free(url: str, how: str) -> None:
    async with Bench(url) as bench:
        old = await bench.enqueue(**KEY)
        if how == "fenced":
            await bench.decide(jid_prefix="new", how={"standing": True})
        else:
            await bench.cancel("new", tombstone_s=60)
        assert await bench.admit("new", **KEY) == (how, S.CANCELLED)
        assert (await bench.job(old)).cause == "superseded"
        assert await _newest(bench) is None


async def test_a_child_that_supersedes_its_only_sibling_keeps_their_parent_waiting(url: str) -> None:
    """Counted before its sibling ends: else the parent would end with that one, and take the newcomer along."""
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.enqueue("old", parent=parent.jid, **KEY)
        await bench.settle(V.FINISH, parent)
        assert await bench.admit("new", parent=parent.jid, **KEY) == ("enqueued", S.QUEUED)
        job = await bench.job(parent.jid)
        assert (job.state, job.children, job.open_children) == (S.WAITING, 2, 1)
        assert await bench.state("old") is S.CANCELLED
        await bench.settle(V.FINISH, await bench.run("new"))
        job = await bench.job(parent.jid)
        assert (job.state, job.cause, is_terminal(job.state)) == (S.CANCELLED, "superseded", True)


async def test_a_parent_that_is_superseded_gains_no_more_children_in_the_same_call(url: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.enqueue("parent", **KEY)
        jobs = [
            NewJob("one", "k", "q", b"p", fields=("parent", parent)),
            NewJob("new", "k", "q", b"p", fields=("key", "report:7")),
            NewJob("two", "k", "q", b"p", fields=("parent", parent)),
        ]
        answers = await bench.a.enqueue(jobs, call="one")
        assert [word for word, _ in answers] == ["enqueued", "enqueued", "orphan"]
        assert await bench.pass_on() == 1
        assert await bench.state("one") is S.CANCELLED


async def test_a_key_whose_newest_job_has_no_record_any_more_is_taken_over(url: str) -> None:
    async with Bench(url) as bench:
        old = await bench.enqueue(**KEY)
        await bench.redis.delete(bench.a.job_key(old))
        assert await bench.admit("new", **KEY) == ("enqueued", S.QUEUED)
        assert await bench.redis.exists(bench.a.job_key(old)) == 0
        assert await _newest(bench) == "new"
