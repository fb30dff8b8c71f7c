"""
One call that settles many jobs says once what they share, and of each what is its own.

What is shared: the words of an ending, the table of facts by which jobs are judged, lines of the bus-wide log. Each job
here differs from the one before it in what a shared thing could get wrong.
"""

from __future__ import annotations

from collections import defaultdict

import pytest

from busq.protocol.job import LoggedEvent
from busq.protocol.states import State, Verb
from busq.store.forms import Note, Settlement
from busq.store.reader import Reader
from tests.store.bench import CHILD_DELAY_S, DELAY_S, QUEUE, Bench, put_in

MINE = {"group": "g"}


async def logged(bench: Bench) -> list[LoggedEvent]:
    return await Reader(bench.a).log(limit=10_000)


async def ended_by(bench: Bench, jid: str) -> tuple[str | None, str]:
    job = await bench.job(jid)
    assert job.state is State.CANCELLED
    return job.scope, job.reason


async def test_each_job_of_one_walk_is_told_why_it_itself_was_stopped(url: str) -> None:
    async with Bench(url) as bench:
        jids = [await bench.enqueue(group=group) for group in "ghgh"]
        scopes = {g: await bench.decide(how={"reason": f"of {g}"}, group=g) for g in "gh"}
        assert await bench.walk() == 4
        for jid, group in zip(jids, "ghgh", strict=True):
            assert await ended_by(bench, jid) == (scopes[group], f"of {group}")
            *_, requested, _ = await bench.history(jid)
            assert requested.facts == f"scope {scopes[group]}: of {group}"


async def test_a_walk_goes_on_with_the_history_that_each_job_has(url: str) -> None:
    """Queued at once, promoted, and after one attempt and after two: other counts of lines, other attempts."""
    async with Bench(url) as bench:
        fresh, promoted = await bench.enqueue(**MINE), await bench.enqueue(delay_s=DELAY_S, **MINE)
        begun = []
        for times in (1, 2):
            begun.append(await bench.enqueue(**MINE))
            held = await bench.take(begun[-1])
            for _ in range(times):
                await bench.begin(held, retries=9)
                await bench.settle(Verb.RELEASE, held)
                held = await bench.take(held.jid)
        bench.clock.advance(DELAY_S)
        await bench.promote(promoted)
        last = await bench.enqueue(**MINE)
        jids = [fresh, promoted, *begun, last]
        before = {jid: await bench.history(jid) for jid in jids}
        await bench.decide(**MINE)
        assert await bench.walk() == len(jids)
        for jid in jids:
            *told, requested, finalized = await bench.history(jid)
            assert told == before[jid]
            assert (await bench.record(jid))[b"n"] == b"%d" % (len(told) + 2)
            assert (requested.name, finalized.name) == ("requested", "finalized")
            assert requested.attempt == finalized.attempt == (await bench.job(jid)).attempt == told[-1].attempt


async def test_two_jobs_with_as_many_lines_and_other_attempts_are_told_apart(url: str) -> None:
    async with Bench(url) as bench:
        noted, begun = await bench.enqueue(**MINE), await bench.enqueue(**MINE)
        held = await bench.take(begun)
        await bench.begin(held, retries=9)
        await bench.settle(Verb.RELEASE, held)
        for _ in range(2):  # refused and not started: lines of history, and no attempt
            line = f"handed_back\t{bench.clock.now_ms}\t0\ta\tunknown_kind"
            n = await bench.redis.hincrby(bench.a.job_key(noted), "n", 1)
            await bench.redis.hset(bench.a.job_key(noted), f"e{n}", line)
        assert len(await bench.history(noted)) == len(await bench.history(begun))
        await bench.decide(**MINE)
        assert await bench.walk() == 2
        assert [(await bench.history(jid))[-1].attempt for jid in (noted, begun)] == [0, 1]


async def test_a_job_of_a_key_that_a_walk_stops_leaves_the_key_free(url: str) -> None:
    async with Bench(url) as bench:
        await bench.enqueue(key="k", **MINE)
        await bench.decide(**MINE)
        assert await bench.walk() == 1
        assert await bench.redis.hgetall(bench.a.keys(0).keyed) == {}


async def test_a_walk_asks_a_job_for_the_hook_that_its_producer_named(url: str) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue(on_cancel="always", **MINE)
        await bench.decide(**MINE)
        assert await bench.walk() == 1
        assert (await bench.job(jid)).hook


async def test_a_walk_asks_a_job_for_the_hook_that_a_start_has_named(url: str) -> None:
    async with Bench(url) as bench:
        held = await bench.take(await bench.enqueue(**MINE))
        await bench.begin(held, retries=9, occasion="attempted")
        await bench.settle(Verb.RELEASE, held)
        await bench.decide(**MINE)
        assert await bench.walk() == 1
        assert (await bench.job(held.jid)).hook


async def test_a_child_that_a_walk_stops_is_counted_out_by_its_parent(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, State.RUNNING)
        child = await bench.enqueue(parent=held.jid, **MINE)
        await bench.decide(**MINE)
        assert await bench.walk() == 1
        assert (await bench.state(child), (await bench.job(held.jid)).open_children) == (State.CANCELLED, 0)


async def test_a_job_is_judged_by_what_it_is_and_not_by_its_parent(url: str) -> None:
    """The rule reaches the child from above; the parent runs, and the child is scheduled."""
    async with Bench(url) as bench:
        held = await put_in(bench, State.RUNNING, **MINE)
        child = await bench.enqueue(delay_s=CHILD_DELAY_S, parent=held.jid)
        scope = await bench.decide(**MINE)
        assert await bench.walk() >= 1
        await bench.pass_on()
        assert (await bench.job(held.jid)).scope == scope
        assert (await bench.state(child), await bench.redis.zcard(bench.a.keys(0).scheduled)) == (State.CANCELLED, 0)


@pytest.mark.parametrize("what", ["args.path == 'b'", "tags.colour == 'b'"])
async def test_what_was_read_of_one_job_is_not_taken_for_the_next(url: str, what: str) -> None:
    payloads = {letter: b"\x01\x92\x90\x81\xa4path\xa1" + letter.encode() for letter in "ab"}
    async with Bench(url) as bench:
        jids = [await bench.enqueue(payload=payloads[letter], tags=f'{{"colour": "{letter}"}}') for letter in "abab"]
        await bench.decide(where=what)
        assert await bench.walk() == 2
        assert [await bench.state(jid) for jid in jids] == [State.QUEUED, State.CANCELLED] * 2


async def test_the_log_tells_of_every_job_of_a_call_in_the_order_of_its_history(url: str) -> None:
    async with Bench(url) as bench:
        jids = [await bench.enqueue(**MINE) for _ in range(70)]
        await bench.decide(**MINE)
        assert await bench.walk() == 70
        told: dict[str, list[str]] = defaultdict(list)
        log = await logged(bench)
        for each in log:
            told[each.jid].append(each.event.name)
        assert told == {jid: ["enqueued", "requested", "finalized"] for jid in jids}
        assert len({each.id for each in log}) == len(log) == 210


async def test_the_log_keeps_the_order_of_a_jobs_lines_where_others_had_them_the_other_way_round(url: str) -> None:
    async with Bench(url) as bench:
        orders = [("one", "two"), ("two", "one"), ("one", "two")]
        ends = []
        for order in orders:
            held = await put_in(bench, State.RUNNING)
            notes = tuple(Note(name) for name in order)
            ends.append(
                Settlement(
                    jid=held.jid, entry=held.entry, token=held.token, attempt=1, outcome="succeeded", notes=notes
                )
            )
        await bench.a.settle(Verb.FINISH, 0, QUEUE, ends)
        log = await logged(bench)
        for end, order in zip(ends, orders, strict=True):
            assert tuple(each.event.name for each in log if each.jid == end.jid)[2:4] == order


async def test_an_entry_of_the_log_holds_a_bounded_number_of_lines_and_of_jobs(url: str) -> None:
    async with Bench(url) as bench:
        for _ in range(100):
            await bench.enqueue(**MINE)
        for group in range(12):  # and as many lines that nobody shares
            await bench.enqueue(group=f"g{group}")
            await bench.decide(group=f"g{group}")
        await bench.decide(**MINE)
        assert await bench.walk() == 112
        entries = await bench.redis.xrange(bench.a.keys(0).events)
        sizes = [[len(line.split(b"\t")[0].split(b" ")) for line in fields.values()] for _, fields in entries]
        assert max(map(len, sizes)) <= 8
        assert max(map(sum, sizes)) <= 32
        assert sum(map(sum, sizes)) == 3 * 112
        assert len(entries) < 112 + 20, "lines are shared"


async def test_jobs_with_ties_count_as_two_of_those_that_one_step_may_stop(url: str) -> None:
    async with Bench(url) as bench:
        for n in range(6):
            await bench.enqueue(key=f"k{n}", **MINE)
        for _ in range(6):
            await bench.enqueue(**MINE)
        await bench.decide(**MINE)
        hits = [(await bench.dog.carry_out(0, step=6, hits=4))[1] for _ in range(8)]
        assert [hit for hit in hits if hit] == [2, 2, 2, 4, 2]
