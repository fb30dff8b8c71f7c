"""
Rules of a newer busq, which this version cannot judge: what they may cover waits for those who can.

Three promises hold together. Nothing starts here that such a rule may cover; nothing else is held up by it; and
whoever passes it over leaves no trace that would keep a newer worker or watchdog from carrying it out.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from busq.protocol.cancel import Cause
from busq.protocol.states import State, Verb
from busq.store.forms import Refusal
from tests.store.bench import QUEUE, Bench, Held, make_newer, put_in

S = State

NEWER: dict[str, dict[str, Any]] = {
    "another operator": {"condition": ["=*", {"f": "kind"}, {"v": "k"}]},
    "another field": {"condition": ["==", {"f": "place"}, {"v": "k"}]},
    "another sort of node": {"condition": ["near", [1, 2]]},
    "deep inside": {"condition": ["and", ["or", ["not", ["xor", ["==", {"f": "kind"}, {"v": "k"}]]]]]},
    "another sort of operand": {"condition": ["==", {"f": "kind"}, {"env": "HOME"}]},
    "a path in other words": {"condition": ["==", {"f": "args", "p": [["a", "b"]]}, {"v": 1}]},
    "no path": {"condition": ["==", {"f": "tags"}, {"v": 1}]},
    "descendants of something else": {"condition": ["under", {"group": "g"}]},
    "no condition": {"condition": None},
    "a version in front": {"version": 2},
}


@pytest.mark.parametrize("how", NEWER)
async def test_what_a_newer_rule_may_cover_does_not_start_and_is_left_as_it_is(url: str, how: str) -> None:
    async with Bench(url) as bench:
        held = await bench.take(await bench.enqueue())
        await make_newer(bench, await bench.decide(kind="k"), **NEWER[how])
        before = await bench.record(held.jid)
        answer = await bench.begin(held)
        assert (answer.word, answer.detail) == ("unjudged", "1")
        assert await bench.record(held.jid) == before
        assert list(await bench.pending()) == [held.entry]


async def test_garbage_among_the_rules_keeps_everything_from_starting_and_nothing_from_ending(url: str) -> None:
    async with Bench(url) as bench:
        running = await bench.run()
        held = await bench.take(await bench.enqueue())
        await bench.redis.hset(bench.a.keys(0).rules, mapping={"7": b"\xff\x00 no rule", "newest": 7})
        assert (await bench.begin(held)).word == "unjudged"
        assert await bench.settle(Verb.FINISH, running) == ("settled", "succeeded")
        assert await bench.admit("another") == ("enqueued", S.QUEUED)
        assert (await bench.cancel(held.jid)).verdict == "cancelled"


async def test_a_newer_rule_decides_once_it_can_be_judged_whoever_passed_it_over(url: str) -> None:
    """Every script that this version has comes by first; the rule still hits what was there, and nothing else."""
    async with Bench(url) as bench:
        queued, given_back, hidden = [await bench.take(await bench.enqueue()) for _ in range(3)]
        scheduled = await bench.enqueue(delay_s=10)
        running = await bench.run()
        back = await make_newer(bench, await bench.decide(kind="k"))
        later = await bench.enqueue()
        await bench.begin(queued)
        await bench.begin(hidden)
        await bench.beat(held=[running])
        await bench.a.refuse(0, QUEUE, [Refusal(jid=given_back.jid, entry=given_back.entry, why="no_slot")])
        bench.clock.advance(10)
        await bench.promote(scheduled)
        assert await bench.walk() == 0
        await bench.settle(Verb.RELEASE, running)
        for jid in (queued.jid, given_back.jid, hidden.jid, scheduled, running.jid, later):
            assert await bench.state(jid) is S.QUEUED
        await back()
        assert (await bench.begin(hidden)).word == "stale"
        await bench.walk()
        for jid in (queued.jid, given_back.jid, hidden.jid, scheduled, running.jid):
            assert (await bench.job(jid)).cause == Cause.SCOPE
        assert await bench.state(later) is S.QUEUED


async def test_a_standing_newer_rule_hits_those_who_came_while_nobody_could_judge_it(url: str) -> None:
    async with Bench(url) as bench:
        scope = await bench.decide(kind="k", how={"standing": True})
        await bench.walk()
        back = await make_newer(bench, scope)
        jid, other = await bench.enqueue(), await bench.enqueue(kind="other")
        held, free = [each for each in await bench.read() if each.jid in (jid, other)]
        assert (await bench.begin(Held(held.jid, held.id))).word == "unjudged"
        assert (await bench.begin(Held(free.jid, free.id), kind="other")).word == "unjudged"
        await back()
        assert (await bench.begin(Held(held.jid, held.id))).word == "stale"
        assert (await bench.job(jid)).scope == scope
        assert (await bench.begin(Held(free.jid, free.id), kind="other")).word == "started"


async def test_a_standing_newer_rule_that_is_over_covers_nobody_who_came_later(url: str) -> None:
    async with Bench(url) as bench:
        until = bench.clock.now_ms / 1000 + 10
        scope = await bench.decide(kind="k", how={"standing": True, "until": datetime.fromtimestamp(until, UTC)})
        await make_newer(bench, scope)
        bench.clock.advance(10)
        assert (await bench.begin(await bench.take(await bench.enqueue()))).word == "started"


async def test_jobs_that_a_newer_rule_cannot_cover_start_and_ended_ones_stay_ended(url: str) -> None:
    async with Bench(url) as bench:
        ended = await put_in(bench, S.SUCCEEDED)
        await make_newer(bench, await bench.decide(kind="k"))
        assert (await bench.begin(await bench.take(await bench.enqueue()))).word == "started"
        assert await bench.walk() == 0
        assert await bench.state(ended.jid) is S.SUCCEEDED


async def test_a_job_beside_one_in_doubt_starts(url: str) -> None:
    async with Bench(url) as bench:
        await bench.enqueue()
        await make_newer(bench, await bench.decide(kind="k"))
        await bench.enqueue()
        doubtful, free = await bench.read()
        assert [answer.word for answer in await bench.start_all([doubtful, free])] == ["unjudged", "started"]


async def test_a_child_does_not_start_while_nobody_can_say_whether_its_parent_is_to_stop(url: str) -> None:
    """Twice in one call, for what is known of a parent is remembered there."""
    async with Bench(url) as bench:
        parent = await bench.run(kind="k")
        back = await make_newer(bench, await bench.decide(kind="k"))
        for _ in range(2):
            await bench.enqueue(parent=parent.jid)
        one, other = await bench.read()
        started = await bench.start_all([one, other])
        assert [answer.word for answer in started] == ["unjudged", "unjudged"]
        await back()
        assert [answer.word for answer in await bench.start_all([one, other])] == ["stale", "stale"]


async def test_readable_rules_beside_a_newer_one_go_on_to_decide(url: str) -> None:
    async with Bench(url) as bench:
        hit = await bench.take(await bench.enqueue(group="g"))
        spared = await bench.take(await bench.enqueue())
        await make_newer(bench, await bench.decide(kind="nobody"))
        scope = await bench.decide(group="g")
        assert (await bench.begin(hit)).word == "stale"
        assert (await bench.job(hit.jid)).scope == scope
        assert (await bench.begin(spared)).word == "unjudged"


async def test_a_watchdog_settles_what_is_older_than_a_newer_rule_and_leaves_the_rest(url: str) -> None:
    async with Bench(url) as bench:
        await bench.enqueue(group="g")
        first = await bench.decide(group="g")
        newer = await bench.decide(kind="k")
        back = await make_newer(bench, newer)
        assert await bench.walk() == 1
        assert ((await bench.look(first)).state, (await bench.look(newer)).state) == ("settled", "settling")
        await bench.enqueue()
        assert await bench.dog.carry_out(0, step=10) == ("idle", 0)
        await back()
        await bench.walk()
        assert (await bench.look(newer)).state == "settled"


async def test_a_walk_that_a_newer_watchdog_has_begun_is_its_own(url: str) -> None:
    """A step by somebody who passes the rule over would skip the jobs that it comes by."""
    async with Bench(url) as bench:
        jids = [await bench.enqueue() for _ in range(6)]
        scope = await bench.decide(kind="k")
        for _ in range(3):
            await bench.dog.carry_out(0, step=2)
        assert [await bench.state(jid) for jid in jids].count(S.CANCELLED) < 6
        back = await make_newer(bench, scope)
        assert await bench.dog.carry_out(0, step=100) == ("idle", 0)
        await back()
        await bench.walk()
        assert [await bench.state(jid) for jid in jids] == [S.CANCELLED] * 6


async def test_a_standing_newer_rule_is_taken_down_by_those_who_can_judge_it(url: str) -> None:
    async with Bench(url) as bench:
        until = bench.clock.now_ms / 1000 + 10
        scope = await bench.decide(kind="k", how={"standing": True, "until": datetime.fromtimestamp(until, UTC)})
        await bench.walk()
        back = await make_newer(bench, scope)
        jid = await bench.enqueue()
        bench.clock.advance(10)
        assert await bench.walk() == 0
        assert (await bench.look(scope)).state == "standing"
        await back()
        assert (await bench.begin(await bench.take(jid))).word == "stale"


async def test_a_start_that_is_sent_again_is_answered_as_before_whatever_was_decided_since(url: str) -> None:
    async with Bench(url) as bench:
        held = await bench.run()
        await make_newer(bench, await bench.decide(kind="k"))
        assert (await bench.begin(held, token=held.token)).word == "started"
        assert (await bench.begin(held, adopt=True)).word == "unjudged"


async def test_revoking_a_newer_rule_lets_everything_start(url: str) -> None:
    async with Bench(url) as bench:
        held = await bench.take(await bench.enqueue())
        scope = await bench.decide(kind="k")
        await make_newer(bench, scope)
        assert (await bench.begin(held)).word == "unjudged"
        await bench.scopes.revoke(scope)
        assert (await bench.begin(held)).word == "started"
