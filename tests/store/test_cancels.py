"""What an accepted cancel means, shown in the store's verbs alone."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime

import pytest

from busq.protocol.cancel import Cause, Ended, Verdict
from busq.protocol.scope import Filter
from busq.protocol.states import State, Verb
from busq.store.forms import NewJob, Note, Refusal
from busq.store.reader import Reader
from busq.store.scopes import Scopes
from busq.store.store import Store
from tests.store.bench import DEADLINE_S, DELAY_S, GRACE_S, KIND, LEASE_S, QUEUE, SLACK_S, Bench, Held, put_in

S = State


# No start after acceptance --------------------------------------------------------------------------------


async def test_a_cancel_before_start_keeps_a_queued_job_from_starting(url: str) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue()
        answer = await bench.cancel(jid)
        assert (answer.verdict, answer.state) == (Verdict.CANCELLED, S.CANCELLED)
        held = await bench.take(jid)
        assert (await bench.begin(held)).word == "stale"
        assert await bench.state(jid) is S.CANCELLED
        assert (await bench.job(jid)).ended is Ended.BEFORE_START
        assert "started" not in await bench.events(jid)


async def test_a_cancel_keeps_a_delivered_entry_from_starting(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED)
        assert (await bench.cancel(held.jid)).verdict is Verdict.CANCELLED
        assert (await bench.begin(held)).word == "stale"
        assert (await bench.begin(held, adopt=True)).word == "stale"
        assert await bench.state(held.jid) is S.CANCELLED


async def test_a_cancel_keeps_a_scheduled_job_from_being_queued(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.SCHEDULED)
        assert (await bench.cancel(held.jid)).verdict is Verdict.CANCELLED
        assert await bench.redis.zcard(bench.a.keys(0).scheduled) == 0
        bench.clock.advance(DELAY_S)
        assert await bench.promote(held.jid) == ("stale", "cancelled")
        assert await bench.entries() == []


async def test_a_cancel_keeps_a_job_that_waits_for_its_retry_from_starting_again(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, retries=3)
        assert await bench.settle(Verb.RETRY, held, delay_s=1) == ("settled", "scheduled")
        assert (await bench.cancel(held.jid)).verdict is Verdict.CANCELLED
        bench.clock.advance(1)
        assert await bench.promote(held.jid) == ("stale", "cancelled")
        job = await bench.job(held.jid)
        assert (job.ended, job.attempt, job.failures) == (Ended.BEFORE_START, 1, 1)


async def test_a_cancel_keeps_a_job_that_was_handed_back_from_starting_again(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        assert await bench.settle(Verb.RELEASE, held) == ("settled", "queued")
        assert (await bench.cancel(held.jid)).verdict is Verdict.CANCELLED
        assert (await bench.begin(await bench.take(held.jid))).word == "stale"
        assert (await bench.job(held.jid)).attempt == 1


@pytest.mark.parametrize("started", [False, True])
async def test_a_cancelled_job_is_never_reclaimed(url: str, started: bool) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING if started else S.QUEUED)
        await bench.beat()
        await bench.cancel(held.jid)
        bench.clock.advance(LEASE_S)
        word, state = await bench.reclaim(held)
        assert (word, state) == (("ended", "cancelled") if started else ("stale", "cancelled"))
        assert await bench.entries() == []
        assert await bench.pending() == {}
        assert not await bench.is_marked(held.jid)
        assert await bench.events(held.jid) == ["enqueued", *(["started"] if started else []), "requested", "finalized"]


async def test_a_cancelled_job_that_is_given_back_stays_cancelled_and_its_entry_goes(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED)
        await bench.cancel(held.jid)
        refusal = Refusal(jid=held.jid, entry=held.entry, why="unknown_kind", delay_ms=1, most_ms=1, limit=10)
        assert await bench.a.refuse(0, QUEUE, [refusal]) == [("stale", "cancelled")]
        assert await bench.entries() == []
        assert not await bench.is_marked(held.jid)


@pytest.mark.parametrize("expired", [False, True], ids=["the record stands", "the record has expired"])
@pytest.mark.parametrize("who", ["start", "reclaim"])
async def test_the_entry_of_a_cancelled_job_goes_when_it_is_read(url: str, who: str, expired: bool) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue()
        await bench.cancel(jid)
        assert len(await bench.entries()) == 1
        assert await bench.is_marked(jid)
        if expired:
            await bench.redis.delete(bench.a.job_key(jid))
        held = await bench.take(jid)
        if who == "start":
            assert (await bench.begin(held)).word == "stale"
        else:
            await bench.reclaim(held)
        assert await bench.entries() == []
        assert await bench.pending() == {}
        assert not await bench.is_marked(jid)


@pytest.mark.parametrize("who", ["start", "refuse", "reclaim"])
async def test_an_entry_of_former_times_is_not_taken_for_the_unread_one_of_a_cancelled_job(url: str, who: str) -> None:
    """Once the record has expired, the mark alone says why there is none behind the entry."""
    async with Bench(url) as bench:
        former = await bench.take(await bench.enqueue())
        assert await bench.reclaim(former) == ("reclaimed", "queued")
        await bench.cancel(former.jid)
        if who == "start":
            assert (await bench.begin(former)).word == "stale"
        elif who == "refuse":
            refusal = Refusal(jid=former.jid, entry=former.entry, why="no_slot")
            assert await bench.a.refuse(0, QUEUE, [refusal]) == [("stale", "cancelled")]
        else:
            assert await bench.reclaim(former) == ("stale", "cancelled")
        assert await bench.is_marked(former.jid)
        assert (await bench.begin(await bench.take(former.jid, bench.b), bench.b)).word == "stale"
        assert not await bench.is_marked(former.jid)


# Never a retry, and cancel wins ---------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [Verb.FINISH, Verb.RETRY, Verb.RELEASE])
@pytest.mark.parametrize("observed", [False, True])
async def test_whatever_a_handler_does_after_an_accepted_cancel_it_is_cancelled(
    url: str, verb: Verb, observed: bool
) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, retries=5)
        assert (await bench.cancel(held.jid, reason="enough")).verdict is Verdict.SIGNALLED
        answer = await bench.settle(verb, held, observed=observed, result=b"\x01\x2a", cause="error")
        assert answer == ("settled", "cancelled")
        job = await bench.job(held.jid)
        assert job.ended is (Ended.CONFIRMED if observed else Ended.COMPLETED)
        assert (job.cause, job.reason, job.failures, job.result) == ("user", "enough", 0, None)
        assert job.evidence is not None
        assert job.evidence.result == 42
        assert await bench.entries() == []
        assert await bench.pending() == {}
        assert not await bench.is_marked(held.jid)
        assert await bench.redis.zcard(bench.a.keys(0).deadlines) == 0


@pytest.mark.parametrize("who", ["record", "worker"])
async def test_late_success_keeps_a_normal_return_and_the_request_stays_on_record(url: str, who: str) -> None:
    """A producer that has the handler's code writes it to the record; for any other the worker says it at the end."""
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, **({"late": "keep"} if who == "record" else {}))
        await bench.cancel(held.jid, reason="enough")
        answer = await bench.settle(Verb.FINISH, held, "succeeded", keep=who == "worker", result=b"\x01\x2a")
        assert answer == ("settled", "succeeded")
        job = await bench.job(held.jid)
        assert (job.result, job.reason, job.evidence, job.ended) == (42, "enough", None, None)
        assert "requested" in await bench.events(held.jid)
        assert not await bench.is_marked(held.jid)
        assert await bench.redis.zcard(bench.a.keys(0).deadlines) == 0
        assert (await bench.cancel(held.jid)).verdict is Verdict.ALREADY_FINISHED


@pytest.mark.parametrize("verb", [Verb.FINISH, Verb.RETRY])
async def test_late_success_does_not_keep_a_failure(url: str, verb: Verb) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, late="keep", retries=3)
        await bench.cancel(held.jid)
        assert await bench.settle(verb, held, "failed", cause="error") == ("settled", "cancelled")


@pytest.mark.parametrize("what", ["open child", "cancelled child", "finalizer"])
async def test_there_is_no_late_success_where_something_was_left_to_stop(url: str, what: str) -> None:
    """The cancel has gone down to its children already, and what was shown of them is not taken back."""
    async with Bench(url) as bench:
        scopes = Scopes(bench.b)
        held = await put_in(bench, S.RUNNING, late="keep")
        child = await bench.enqueue(parent=held.jid) if "child" in what else None
        await scopes.decide("s", Filter(where=f"jid == '{held.jid}'"))
        if child and what == "cancelled child":
            await bench.cancel(child)
        answer = await bench.settle(Verb.FINISH, held, "succeeded", result=b"\x01\x2a", finalizer=what == "finalizer")
        assert answer == ("settled", "cancelling" if what == "open child" else "cancelled")
        job = await bench.job(held.jid)
        assert (job.result, job.evidence and job.evidence.result) == (None, 42)
        if child:
            await bench.dog.cascade(0, step=10)
            assert await bench.state(child) is await bench.state(held.jid) is S.CANCELLED
        look = await scopes.look("s")
        assert look
        assert (look.counts["signalled"], look.endings, look.unfinished) == (1, {"completed": 1}, 0)


async def test_late_success_is_kept_of_a_parent_whose_children_have_all_ended(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, late="keep")
        await bench.settle(Verb.FINISH, await bench.run(parent=held.jid))
        await bench.cancel(held.jid)
        assert await bench.settle(Verb.FINISH, held, "succeeded", result=b"\x01\x2a") == ("settled", "succeeded")


async def test_whoever_finalizes_a_cancel_learns_how_long_ago_it_was_asked_for(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.CANCELLING)
        bench.clock.advance(DEADLINE_S)
        (answer,) = await bench.dog.finalize(0, QUEUE, [(held.jid, False)])
        assert answer == ("finalized", "cancelled", DEADLINE_S)
        (answer,) = await bench.dog.finalize(0, QUEUE, [(held.jid, False)])
        assert answer == ("stale", "cancelled", 0.0)


async def test_a_late_success_after_finalization_is_stale_even_when_kept(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.CANCELLING, late="keep")
        bench.clock.advance(DEADLINE_S)
        assert await bench.finalize(held.jid) == ("finalized", "cancelled")
        assert await bench.settle(Verb.FINISH, held, "succeeded") == ("stale", "cancelled")


# The first cause stands -----------------------------------------------------------------------------------


async def test_the_second_request_does_not_change_the_cause(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        await bench.cancel(held.jid, cause=Cause.PARENT, reason="first", source="one")
        answer = await bench.cancel(held.jid, cause=Cause.USER, reason="second", source="two", grace_s=0.0)
        assert answer.verdict is Verdict.ALREADY_CANCELLING
        job = await bench.job(held.jid)
        assert (job.cause, job.reason, job.source) == ("parent", "first", "one")
        (answer_to_worker,) = await bench.beat(held=[held])
        assert (answer_to_worker.cause, answer_to_worker.reason, answer_to_worker.source) == ("parent", "first", "one")


async def test_a_shorter_grace_brings_the_deadline_nearer(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        await bench.cancel(held.jid)
        bench.clock.advance(1)
        answer = await bench.cancel(held.jid, grace_s=0.5)
        job = await bench.job(held.jid)
        assert answer.deadline == job.deadline
        assert _left_s(bench, job.deadline) == pytest.approx(0.5 + SLACK_S)
        assert (await bench.events(held.jid))[-1] == "hastened"
        deadlines = await bench.redis.zrange(bench.a.keys(0).deadlines, 0, -1, withscores=True)
        assert deadlines == [(held.jid.encode(), bench.clock.now_ms + 2500)]
        (heard,) = await bench.beat(held=[held])
        assert (heard.grace_ms, heard.left_ms) == (500, 2500)
        assert heard.asked_ms == 1000


@pytest.mark.parametrize("grace_s", [GRACE_S, 50.0])
async def test_a_longer_grace_never_moves_the_deadline(url: str, grace_s: float) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        first = await bench.cancel(held.jid)
        before = await bench.snapshot()
        answer = await bench.cancel(held.jid, grace_s=grace_s)
        assert (answer.verdict, answer.deadline) == (Verdict.ALREADY_CANCELLING, first.deadline)
        assert await bench.snapshot() == before


# Deadlines ------------------------------------------------------------------------------------------------


async def test_a_deadline_is_acceptance_plus_beat_plus_grace_plus_force(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        answer = await bench.cancel(held.jid)
        assert _left_s(bench, answer.deadline) == pytest.approx(1 + 5 + 1)
        # The watchdog goes by this list, and a worker that missed the notice by the cancelled set.
        assert await bench.redis.zscore(bench.a.keys(0).deadlines, held.jid) == bench.clock.now_ms + 7000
        assert await bench.is_marked(held.jid)


async def test_a_deadline_takes_the_grace_of_the_job(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, grace=30_000)
        answer = await bench.cancel(held.jid)
        assert _left_s(bench, answer.deadline) == pytest.approx(30 + SLACK_S)


async def test_a_deadline_takes_the_grace_of_the_request_before_that_of_the_job(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, grace=30_000)
        answer = await bench.cancel(held.jid, grace_s=0.25)
        assert _left_s(bench, answer.deadline) == pytest.approx(0.25 + SLACK_S)


async def test_a_deadline_takes_the_beat_and_force_of_the_worker_that_runs_the_job(url: str) -> None:
    async with Bench(url, beat_s=0.1, force_s=0.1, grace_s=0.1) as bench:
        held = await put_in(bench, S.RUNNING)
        answer = await bench.cancel(held.jid)
        assert _left_s(bench, answer.deadline) == pytest.approx(GRACE_S + SLACK_S)


async def test_a_job_that_no_worker_gave_terms_gets_the_defaults_of_the_bus(url: str) -> None:
    async with Bench(url, beat_s=0.5, force_s=0.25, grace_s=3.0) as bench:
        jid = await bench.enqueue()
        await bench.redis.hset(bench.a.job_key(jid), "state", "waiting")
        assert _left_s(bench, (await bench.cancel(jid)).deadline) == pytest.approx(0.5 + 0.25 + 3.0)


async def test_nobody_finalizes_before_the_deadline(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.CANCELLING)
        bench.clock.advance(DEADLINE_S - 0.001)
        before = await bench.snapshot()
        assert await bench.finalize(held.jid, gone=True) == ("early", "1")
        assert await bench.snapshot() == before
        bench.clock.advance(0.001)
        assert await bench.finalize(held.jid) == ("finalized", "cancelled")


async def test_a_good_lease_does_not_protect_a_job_from_its_own_cancel(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.CANCELLING)
        bench.clock.advance(DEADLINE_S)
        assert (await bench.beat(held=[held]))[0].word == "cancelling"
        assert await bench.finalize(held.jid) == ("finalized", "cancelled")
        assert (await bench.beat(held=[held]))[0].word == "stale"


@pytest.mark.parametrize(("gone", "ended"), [(True, Ended.KILLED), (False, Ended.ABANDONED)])
@pytest.mark.parametrize("who", ["finalize", "reclaim"])
async def test_only_an_attempt_whose_process_is_known_to_be_gone_was_killed(
    url: str, who: str, gone: bool, ended: Ended
) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.CANCELLING)
        bench.clock.advance(DEADLINE_S)
        await (bench.finalize(held.jid, gone=gone) if who == "finalize" else bench.reclaim(held, gone=gone))
        assert (await bench.job(held.jid)).ended is ended
        suspects = await bench.redis.zrange(bench.a.keys(0).suspects, 0, -1)
        assert suspects == ([] if gone else [f"{held.jid}\t1\ta\t{KIND}".encode()])


@pytest.mark.parametrize("who", ["finalize", "reclaim"])
async def test_the_pending_list_names_no_owner_of_an_attempt_that_was_taken_over(url: str, who: str) -> None:
    async with Bench(url) as bench:
        held, other = await put_in(bench, S.CANCELLING), await put_in(bench, S.RUNNING)
        bench.clock.advance(LEASE_S)
        await (bench.finalize(held.jid) if who == "finalize" else bench.reclaim(held))
        assert await bench.pending() == {other.entry: b"a"}
        assert await bench.entries() == [other.entry]
        consumers = await bench.redis.xinfo_consumers(bench.a.keys(0).stream(QUEUE), "busq")
        assert {each["name"]: each["pending"] for each in consumers}[b"a"] == 1


@pytest.mark.parametrize("state", [S.SCHEDULED, S.QUEUED, S.RUNNING, S.WAITING, S.SUCCEEDED, S.CANCELLED])
async def test_a_finalize_that_comes_to_the_wrong_job_only_clears_the_list_of_deadlines(url: str, state: State) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, state)
        before = await bench.snapshot()
        await bench.redis.zadd(bench.a.keys(0).deadlines, {held.jid: 1})
        assert await bench.finalize(held.jid) == ("stale", state)
        assert await bench.snapshot() == before


@pytest.mark.parametrize("how", ["the stream", "its group"])
@pytest.mark.parametrize("who", ["finalize", "reclaim"])
async def test_a_cancel_comes_to_its_end_when_somebody_removed(url: str, who: str, how: str) -> None:
    """A job must not stay `cancelling` because its queue was removed under it; nor those that share its call."""
    async with Bench(url) as bench:
        held = await put_in(bench, S.CANCELLING)
        stream = bench.a.keys(0).stream(QUEUE)
        await (bench.redis.delete(stream) if how == "the stream" else bench.redis.xgroup_destroy(stream, "busq"))
        bench.clock.advance(LEASE_S)
        await (bench.finalize(held.jid) if who == "finalize" else bench.reclaim(held))
        assert await bench.state(held.jid) is S.CANCELLED


# Evidence -------------------------------------------------------------------------------------------------


async def test_the_story_of_a_cancel_is_told_in_order(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        await bench.cancel(held.jid, source="api")
        bench.clock.advance(1)
        await bench.a.note(held.jid, token=held.token, attempt=1, note=Note("tripped", 400, "beat"))
        notes = [Note("observed", 200, "exception"), Note("stopped", 100)]
        await bench.settle(Verb.FINISH, held, "failed", observed=True, notes=notes)
        story = await bench.history(held.jid)
        assert [event.name for event in story] == [
            "enqueued", "started", "requested", "tripped", "observed", "stopped", "finalized",
        ]  # fmt: skip
        assert [event.attempt for event in story] == [0, 1, 1, 1, 1, 1, 1]
        assert [event.by for event in story] == ["a", "a", "api", "a", "a", "a", "a"]
        first = story[0].at
        assert first is not None
        assert [round((event.at - first).total_seconds() * 1000) for event in story if event.at] == [
            0, 0, 0, 600, 800, 900, 1000,
        ]  # fmt: skip
        assert story[3].facts == "beat"
        assert story[6].facts == "confirmed"


async def test_the_notice_rings_after_the_request_is_written(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        async with bench.a.connections.listening().pubsub() as ear:
            await ear.subscribe(f"cancel:{held.jid}", f"busq:done:{held.jid}")
            for _ in range(2):
                confirmation = await ear.get_message(timeout=10)
                assert confirmation is not None
                assert confirmation["type"] == "subscribe"
            await bench.cancel(held.jid)
            await bench.cancel(held.jid, grace_s=0.1)
            bench.clock.advance(DEADLINE_S)
            await bench.finalize(held.jid)
            heard: list[tuple[bytes, bytes]] = []
            while len(heard) < 4:
                message = await ear.get_message(timeout=10)
                assert message is not None
                if message["type"] == "message":
                    heard.append((message["channel"], message["data"]))
        notice, done = f"cancel:{held.jid}".encode(), f"busq:done:{held.jid}".encode()
        assert heard == [(notice, b"cancel"), (notice, b"hasten"), (done, b"cancelled"), (notice, b"finalized")]


async def rung(bench: Bench, jid: str, what: Awaitable[object]) -> list[tuple[bytes, bytes]]:
    """What is heard of a job while `what` is done: notices to it, its ending, and words to all workers."""
    async with bench.a.connections.listening().pubsub() as ear:
        channels = (f"cancel:{jid}", f"busq:done:{jid}", "busq:rules", jid, "the-end")
        await ear.subscribe(*channels)
        for _ in channels:
            assert (await ear.get_message(timeout=10) or {})["type"] == "subscribe"
        await what
        await bench.redis.publish("the-end", b"")
        heard: list[tuple[bytes, bytes]] = []
        while not heard or heard[-1][0] != b"the-end":
            message = await ear.get_message(timeout=10)
            assert message is not None
            heard.append((message["channel"], message["data"]))
        return heard[:-1]


async def test_a_worker_tells_all_workers_of_a_job_that_it_had_superseded_and_rings_no_notice(url: str) -> None:
    """Its user may not ring notices to single jobs; without any word the other worker would hear a beat later."""
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, key="report:7")
        worker = Store(bench.settings, by="other", clock=bench.clock, rings=False)
        await worker.open()
        newer = NewJob("newer", KIND, QUEUE, b"", fields=("key", "report:7"))
        heard = await rung(bench, held.jid, worker.enqueue([newer], call="one"))
        assert (await bench.job(held.jid)).state is S.CANCELLING
        assert heard == [(b"busq:rules", b"superseded")]
        bench.clock.advance(DEADLINE_S)
        heard = await rung(bench, held.jid, worker.finalize(0, QUEUE, [(held.jid, False)]))
        assert heard == [(f"busq:done:{held.jid}".encode(), b"cancelled")]
        await worker.close()


def _left_s(bench: Bench, deadline: datetime | None) -> float:
    assert deadline is not None
    return deadline.timestamp() - bench.clock.now_ms / 1000


async def test_a_cancelled_job_is_not_counted_as_queued_while_its_entry_is_unread(url: str) -> None:
    async with Bench(url) as bench:
        await put_in(bench, State.CANCELLING)
        first, _ = [await bench.enqueue() for _ in range(2)]
        await bench.cancel(first)
        stats = await Reader(bench.a).stats()
        assert (stats.now["queued"], stats.now["cancelling"], stats.now["cancelled"]) == (1, 1, 1)
        assert [(each.ready, each.held) for each in stats.queues] == [(2, 1)], "entries are counted as they stand"


async def test_a_cancel_of_an_unknown_jid_writes_nothing(url: str) -> None:
    async with Bench(url) as bench:
        before = await bench.snapshot()
        answer = await bench.cancel("nobody")
        assert (answer.verdict, answer.state, answer.accepted) == (Verdict.NOT_FOUND, None, False)
        assert await bench.snapshot() == before
        assert (await bench.begin(Held("nobody"))).word == "missing"
