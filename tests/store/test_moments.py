"""
The moments of a job, shown in the store's verbs alone: `expires` (never started later) and `due_by` (ended by then).
"""

from __future__ import annotations

import pytest

from busq.protocol.cancel import Cause, Ended, Verdict
from busq.protocol.states import State, Verb
from busq.store.forms import Refusal
from tests.store.bench import DEADLINE_S, LEASE_S, Bench, put_in

S = State
EXPIRES = {"expires": 60_000}
DUE_BY = {"due_by": 60_000}
BOTH = {"expires": 60_000, "due_by": 90_000}


# Never started later ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [S.SCHEDULED, S.QUEUED])
@pytest.mark.parametrize(("fields", "cause"), [(EXPIRES, Cause.EXPIRED), (DUE_BY, Cause.DEADLINE)])
async def test_what_has_not_started_in_time_is_cancelled_before_start(
    url: str, state: State, fields: dict[str, int], cause: Cause
) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, state, **fields)
        bench.clock.advance(59.999)
        assert await bench.expire(held.jid) == ("early", "1")
        assert await bench.state(held.jid) is state
        bench.clock.advance(0.001)
        assert await bench.expire(held.jid) == ("cancelled", "cancelled")
        job = await bench.job(held.jid)
        assert (job.state, job.ended, job.cause, job.attempt) == (S.CANCELLED, Ended.BEFORE_START, cause, 0)
        assert await bench.events(held.jid) == ["enqueued", "requested", "finalized"]
        assert (await bench.history(held.jid))[1].by == "dog"
        assert await bench.redis.zcard(bench.a.keys(0).scheduled) == 0
        assert (await bench.begin(held)).word == "stale"


@pytest.mark.parametrize(("fields", "cause"), [(EXPIRES, Cause.EXPIRED), (DUE_BY, Cause.DEADLINE)])
async def test_what_is_past_its_moment_does_not_start_although_no_watchdog_came(
    url: str, fields: dict[str, int], cause: Cause
) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED, **fields)
        bench.clock.advance(60)
        answer = await bench.begin(held)
        assert (answer.word, answer.detail) == ("stale", "cancelled")
        job = await bench.job(held.jid)
        assert (job.state, job.ended, job.cause, job.attempt) == (S.CANCELLED, Ended.BEFORE_START, cause, 0)
        assert await bench.events(held.jid) == ["enqueued", "requested", "finalized"]
        assert await bench.entries() == []
        assert await bench.pending() == {}
        assert not await bench.is_marked(held.jid)
        assert await bench.timer(held.jid) is None


@pytest.mark.parametrize("fields", [EXPIRES, DUE_BY])
async def test_a_moment_before_its_moment_a_job_still_starts(url: str, fields: dict[str, int]) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED, **fields)
        bench.clock.advance(59.999)
        assert (await bench.begin(held)).word == "started"


async def test_a_job_that_has_been_started_does_not_expire(url: str) -> None:
    """Neither while it runs nor while it waits for its next attempt, nor at the start of that."""
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, retries=3, **EXPIRES)
        bench.clock.advance(60)
        assert await bench.expire(held.jid) == ("stale", "running")
        assert await bench.timer(held.jid) is None
        await bench.settle(Verb.RETRY, held)
        assert await bench.expire(held.jid) == ("stale", "scheduled")
        await bench.promote(held.jid)
        assert await bench.expire(held.jid) == ("stale", "queued")
        assert (await bench.begin(await bench.take(held.jid))).word == "started"


async def test_a_job_that_was_handed_back_has_been_started(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, **EXPIRES)
        await bench.settle(Verb.RELEASE, held)
        bench.clock.advance(60)
        assert (await bench.begin(await bench.take(held.jid))).word == "started"


async def test_a_delivered_job_that_nobody_started_expires_although_it_was_read(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED, **EXPIRES)
        bench.clock.advance(max(LEASE_S, 60))
        assert await bench.reclaim(held) == ("reclaimed", "queued")
        assert (await bench.begin(await bench.take(held.jid))).word == "stale"
        assert (await bench.job(held.jid)).cause == "expired"


# Ended by then ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [S.RUNNING, S.WAITING])
async def test_a_job_that_runs_past_its_moment_is_asked_to_stop_like_by_any_cancel(url: str, state: State) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, state, **DUE_BY)
        bench.clock.advance(60)
        own = bench.a.keys(0)
        pubsub = bench.redis.pubsub()
        await pubsub.subscribe(b"cancel:" + held.jid.encode())
        await pubsub.get_message(timeout=5)
        assert (await bench.expire(held.jid))[0] == "signalled"
        notice = await pubsub.get_message(timeout=5)
        await pubsub.aclose()
        assert notice["data"] == b"cancel"
        job = await bench.job(held.jid)
        assert (job.state, job.cause, job.reason, job.source) == (S.CANCELLING, "deadline", "", "")
        assert await bench.timer(held.jid) is None
        assert job.deadline is not None
        assert job.deadline.timestamp() * 1000 == bench.clock.now_ms + DEADLINE_S * 1000
        assert await bench.is_marked(held.jid)
        assert await bench.redis.zscore(own.deadlines, held.jid) == bench.clock.now_ms + DEADLINE_S * 1000
        assert await bench.expire(held.jid) == ("stale", "cancelling")
        assert await bench.finalize(held.jid) == ("early", str(round(DEADLINE_S * 1000)))
        bench.clock.advance(DEADLINE_S)
        assert await bench.finalize(held.jid) == ("finalized", "cancelled")


@pytest.mark.parametrize("verb", [Verb.FINISH, Verb.RETRY, Verb.RELEASE])
async def test_after_its_deadline_a_job_is_cancelled_whatever_its_handler_does(url: str, verb: Verb) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, retries=3, **DUE_BY)
        bench.clock.advance(60)
        await bench.expire(held.jid)
        assert (await bench.beat(held=[held]))[0].cause == "deadline"
        assert await bench.settle(verb, held, observed=True) == ("settled", "cancelled")
        job = await bench.job(held.jid)
        assert (job.cause, job.ended, job.failures) == ("deadline", Ended.CONFIRMED, 0)


async def test_a_job_that_waits_for_its_retry_past_its_moment_is_cancelled_at_once(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, retries=3, **DUE_BY)
        await bench.settle(Verb.RETRY, held, delay_s=600)
        bench.clock.advance(60)
        assert await bench.expire(held.jid) == ("cancelled", "cancelled")
        job = await bench.job(held.jid)
        assert (job.cause, job.ended, job.attempt) == ("deadline", Ended.BEFORE_START, 1)
        assert await bench.redis.zcard(bench.a.keys(0).scheduled) == 0


async def test_a_retry_does_not_start_past_the_jobs_moment(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, retries=3, **DUE_BY)
        await bench.settle(Verb.RETRY, held)
        await bench.promote(held.jid)
        again = await bench.take(held.jid)
        bench.clock.advance(60)
        assert (await bench.begin(again)).word == "stale"
        job = await bench.job(held.jid)
        assert (job.cause, job.ended, job.attempt) == ("deadline", Ended.BEFORE_START, 1)


async def test_an_attempt_that_never_came_to_run_is_not_begun_anew_past_the_jobs_moment(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, **DUE_BY)
        bench.clock.advance(60)
        assert (await bench.begin(held, adopt=True)).word == "stale"
        assert (await bench.job(held.jid)).cause == "deadline"
        assert await bench.pending() == {}


async def test_a_start_that_is_sent_again_past_the_moment_is_answered_as_the_first_was(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED, **DUE_BY)
        first = await bench.begin(held, token="one")
        bench.clock.advance(60)
        again = await bench.begin(held, token="one")
        assert (first.word, again.word, again.attempt) == ("started", "started", 1)
        assert await bench.state(held.jid) is S.RUNNING


async def test_a_users_cancel_that_was_accepted_before_stands(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, **DUE_BY)
        await bench.cancel(held.jid, reason="no longer wanted")
        bench.clock.advance(60)
        assert await bench.expire(held.jid) == ("stale", "cancelling")
        job = await bench.job(held.jid)
        assert (job.cause, job.reason) == ("user", "no longer wanted")


@pytest.mark.parametrize("state", [S.QUEUED, S.RUNNING])
async def test_a_users_cancel_after_it_changes_nothing(url: str, state: State) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, state, **DUE_BY)
        bench.clock.advance(60)
        await bench.expire(held.jid)
        late = await bench.cancel(held.jid, reason="me too")
        assert late.verdict is (Verdict.ALREADY_CANCELLED if state is S.QUEUED else Verdict.ALREADY_CANCELLING)
        assert (await bench.job(held.jid)).cause == "deadline"


async def test_late_success_keeps_a_normal_return_after_the_deadline_too(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, late="keep", **DUE_BY)
        bench.clock.advance(60)
        await bench.expire(held.jid)
        assert await bench.settle(Verb.FINISH, held) == ("settled", "succeeded")


# What the handler says --------------------------------------------------------------------------------------


async def test_a_handlers_expires_keeps_a_job_from_its_first_start(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED)
        bench.clock.advance(60)
        assert (await bench.begin(held, expires_s=60)).word == "stale"
        assert (await bench.job(held.jid)).cause == "expired"


async def test_a_handlers_expires_says_nothing_about_a_second_attempt(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, retries=1)
        await bench.settle(Verb.RELEASE, held)
        again = await bench.take(held.jid)
        bench.clock.advance(60)
        assert (await bench.begin(again, expires_s=60)).word == "started"


async def test_a_handlers_deadline_runs_from_the_enqueueing_and_is_written_at_the_start(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED)
        enqueued_ms = bench.clock.now_ms
        bench.clock.advance(40)
        assert (await bench.begin(held, deadline_s=60)).word == "started"
        job = await bench.job(held.jid)
        assert job.due_by is not None
        assert job.due_by.timestamp() * 1000 == enqueued_ms + 60_000
        assert await bench.timer(held.jid) == 20
        bench.clock.advance(20)
        assert (await bench.expire(held.jid))[0] == "signalled"


async def test_a_handlers_deadline_that_is_over_keeps_a_job_from_starting(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED)
        bench.clock.advance(60)
        assert (await bench.begin(held, deadline_s=60)).word == "stale"
        assert (await bench.job(held.jid)).cause == "deadline"


async def test_what_the_producer_said_stands_before_what_the_handler_says(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED, **BOTH)
        bench.clock.advance(50)
        assert (await bench.begin(held, expires_s=1, deadline_s=1)).word == "started"
        assert await bench.timer(held.jid) == 10, "the first of its own two moments"


# Timers -----------------------------------------------------------------------------------------------------


async def test_a_job_without_moments_has_no_timer(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, retries=1, grace=1000)
        assert await bench.timer(held.jid) is None
        assert await bench.redis.exists(bench.a.keys(0).timers) == 0


async def test_the_timer_goes_from_the_first_moment_to_the_second(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, **BOTH)
        assert await bench.timer(held.jid) == 60
        bench.clock.advance(60)
        assert await bench.expire(held.jid) == ("early", "30000")
        assert await bench.timer(held.jid) == 30


async def test_the_earlier_moment_gives_the_cause(url: str) -> None:
    async with Bench(url) as bench:
        first, second = await bench.enqueue(**BOTH), await bench.enqueue(expires=90_000, due_by=60_000)
        bench.clock.advance(100)
        await bench.expire(first)
        await bench.expire(second)
        assert (await bench.job(first)).cause == "expired"
        assert (await bench.job(second)).cause == "deadline"


@pytest.mark.parametrize("how", ["finish", "fail", "cancel queued", "cancel", "finalize", "reclaim", "refuse"])
async def test_the_timer_goes_when_the_job_ends(url: str, how: str) -> None:
    async with Bench(url) as bench:
        state = S.QUEUED if how in ("cancel queued", "refuse") else S.RUNNING
        held = await put_in(bench, state, max_losses=0, **DUE_BY)
        assert await bench.timer(held.jid) == 60
        match how:
            case "finish":
                await bench.settle(Verb.FINISH, held)
            case "fail":
                await bench.settle(Verb.RETRY, held)
            case "cancel queued":
                await bench.cancel(held.jid)
            case "cancel":
                await bench.cancel(held.jid)
                await bench.settle(Verb.FINISH, held)
            case "finalize":
                await bench.cancel(held.jid)
                bench.clock.advance(DEADLINE_S)
                await bench.finalize(held.jid)
            case "reclaim":
                await bench.reclaim(held)
            case "refuse":
                await _write_refusals(bench, held.jid)
                refusal = Refusal(jid=held.jid, entry=held.entry, why="unknown_kind", limit=1)
                assert (await bench.a.refuse(0, "q", [refusal]))[0] == ("buried", "failed")
        assert (await bench.job(held.jid)).is_terminal
        assert await bench.redis.exists(bench.a.keys(0).timers) == 0


async def _write_refusals(bench: Bench, jid: str) -> None:
    await bench.redis.hset(bench.a.job_key(jid), "refusals", 9)


async def test_a_job_that_is_born_cancelled_has_no_timer(url: str) -> None:
    async with Bench(url) as bench:
        await bench.cancel("job", tombstone_s=60)
        assert await bench.admit("job", **DUE_BY) == ("tombstoned", S.CANCELLED)
        assert await bench.redis.exists(bench.a.keys(0).timers) == 0


@pytest.mark.parametrize("state", [None, S.SUCCEEDED])
async def test_a_timer_that_stands_for_nothing_is_dropped(url: str, state: State | None) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, state)
        await bench.redis.zadd(bench.a.keys(0).timers, {held.jid: 1})
        await bench.expire(held.jid)
        assert await bench.timer(held.jid) is None


async def test_a_record_shows_its_moments(url: str) -> None:
    async with Bench(url) as bench:
        job = await bench.job(await bench.enqueue(**BOTH))
        assert job.expires_at is not None
        assert job.due_by is not None
        assert job.expires_at.timestamp() * 1000 == bench.clock.now_ms + 60_000
        assert job.due_by.timestamp() * 1000 == bench.clock.now_ms + 90_000


# Attempts that never came to run ----------------------------------------------------------------------------


async def test_an_attempt_that_was_cancelled_before_it_came_to_run_ends_before_start(url: str) -> None:
    """Its worker had not heard of the start: when it finds the entry among its own, nothing has run."""
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        answer = await bench.cancel(held.jid, request="one")
        assert (await bench.begin(held, by=bench.b, adopt=True)).word == "stale"
        assert (await bench.begin(held)).word == "stale"
        assert await bench.state(held.jid) is S.CANCELLING, "only its owner can know, and only when it says so"
        assert (await bench.begin(held, adopt=True)).detail == "cancelled"
        job = await bench.job(held.jid)
        assert (job.state, job.ended, job.cause) == (S.CANCELLED, Ended.BEFORE_START, "user")
        assert await bench.redis.zcard(bench.a.keys(0).suspects) == 0
        assert await bench.entries() == []
        assert not await bench.is_marked(held.jid)
        assert (await bench.cancel(held.jid, request="one")).verdict is answer.verdict, "sent again"


async def test_a_start_that_is_sent_again_after_a_cancel_ends_the_job_that_nobody_runs(url: str) -> None:
    """Whoever sends it again has not heard the first answer, so it has begun nothing."""
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED)
        await bench.begin(held, token="one")
        await bench.cancel(held.jid)
        answer = await bench.begin(held, token="one")
        assert (answer.word, answer.detail) == ("stale", "cancelled")
        assert (await bench.job(held.jid)).ended is Ended.BEFORE_START
        assert await bench.entries() == []


async def test_a_start_that_is_sent_again_after_its_cancel_was_finalized_is_told_that_it_was_its_own(url: str) -> None:
    """Whoever sends it again clears the list of suspects of it; nobody else has anything to clear."""
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED)
        await bench.begin(held, token="one")
        await bench.cancel(held.jid)
        bench.clock.advance(DEADLINE_S)
        assert (await bench.finalize(held.jid))[0] == "finalized"
        answers = [await bench.begin(held, token=token) for token in ("one", "two")]
        assert [(answer.word, answer.detail) for answer in answers] == [("gone", "cancelled"), ("stale", "cancelled")]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_attempt_that_never_came_to_run_is_given_back_without_spending_anything(
    url: str, cancelled: bool
) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        if cancelled:
            await bench.cancel(held.jid)
        plain = Refusal(jid=held.jid, entry=held.entry, why="shutdown")
        unknown = Refusal(jid=held.jid, entry=held.entry, why="shutdown", unknown=True)
        other = Refusal(jid=held.jid, entry=b"1-1", why="shutdown", unknown=True)
        state = S.CANCELLING if cancelled else S.RUNNING
        assert await bench.a.refuse(0, "q", [plain]) == [("stale", state)]
        assert await bench.a.refuse(0, "q", [other]) == [("stale", state)]
        assert await bench.b.refuse(0, "q", [unknown]) == [("stale", state)]
        assert await bench.state(held.jid) is state
        (answer,) = await bench.a.refuse(0, "q", [unknown])
        job = await bench.job(held.jid)
        assert (job.failures, job.losses) == (0, 0)
        assert await bench.pending() == {}
        if cancelled:
            assert answer == ("stale", "cancelled")
            assert (job.state, job.ended) == (S.CANCELLED, Ended.BEFORE_START)
            assert await bench.entries() == []
        else:
            assert answer == ("refused", "queued")
            assert (await bench.begin(await bench.take(held.jid))).attempt == 2
