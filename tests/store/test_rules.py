"""
Wide cancels, shown in the store's verbs alone: decided in one step, judged by whoever touches a job, settled by a walk.

A rule stands for the records as they were when it was decided. Judged late, it says what it would have said then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from busq.errors import TooManyRules
from busq.protocol.cancel import Ended, Verdict
from busq.protocol.scope import Filter, ScopeState
from busq.protocol.states import State, Verb
from busq.store import listing, scopes
from busq.store.forms import NewJob, Refusal
from busq.store.reader import Reader
from tests.store.bench import CHILD_DELAY_S, DEADLINE_S, DELAY_S, LEASE_S, QUEUE, Bench, Held, put_in

S, V = State, Verb
WISH = {"reason": "too much", "source": "ops"}
MINE = {"group": "g"}
LIVE = [S.SCHEDULED, S.QUEUED, S.RUNNING, S.WAITING]
Touch = Callable[[Bench, Held], Awaitable[Any]]


# Whoever touches a job --------------------------------------------------------------------------------------


async def _start(bench: Bench, held: Held) -> Any:
    return (await bench.begin(held)).word


async def _promote(bench: Bench, held: Held) -> Any:
    bench.clock.advance(DELAY_S)
    return await bench.promote(held.jid)


async def _retry(bench: Bench, held: Held) -> Any:
    return await bench.settle(V.RETRY, held)


async def _release(bench: Bench, held: Held) -> Any:
    return await bench.settle(V.RELEASE, held)


async def _finish(bench: Bench, held: Held) -> Any:
    return await bench.settle(V.FINISH, held, result=b"\x01r")


async def _reclaim(bench: Bench, held: Held) -> Any:
    await bench.beat()
    bench.clock.advance(LEASE_S)
    return (await bench.reclaim(held))[0]


async def _refuse(bench: Bench, held: Held) -> Any:
    refusal = Refusal(jid=held.jid, entry=held.entry, why="unknown_kind", delay_ms=100, most_ms=100)
    return (await bench.a.refuse(0, QUEUE, [refusal]))[0]


async def _renew(bench: Bench, held: Held) -> Any:
    (answer,) = await bench.beat(held=[held])
    assert (answer.cause, answer.reason, answer.source) == ("scope", "too much", "ops")
    return answer.word


async def _expire(bench: Bench, held: Held) -> Any:
    await bench.redis.hset(bench.a.job_key(held.jid), "due_by", 1)
    return await bench.expire(held.jid)


async def _cancel(bench: Bench, held: Held) -> Any:
    return (await bench.cancel(held.jid)).verdict


async def _spawn(bench: Bench, held: Held) -> Any:
    return await bench.spawn(held, "child")


async def _walk(bench: Bench, held: Held) -> Any:
    return await bench.walk()


CANCELLED, SETTLED, STALE = S.CANCELLED, ("settled", "cancelled"), ("stale", "cancelled")
TOUCHES: dict[str, tuple[State, Touch, Any, State, Ended | None]] = {
    "start": (S.QUEUED, _start, "stale", CANCELLED, Ended.BEFORE_START),
    "promote": (S.SCHEDULED, _promote, STALE, CANCELLED, Ended.BEFORE_START),
    "retry": (S.RUNNING, _retry, SETTLED, CANCELLED, Ended.COMPLETED),
    "release": (S.RUNNING, _release, SETTLED, CANCELLED, Ended.COMPLETED),
    "finish": (S.RUNNING, _finish, SETTLED, CANCELLED, Ended.COMPLETED),
    "reclaim": (S.RUNNING, _reclaim, "ended", CANCELLED, Ended.ABANDONED),
    "reclaim of what never started": (S.QUEUED, _reclaim, "stale", CANCELLED, Ended.BEFORE_START),
    "refuse": (S.QUEUED, _refuse, STALE, CANCELLED, Ended.BEFORE_START),
    "renew": (S.RUNNING, _renew, "cancelling", S.CANCELLING, None),
    "expire": (S.QUEUED, _expire, STALE, CANCELLED, Ended.BEFORE_START),
    "expire of what runs": (S.RUNNING, _expire, ("stale", "cancelling"), S.CANCELLING, None),
    "cancel": (S.QUEUED, _cancel, Verdict.ALREADY_CANCELLED, CANCELLED, Ended.BEFORE_START),
    "cancel of what runs": (S.RUNNING, _cancel, Verdict.ALREADY_CANCELLING, S.CANCELLING, None),
    "enqueue of a child": (S.RUNNING, _spawn, ("orphan", "cancelling", "scope"), S.CANCELLING, None),
    "walk, scheduled": (S.SCHEDULED, _walk, 1, CANCELLED, Ended.BEFORE_START),
    "walk, queued": (S.QUEUED, _walk, 1, CANCELLED, Ended.BEFORE_START),
    "walk, running": (S.RUNNING, _walk, 1, S.CANCELLING, None),
    "walk, waiting": (S.WAITING, _walk, 1, S.CANCELLING, None),
}


@pytest.mark.parametrize("way", TOUCHES)
async def test_whoever_touches_a_job_carries_out_first_what_has_been_decided(url: str, way: str) -> None:
    state, touch, answer, after, ended = TOUCHES[way]
    async with Bench(url) as bench:
        held = await put_in(bench, state, retries=1, **MINE)
        scope = await bench.decide(how=WISH, **MINE)
        assert await bench.state(held.jid) is state, "the decision itself writes no record"
        assert await touch(bench, held) == answer
        job = await bench.job(held.jid)
        assert (job.state, job.ended) == (after, ended)
        assert (job.cause, job.scope, job.reason, job.source) == ("scope", scope, "too much", "ops")
        story = [event for event in await bench.history(held.jid) if event.name == "requested"]
        assert [(event.by, event.facts) for event in story] == [("ops", f"scope {scope}: too much")]
        assert await bench.redis.zcard(bench.a.keys(0).scheduled) == (state is S.WAITING)
        look = await bench.look(scope)
        stopped = state in (S.SCHEDULED, S.QUEUED)
        assert look.counts == {"cancelled": int(stopped), "signalled": int(not stopped)}
        assert look.endings == ({str(ended): 1} if ended else {})
        assert look.unfinished == int(ended is None)


@pytest.mark.parametrize("way", ["start", "refuse", "reclaim of what never started"])
async def test_an_entry_that_goes_with_its_job_leaves_nothing_behind(url: str, way: str) -> None:
    _, touch, answer, *_ = TOUCHES[way]
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED, **MINE)
        await bench.decide(**MINE)
        assert await touch(bench, held) == answer
        assert await bench.entries() == []
        assert await bench.pending() == {}
        assert not await bench.is_marked(held.jid)


async def test_the_entry_of_a_job_that_a_walk_has_stopped_goes_when_it_is_read(url: str) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue(**MINE)
        await bench.decide(**MINE)
        await bench.walk()
        assert await bench.is_marked(jid)
        assert (await bench.begin(await bench.take(jid))).word == "stale"
        assert (await bench.entries(), await bench.is_marked(jid)) == ([], False)


async def test_a_rule_is_no_reason_for_an_attempt_that_has_ended_in_time(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.SUCCEEDED, **MINE)
        scope = await bench.decide(**MINE)
        assert await bench.settle(V.FINISH, held) == ("settled", "succeeded")
        assert (await bench.cancel(held.jid)).verdict is Verdict.ALREADY_FINISHED
        assert await bench.walk() == 0
        assert (await bench.look(scope)).counts == {"cancelled": 0, "signalled": 0}


async def test_a_job_without_anything_of_its_own_is_judged_too(url: str) -> None:
    """Most records say nothing beyond their kind, and are read with one question less."""
    async with Bench(url) as bench:
        one, other = await put_in(bench, S.QUEUED), await put_in(bench, S.RUNNING)
        await bench.decide(kind="k")
        assert (await bench.begin(one)).word == "stale"
        assert await bench.settle(V.FINISH, other) == ("settled", "cancelled")


async def test_the_grace_of_a_rule_stands_before_that_of_the_job(url: str) -> None:
    async with Bench(url) as bench:
        own, given = await put_in(bench, S.RUNNING, **MINE), await put_in(bench, S.RUNNING, group="h")
        await bench.decide(**MINE)
        await bench.decide(group="h", how={"grace_s": 0.25})
        assert [(await bench.beat(held=[held]))[0].grace_ms for held in (own, given)] == [5000, 250]


async def test_the_first_rule_gives_the_cause(url: str) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue(**MINE)
        first = await bench.decide(**MINE)
        await bench.decide(kind="k")
        await bench.walk()
        assert (await bench.job(jid)).scope == first


@pytest.mark.parametrize("state", [S.QUEUED, S.RUNNING])
async def test_clean_ups_are_never_covered(url: str, state: State) -> None:
    async with Bench(url) as bench:
        await bench.cancel(await bench.enqueue(on_cancel="always"))
        await bench.read()
        queue = f"{QUEUE}/on_cancel"
        (entry,) = await bench.read(queue=queue)
        hook = Held(entry.jid, entry.id, queue=queue)
        if state is S.RUNNING:
            assert (await bench.begin(hook, kind="k/on_cancel")).word == "started"
        assert (await bench.scopes.survey(Filter(everything=True)))[0].jobs == 0
        await bench.decide(everything=True)
        if state is S.QUEUED:
            assert (await bench.begin(hook, kind="k/on_cancel")).word == "started"
        assert (await bench.beat(held=[hook]))[0].word == "running"
        assert await bench.walk() == 0
        assert await bench.settle(V.FINISH, hook) == ("settled", "succeeded")


# A snapshot and a fence -------------------------------------------------------------------------------------


async def test_a_job_that_comes_after_the_decision_is_left_alone(url: str) -> None:
    async with Bench(url) as bench:
        await bench.decide(**MINE)
        held = await put_in(bench, S.RUNNING, **MINE)
        await bench.walk()
        assert await bench.settle(V.FINISH, held) == ("settled", "succeeded")


async def test_what_came_after_the_survey_is_not_covered_by_its_decision(url: str) -> None:
    async with Bench(url) as bench:
        before = await bench.enqueue(**MINE)
        survey, cutoffs = await bench.scopes.survey(Filter(**MINE))
        after = await bench.enqueue(**MINE)
        await bench.decide(how={"cutoffs": cutoffs}, **MINE)
        assert (survey.jobs, await bench.walk()) == (1, 1)
        assert (await bench.state(before), await bench.state(after)) == (S.CANCELLED, S.QUEUED)


async def test_a_cutoff_of_the_future_covers_nobody_who_is_still_to_come(url: str) -> None:
    async with Bench(url) as bench:
        await bench.decide(how={"cutoffs": {0: 1000}}, **MINE)
        own = bench.a.keys(0)
        (text,) = [value for field, value in (await bench.redis.hgetall(own.rules)).items() if field == b"1"]
        assert text.startswith(b"0 ")


async def test_what_a_job_becomes_after_the_decision_does_not_matter(url: str) -> None:
    """Innocent when it was judged, it begins an attempt, and a rule for jobs with attempts does not come back to it."""
    async with Bench(url) as bench:
        queued, running = await put_in(bench, S.QUEUED), await put_in(bench, S.RUNNING)
        scope = await bench.decide(where="attempt >= 1")
        assert (await bench.begin(queued)).word == "started"
        assert [(await bench.beat(held=[held]))[0].word for held in (queued, running)] == ["running", "cancelling"]
        await bench.decide(kind="other")
        assert (await bench.beat(held=[queued]))[0].word == "running", "a newer rule does not bring the older one back"
        await bench.walk()
        assert await bench.settle(V.FINISH, queued) == ("settled", "succeeded")
        assert (await bench.look(scope)).counts["signalled"] == 1


async def test_a_step_that_has_stopped_as_many_as_it_may_goes_on_from_there(url: str) -> None:
    """One in three matches, so more are read than may be stopped."""
    async with Bench(url) as bench:
        for n in range(15):
            await bench.enqueue(group="mine" if n % 3 == 2 else "other")
        scope = await bench.decide(group="mine")
        stopped = []
        while (answer := await bench.dog.carry_out(0, step=10, hits=2))[0] != "settled":
            stopped.append(answer[1])
        assert (max(stopped), sum(stopped) + answer[1]) == (2, 5)
        assert (await bench.look(scope)).counts["cancelled"] == 5


async def test_a_failure_after_the_decision_does_not_bring_a_rule_for_failed_jobs_back(url: str) -> None:
    """Innocent when its failure was recorded, it waits for its retry, and is not hit by the walk."""
    async with Bench(url) as bench:
        held = await bench.run(retries=1)
        await bench.decide(where="failures >= 1")
        assert await bench.settle(V.RETRY, held, "failed", cause="error", delay_s=1) == ("settled", "scheduled")
        await bench.walk()
        assert await bench.state(held.jid) is S.SCHEDULED


async def test_the_age_of_a_job_is_that_at_the_decision(url: str) -> None:
    async with Bench(url) as bench:
        young = await bench.enqueue()
        bench.clock.advance(5)
        scope = await bench.decide(where="age > 10")
        bench.clock.advance(60)
        await bench.walk()
        assert await bench.state(young) is S.QUEUED
        assert (await bench.look(scope)).state is ScopeState.SETTLED


async def test_a_standing_rule_hits_those_who_come_later_until_it_is_over(url: str) -> None:
    async with Bench(url) as bench:
        until = datetime.fromtimestamp(bench.clock.now_ms / 1000 + 60, UTC)
        there = await bench.enqueue(**MINE)
        scope = await bench.decide(how={**WISH, "standing": True, "until": until}, **MINE)
        assert await bench.admit("now", on_cancel="always", **MINE) == ("fenced", S.CANCELLED)
        assert await bench.walk() == 1
        assert (await bench.look(scope)).state is ScopeState.STANDING
        assert await bench.admit("delayed", delay_s=5, **MINE) == ("fenced", S.CANCELLED)
        assert await bench.admit("other", group="h") == ("enqueued", S.QUEUED)
        job = await bench.job("now")
        assert (job.ended, job.cause, job.scope, job.reason) == (Ended.BEFORE_START, "scope", scope, "too much")
        assert job.hook is not None
        assert await bench.events("now") == ["enqueued", "requested", "finalized"]
        assert await bench.redis.pttl(bench.a.job_key("now")) > 0
        bench.clock.advance(60)
        assert await bench.admit("later", **MINE) == ("enqueued", S.QUEUED)
        await bench.walk()
        look = await bench.look(scope)
        assert (look.state, look.counts["cancelled"]) == (ScopeState.SETTLED, 3)
        assert await bench.state(there) is S.CANCELLED
        assert await bench.redis.exists(bench.a.keys(0).rules) == 0


async def test_a_standing_rule_sees_a_newcomer_as_it_would_be_admitted(url: str) -> None:
    async with Bench(url) as bench:
        standing = {"standing": True}
        await bench.decide(where="state == 'scheduled' and age >= 0", how=standing)
        bench.clock.advance(10)
        assert await bench.admit("now") == ("enqueued", S.QUEUED)
        assert await bench.admit("later", delay_s=1) == ("fenced", S.CANCELLED)


async def test_a_fenced_job_leaves_no_entry_and_no_timer(url: str) -> None:
    async with Bench(url) as bench:
        await bench.decide(how={"standing": True}, kind="k")
        assert await bench.admit("job", expires=1000) == ("fenced", S.CANCELLED)
        assert await bench.entries() == []
        assert await bench.timer("job") is None
        assert not await bench.is_marked("job")
        assert await bench.admit("job", call="other") == ("in_use", S.CANCELLED)


async def test_the_same_enqueue_sent_again_is_told_again_that_it_was_fenced(url: str) -> None:
    async with Bench(url) as bench:
        scope = await bench.decide(how={"standing": True}, kind="k")
        for _ in range(2):
            assert await bench.admit("job", call="one") == ("fenced", S.CANCELLED)
        assert (await bench.look(scope)).counts["cancelled"] == 1


async def test_a_tombstone_is_used_up_before_a_standing_rule_is_asked(url: str) -> None:
    async with Bench(url) as bench:
        scope = await bench.decide(how={"standing": True}, kind="k")
        await bench.cancel("job", tombstone_s=60)
        assert await bench.admit("job") == ("tombstoned", S.CANCELLED)
        assert (await bench.look(scope)).counts["cancelled"] == 0


# Deciding and taking back -----------------------------------------------------------------------------------


async def test_a_decision_that_is_sent_again_changes_nothing(url: str) -> None:
    async with Bench(url) as bench:
        await bench.decide("scope", **MINE)
        before = await bench.snapshot()
        await bench.decide("scope", **MINE)
        assert await bench.snapshot() == before
        await bench.scopes.revoke("scope")
        before = await bench.snapshot()
        await bench.decide("scope", **MINE)
        assert await bench.snapshot() == before


async def test_there_are_only_so_many_live_rules(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "LIVE_RULES", 2)
    async with Bench(url) as bench:
        await bench.decide("one", kind="k")
        await bench.walk()  # it is settled and does not count any more
        await bench.decide("two", how={"standing": True}, kind="l")
        await bench.walk()  # what this leaves behind is no rule
        await bench.decide("three", kind="m")
        before = await bench.snapshot()
        with pytest.raises(TooManyRules, match="2 rules are live"):
            await bench.decide("four", kind="n")
        await bench.decide("three", kind="m")
        assert await bench.snapshot() == before
        await bench.walk()
        await bench.decide("four", kind="n")


async def test_a_rule_that_was_revoked_stops_nothing_more(url: str) -> None:
    async with Bench(url) as bench:
        hit, spared = await put_in(bench, S.QUEUED, **MINE), await put_in(bench, S.QUEUED, **MINE)
        scope = await bench.decide(how={"standing": True}, **MINE)
        assert (await bench.begin(hit)).word == "stale"
        assert await bench.scopes.revoke(scope) is ScopeState.REVOKED
        assert (await bench.begin(spared)).word == "started"
        assert await bench.admit("later", **MINE) == ("enqueued", S.QUEUED)
        assert await bench.walk() == 0
        look = await bench.look(scope)
        assert (look.state, look.counts["cancelled"], look.done) == (ScopeState.REVOKED, 1, True)
        assert await bench.scopes.revoke(scope) is ScopeState.REVOKED
        assert 0 < await bench.redis.pttl(bench.a.keys(0).scope(scope)) <= 86_400_000


async def test_what_is_settled_cannot_be_revoked(url: str) -> None:
    async with Bench(url) as bench:
        scope = await bench.decide(**MINE)
        await bench.walk()
        assert await bench.scopes.revoke(scope) is ScopeState.SETTLED
        assert await bench.scopes.revoke("nobody") is None
        assert (await bench.look(scope)).state is ScopeState.SETTLED


async def test_a_revoked_rule_takes_no_other_with_it(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED, **MINE)
        kept, gone = await bench.decide(**MINE), await bench.decide(kind="k")
        await bench.scopes.revoke(gone)
        assert [rule.id for rule in await bench.scopes.rules()] == [kept]
        assert (await bench.begin(held)).word == "stale"


async def test_rules_can_be_looked_at_while_they_live(url: str) -> None:
    async with Bench(url) as bench:
        one = await bench.decide(how={**WISH, "grace_s": 2.0}, **MINE)
        two = await bench.decide(how={"standing": True}, kind="k")
        first, second = await bench.scopes.rules()
        assert (first.id, first.reason, first.source, first.grace_s, first.standing) == (
            one,
            *WISH.values(),
            2.0,
            False,
        )
        assert (second.id, second.standing, second.state, second.until) == (two, True, ScopeState.SETTLING, None)
        await bench.walk()
        assert [(rule.id, rule.state) for rule in await bench.scopes.rules()] == [(two, ScopeState.STANDING)]


# The walk ---------------------------------------------------------------------------------------------------


async def _many(bench: Bench, count: int) -> list[str]:
    """So many jobs of the group in each of three queues and of the scheduled ones, and some that wait and run."""
    jobs = [
        NewJob(f"{place}-{n}", "k", place, b"p", 60_000 if place == "delayed" else 0, ("group", "g"))
        for n in range(count)
        for place in ("q1", "q2", "q3", "delayed")
    ]
    await bench.a.enqueue(jobs, call="many")
    others = [await put_in(bench, state, **MINE) for state in (S.RUNNING, S.WAITING) for _ in range(3)]
    return [job.jid for job in jobs] + [held.jid for held in others]


@pytest.mark.parametrize("step", [1, 7, 500])
async def test_a_walk_comes_by_every_job_in_bounded_steps(url: str, step: int) -> None:
    async with Bench(url) as bench:
        jids = await _many(bench, 10)
        spared = await bench.enqueue(group="h")
        scope = await bench.decide(**MINE)
        words = []
        while (answer := await bench.dog.carry_out(0, step=step))[0] != "idle":
            assert answer[1] <= max(step, 10), "a small sorted set is looked at as a whole"
            words.append(answer[0])
        assert words == ["more"] * (len(words) - 1) + ["settled"]
        assert {await bench.state(jid) for jid in jids} == {S.CANCELLED, S.CANCELLING}
        look = await bench.look(scope)
        assert (look.counts, look.unfinished) == ({"cancelled": 40, "signalled": 6}, 6)
        assert await bench.state(spared) is S.QUEUED
        assert await bench.redis.exists(bench.a.keys(0).walk, bench.a.keys(0).rules) == 0


async def test_a_walk_goes_through_large_sets_while_they_shrink(url: str) -> None:
    async with Bench(url) as bench:
        jobs = [NewJob(f"job-{n}", "k", QUEUE, b"p", 60_000, ("group", "g" if n % 2 else "h")) for n in range(600)]
        await bench.a.enqueue(jobs, call="many")
        await bench.decide(**MINE)
        assert await bench.walk(step=20) == 300
        assert await bench.redis.zcard(bench.a.keys(0).scheduled) == 300


async def test_any_number_of_watchdogs_may_walk(url: str) -> None:
    async with Bench(url) as bench:
        jids = await _many(bench, 20)
        scope = await bench.decide(**MINE)

        async def watch(by: Any) -> int:
            hits, word = 0, ""
            while word != "idle":
                word, hit = await by.carry_out(0, step=3)
                hits += hit
            return hits

        assert sum(await asyncio.gather(*(watch(by) for by in (bench.a, bench.b, bench.dog)))) == len(jids)
        look = await bench.look(scope)
        assert sum(look.counts.values()) == len(jids)
        assert look.state is ScopeState.SETTLED


async def test_one_walk_settles_every_rule_that_was_there(url: str) -> None:
    async with Bench(url) as bench:
        await _many(bench, 3)
        scopes = [await bench.decide(kind=kind) for kind in ("l", "m", "n")]
        calls = 0
        while (await bench.dog.carry_out(0, step=2))[0] != "settled":
            calls += 1
        assert {(await bench.look(scope)).state for scope in scopes} == {ScopeState.SETTLED}
        assert (await bench.dog.carry_out(0, step=2))[0] == "idle"
        await bench.decide(kind="o")
        while (await bench.dog.carry_out(0, step=2))[0] != "settled":
            calls -= 1
        assert calls == 0


async def test_a_rule_that_is_decided_during_a_walk_gets_one_of_its_own(url: str) -> None:
    async with Bench(url) as bench:
        passed = [await bench.enqueue(delay_s=60, group="h") for _ in range(3)]
        await bench.enqueue(**MINE)
        first = await bench.decide(**MINE)
        assert await bench.dog.carry_out(0, step=10) == ("more", 0)
        second = await bench.decide(group="h")
        while (await bench.dog.carry_out(0, step=10))[0] != "settled":
            pass
        assert [(await bench.look(scope)).state for scope in (first, second)] == [
            ScopeState.SETTLED,
            ScopeState.SETTLING,
        ]
        await bench.walk()
        assert {await bench.state(jid) for jid in passed} == {S.CANCELLED}
        assert (await bench.look(second)).state is ScopeState.SETTLED


async def test_a_walk_goes_on_when_its_rule_is_revoked_and_the_next_one_gets_its_own(url: str) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue(delay_s=60, group="h")
        await bench.enqueue(**MINE)
        await bench.scopes.revoke(await bench.decide(**MINE))
        gone = await bench.decide(**MINE)
        assert (await bench.dog.carry_out(0, step=1))[0] == "more"
        await bench.scopes.revoke(gone)
        await bench.decide(group="h")
        await bench.walk()
        assert await bench.state(jid) is S.CANCELLED


async def test_a_walk_is_over_when_every_rule_has_been_revoked(url: str) -> None:
    async with Bench(url) as bench:
        await _many(bench, 20)
        scope = await bench.decide(group="nobody's")
        assert (await bench.dog.carry_out(0, step=10))[0] == "more"
        await bench.scopes.revoke(scope)
        assert await bench.dog.carry_out(0, step=10) == ("idle", 0)
        assert await bench.redis.exists(bench.a.keys(0).walk) == 0


async def test_a_standing_rule_is_walked_once_and_not_again(url: str) -> None:
    async with Bench(url) as bench:
        await bench.enqueue(**MINE)
        await bench.decide(how={"standing": True}, **MINE)
        assert await bench.walk() == 1
        assert await bench.dog.carry_out(0, step=1) == ("idle", 0)
        assert await bench.redis.exists(bench.a.keys(0).walk) == 0


async def test_a_walk_says_how_far_it_is(url: str) -> None:
    async with Bench(url) as bench:
        for n in range(4):
            await bench.enqueue(f"job-{n}", **MINE)
        scope = await bench.decide(**MINE)
        seen = []
        for _ in range(4):
            await bench.dog.carry_out(0, step=2)
            look = await bench.look(scope)
            seen.append((look.examined, look.total))
        assert seen == [(0, 4), (0, 4), (2, 4), (4, 4)]


async def test_a_walk_that_began_before_a_rule_says_nothing_of_it(url: str) -> None:
    async with Bench(url) as bench:
        await bench.enqueue(**MINE)
        before = await bench.decide(**MINE)
        await bench.dog.carry_out(0, step=1)
        scope = await bench.decide(**MINE)
        look = await bench.look(scope)
        assert (look.state, look.examined, look.total) == ("settling", 0, 0)
        assert (await bench.look(before)).total == 1


# What is known of it ----------------------------------------------------------------------------------------


async def test_a_scope_is_done_when_all_that_it_stopped_have_ended(url: str) -> None:
    async with Bench(url) as bench:
        await bench.enqueue(**MINE)
        confirmed, late, kept = [await put_in(bench, S.RUNNING, **MINE) for _ in range(3)]
        scope = await bench.decide(**MINE)
        assert not (await bench.look(scope)).done
        await bench.walk()
        look = await bench.look(scope)
        assert (look.state, look.unfinished, look.done) == (ScopeState.SETTLED, 3, False)
        await bench.settle(V.FINISH, confirmed, "failed", observed=True)
        await bench.settle(V.FINISH, kept, keep=True)
        bench.clock.advance(DEADLINE_S)
        await bench.finalize(late.jid)
        look = await bench.look(scope)
        assert (look.unfinished, look.done) == (0, True)
        assert look.counts == {"cancelled": 1, "signalled": 3}
        assert look.endings == {"before_start": 1, "confirmed": 1, "abandoned": 1, "succeeded": 1}


async def test_late_success_after_children_takes_a_job_once_off_those_that_its_scope_waits_for(url: str) -> None:
    async with Bench(url) as bench:
        held = await bench.run(**MINE)
        await bench.spawn(held, "child")
        await bench.settle(V.FINISH, await bench.run("child"))
        other = await put_in(bench, S.RUNNING, **MINE)
        scope = await bench.decide(**MINE)
        await bench.walk()
        assert (await bench.look(scope)).unfinished == 2
        assert await bench.settle(V.FINISH, held, keep=True) == ("settled", "succeeded")
        look = await bench.look(scope)
        assert (look.unfinished, look.endings) == (1, {"succeeded": 1})
        await bench.settle(V.FINISH, other)
        assert (await bench.look(scope)).unfinished == 0


@pytest.mark.parametrize("last", ["walk", "ending", "revoke"])
async def test_a_word_on_the_done_channel_says_that_a_scope_may_be_done(url: str, last: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, **MINE) if last == "ending" else None
        scope = await bench.decide(**MINE)
        async with bench.redis.pubsub() as listening:
            await listening.subscribe(bench.a.done_prefix + scope.encode())
            assert (await listening.get_message(timeout=10))["type"] == "subscribe"
            if last == "revoke":
                await bench.scopes.revoke(scope)
            else:
                await bench.walk()
            if held is not None:
                await bench.redis.publish(bench.a.done_prefix + scope.encode(), "not yet")
                assert (await listening.get_message(timeout=10))["data"] == b"not yet"
                await bench.settle(V.FINISH, held)
            message = await listening.get_message(ignore_subscribe_messages=True, timeout=10)
            assert message["data"] == (b"revoked" if last == "revoke" else b"settled")
        assert (await bench.look(scope)).done


async def test_an_announcement_goes_to_every_worker_when_a_rule_is_decided(url: str) -> None:
    async with Bench(url) as bench, bench.redis.pubsub() as listening:
        await listening.subscribe(bench.a.rules_channel)
        assert (await listening.get_message(timeout=10))["type"] == "subscribe"
        await bench.decide(**MINE)
        assert (await listening.get_message(timeout=10))["data"] == b"rule"


async def test_nothing_is_counted_for_a_scope_that_nobody_knows_any_more(url: str) -> None:
    """Its counts have expired, and a job that it stopped ends only now: no key without an expiry comes of that."""
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, **MINE)
        scope = await bench.decide(**MINE)
        await bench.walk()
        assert await bench.redis.pttl(bench.a.keys(0).scope(scope)) > 0
        await bench.redis.delete(bench.a.keys(0).scope(scope))
        await bench.settle(V.FINISH, held)
        assert await bench.redis.exists(bench.a.keys(0).scope(scope)) == 0
        assert await bench.scopes.look(scope) is None


async def test_settling_a_rule_whose_counts_are_gone_makes_no_new_ones(url: str) -> None:
    async with Bench(url) as bench:
        await bench.enqueue(**MINE)
        scope = await bench.decide(**MINE)
        await bench.redis.delete(bench.a.keys(0).scope(scope))
        assert await bench.walk() == 1
        assert await bench.redis.exists(bench.a.keys(0).scope(scope), bench.a.keys(0).rules) == 0


@pytest.mark.parametrize("state", LIVE)
async def test_a_look_shows_what_has_been_decided_before_the_record_does(url: str, state: State) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, state, **MINE)
        other = await bench.enqueue(group="h")
        scope = await bench.decide(how=WISH, **MINE)
        before = await bench.snapshot()
        mine, others, nobody = await bench.a.look(0, [held.jid, other, "nobody"])
        assert await bench.snapshot() == before
        assert mine.wish == ("scope", "too much", "ops", scope)
        assert (others.wish, nobody.record, nobody.wish) == (None, {}, None)
        await bench.walk()
        assert (await bench.a.look(0, [held.jid]))[0].wish is None


@pytest.mark.parametrize("settled", [True, False])
async def test_a_long_queue_under_a_live_rule_hides_no_job_from_the_list_of_cancelled_ones(
    url: str, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    """The rule hits none of them; a list looks at so many records only."""
    monkeypatch.setattr(listing, "STEP", 2)
    monkeypatch.setattr(listing, "SCAN_MOST", 8)
    async with Bench(url) as bench:
        gone = await bench.enqueue(delay_s=DELAY_S)
        await bench.cancel(gone)
        await _many(bench, 20)
        await bench.decide(group="nobody's", how={"standing": True})
        if settled:
            await bench.walk()
        found = await Reader(bench.a).jobs(states=[S.CANCELLED])
        assert [job.jid for job in found] == [gone]


async def test_a_look_says_nothing_about_a_job_that_has_ended(url: str) -> None:
    """A failed child of a cancelled parent hands on the wish, and has none itself."""
    async with Bench(url) as bench:
        parent = await put_in(bench, S.RUNNING)
        child = await bench.run(await bench.enqueue("child", parent=parent.jid))
        await bench.settle(V.FINISH, child, "failed")
        await bench.cancel(parent.jid)
        assert (await bench.a.look(0, ["child"]))[0].wish is None


async def test_a_survey_counts_what_a_rule_would_hit_and_changes_nothing(url: str) -> None:
    async with Bench(url) as bench:
        for state in LIVE:
            await put_in(bench, state, **MINE)
        await put_in(bench, S.SUCCEEDED, **MINE)
        await bench.enqueue(group="h")
        before = await bench.snapshot()
        survey, cutoffs = await bench.scopes.survey(Filter(**MINE))
        assert await bench.snapshot() == before
        assert (survey.jobs, survey.kinds, survey.queues) == (4, {"k": 4}, {QUEUE: 4})
        assert survey.states == {"queued": 1, "running": 1, "scheduled": 1, "waiting": 1}
        assert (await bench.scopes.survey(Filter(**MINE)))[0].digest == survey.digest
        assert cutoffs == {0: 7}
        jid = await bench.enqueue(**MINE)
        assert (await bench.scopes.survey(Filter(**MINE)))[0].digest != survey.digest
        await bench.cancel(jid)
        assert (await bench.scopes.survey(Filter(**MINE)))[0].digest == survey.digest
        await bench.decide(group="g")
        assert (await bench.scopes.survey(Filter(**MINE)))[0].jobs == 0, "what has been decided to stop is not counted"


async def test_a_survey_goes_through_long_queues_in_steps(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "STEP", 7)
    async with Bench(url) as bench:
        jids = await _many(bench, 9)
        assert (await bench.scopes.survey(Filter(**MINE)))[0].jobs == len(jids)
        assert (await bench.scopes.survey(Filter(everything=True)))[0].jobs == len(jids) + 3
        assert CHILD_DELAY_S > DELAY_S


async def test_a_survey_leaves_out_what_is_being_cancelled_already(url: str) -> None:
    async with Bench(url) as bench:
        await put_in(bench, S.CANCELLING, **MINE)
        await bench.cancel(await bench.enqueue(**MINE))
        assert (await bench.scopes.survey(Filter(**MINE)))[0].jobs == 0


async def test_a_worker_with_a_good_lease_is_asked_itself(url: str) -> None:
    """A reclaim that finds a good lease changes nothing at all."""
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, **MINE)
        await bench.beat()
        await bench.decide(**MINE)
        assert (await bench.reclaim(held))[0] == "alive"
        assert await bench.state(held.jid) is S.RUNNING
