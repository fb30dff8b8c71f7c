"""
A key of another type where a record should be is no record to any verb, and the call deals with the others in it. So it
does where a record lacks a field, or has nonsense in one.

On a real server only: fakeredis tells a script no errors.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest

from busq.config import Settings
from busq.errors import BadRecord, BusUnavailable
from busq.protocol.cancel import CancelRequest, Cause
from busq.protocol.jids import child_jid
from busq.protocol.scope import Filter
from busq.protocol.states import State, Verb
from busq.store.forms import Delivery, KindTerms, Look, NewJob, Note, Refusal, Renewal, Settlement
from busq.store.store import Store
from busq.store.streams import Streams
from tests.servers import RedisServer
from tests.store.bench import DELAY_S, KIND, LEASE_S, QUEUE, Bench, Held, put_in
from tests.store.test_hooks import HOOK, HOOKS, declare, hooks
from tests.store.test_set_back import set_back

S = State
Word = Callable[[Bench, Held], Awaitable[str]]


async def overwrite(bench: Bench, jid: str) -> None:
    key = bench.a.job_key(jid)
    await bench.redis.delete(key)
    await bench.redis.set(key, "no record")


async def _renew(bench: Bench, odd: Held) -> str:
    beside = await bench.run()
    told = await bench.a.renew(0, [Renewal(odd.jid, odd.token), Renewal(beside.jid, beside.token)])
    assert told[1].word == "running"
    return told[0].word


async def _note(bench: Bench, odd: Held) -> str:
    return (await bench.a.note(odd.jid, token=odd.token, attempt=1, note=Note("log", 0, "words"), saved=b""))[0]


async def _refuse(bench: Bench, odd: Held) -> str:
    [(word, _)] = await bench.a.refuse(0, QUEUE, [Refusal(jid=odd.jid, entry=odd.entry, why="no_slot")])
    return word


def _settle(verb: Verb) -> Word:
    async def settle(bench: Bench, odd: Held) -> str:
        return (await bench.settle(verb, odd))[0]

    return settle


async def _finalize(bench: Bench, odd: Held) -> str:
    await bench.redis.zadd(bench.a.keys(0).deadlines, {odd.jid: 1})
    word = (await bench.finalize(odd.jid))[0]
    assert await bench.redis.zscore(bench.a.keys(0).deadlines, odd.jid) is None
    return word


async def _reclaim(bench: Bench, odd: Held) -> str:
    bench.clock.advance(LEASE_S * 2)
    return (await bench.reclaim(odd))[0]


VERBS: dict[str, Word] = {
    "renew": _renew,
    "note": _note,
    "refuse": _refuse,
    "finish": _settle(Verb.FINISH),
    "retry": _settle(Verb.RETRY),
    "release": _settle(Verb.RELEASE),
    "finalize": _finalize,
    "reclaim": _reclaim,
    "promote": lambda bench, odd: _first(bench.promote(odd.jid)),
    "expire": lambda bench, odd: _first(bench.expire(odd.jid)),
}


async def _first(answer: Awaitable[tuple[str, Any]]) -> str:
    return (await answer)[0]


@pytest.mark.parametrize("verb", VERBS)
async def test_to_a_verb_there_is_no_such_job(redis_url: str, verb: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        odd = await bench.run()
        await overwrite(bench, odd.jid)
        assert await VERBS[verb](bench, odd) == "missing"
        assert await bench.redis.get(bench.a.job_key(odd.jid)) == b"no record"


async def test_a_cancel_does_not_find_it(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        odd = await bench.run()
        await overwrite(bench, odd.jid)
        assert (await bench.cancel(odd.jid)).verdict == "not_found"


async def test_a_clock_that_was_set_back_keeps_no_job_beside_it_waiting(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        odd, sound = [await bench.enqueue(delay_s=delay_s) for delay_s in (31, 30)]
        await overwrite(bench, odd)
        await set_back(bench)
        assert (await bench.dog.rewind(0, index="scheduled", rank=0, step=10)).brought == 1
        bench.clock.advance(30)
        assert (await bench.promote(sound))[0] == "promoted"


async def test_a_rule_is_settled_and_counted_without_it(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        odd, sound = [await bench.enqueue(group="g") for _ in range(2)]
        await overwrite(bench, odd)
        assert (await bench.scopes.survey(Filter(group="g")))[0].jobs == 1
        await bench.decide(group="g")
        assert await bench.walk() == 1
        assert await bench.state(sound) is S.CANCELLED


async def test_what_is_below_it_is_judged_all_the_same(redis_url: str) -> None:
    """A rule about all that is below a job stops at what is no record; what is above that is not known."""
    async with Bench(redis_url, strict=False) as bench:
        top = await bench.run()
        between, low = child_jid(top.jid), child_jid(top.jid)
        await bench.enqueue(between, delay_s=DELAY_S, parent=top.jid, own=1)
        await bench.enqueue(low, delay_s=DELAY_S, parent=between, own=1)
        await overwrite(bench, between)
        await bench.decide(descendants_of=top.jid)
        assert await bench.walk() == 0
        assert (await bench.expire(low))[0] == "stale"
        assert await bench.state(low) is S.SCHEDULED


async def test_a_parent_s_cancel_passes_it_by(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        top = await bench.run()
        children = [child_jid(top.jid) for _ in range(3)]
        for jid in children:
            await bench.enqueue(jid, delay_s=DELAY_S, parent=top.jid, own=1)
        await overwrite(bench, children[1])
        await bench.cancel(top.jid)
        assert await bench.pass_on() == 2
        assert [await bench.state(jid) for jid in (children[0], children[2])] == [S.CANCELLED] * 2


async def test_one_that_was_to_pass_a_cancel_on_is_dropped_from_the_list(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        odd = await bench.run()
        await bench.enqueue(child_jid(odd.jid), delay_s=DELAY_S, parent=odd.jid, own=1)
        await bench.cancel(odd.jid)
        await overwrite(bench, odd.jid)
        assert await bench.pass_on() == 0
        assert await bench.redis.zcard(bench.a.keys(0).cascades) == 0


async def test_a_child_ends_below_it(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        top = await bench.run()
        child = child_jid(top.jid)
        await bench.enqueue(child, parent=top.jid, own=1)
        held = await bench.run(child)
        await overwrite(bench, top.jid)
        assert (await bench.settle(Verb.FINISH, held)) == ("settled", "succeeded")


async def test_its_jid_is_in_use_and_those_beside_it_are_admitted_as_a_whole(redis_url: str) -> None:
    """With all that an admission writes when its call is over: a wide cancel finds every one of them."""
    async with Bench(redis_url, strict=False) as bench:
        await bench.redis.set(bench.a.job_key("odd"), "no record")
        jids = ["one", "odd", "two"]
        jobs = [NewJob(jid, KIND, QUEUE, b"\x01payload", fields=("group", "g")) for jid in jids]
        assert await bench.a.enqueue(jobs, call="call") == [
            ("enqueued", S.QUEUED),
            ("in_use", None),
            ("enqueued", S.QUEUED),
        ]
        await bench.decide(group="g")
        assert await bench.walk() == 2
        assert await bench.redis.get(bench.a.job_key("odd")) == b"no record"


async def test_of_one_that_is_started_the_others_are_started_and_told_of_as_a_whole(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        jids = [await bench.enqueue() for _ in range(3)]
        entries = await bench.read()
        await overwrite(bench, jids[1])
        assert [answer.word for answer in await bench.start_all(entries)] == ["started", "missing", "started"]
        assert await bench.redis.hget(bench.a.keys(0).counters, "started") == b"2"


async def test_a_finalizer_is_started_whose_parent_is_none_any_more(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        top = await bench.run()
        await bench.settle(Verb.FINISH, top, finalizer=True)
        [entry] = await bench.read()
        await overwrite(bench, top.jid)
        assert (await bench.begin(Held(entry.jid, entry.id), kind=entry.kind)).word == "started"


async def test_it_gains_no_children(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        top = await bench.run()
        await overwrite(bench, top.jid)
        assert (await bench.spawn(top, child_jid(top.jid)))[0] == "orphan"


async def test_it_may_be_superseded(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        first = await bench.enqueue(key="k", supersede=1, own=1)
        await overwrite(bench, first)
        second = await bench.enqueue(key="k", supersede=1, own=1)
        assert await bench.state(second) is S.QUEUED


async def test_a_hook_runs_whose_job_is_none_any_more(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        await declare(bench)
        held = await put_in(bench, S.CANCELLED)
        [hook] = await hooks(bench)
        await overwrite(bench, held.jid)
        [entry] = await bench.read(queue=HOOKS)
        taken = Held(hook, entry.id, queue=HOOKS)
        assert (await bench.begin(taken, kind=HOOK)).word == "started"
        assert (await bench.settle(Verb.FINISH, taken, hook="succeeded"))[0] == "settled"


async def test_a_cancelled_child_that_is_none_any_more_ends_its_parent_for_no_known_reason(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        top = await bench.run()
        gone, last = child_jid(top.jid), child_jid(top.jid)
        await bench.enqueue(gone, delay_s=DELAY_S, parent=top.jid, own=1)
        await bench.enqueue(last, parent=top.jid, own=1)
        await bench.settle(Verb.FINISH, top)
        await bench.cancel(gone, reason="why")
        held = await bench.run(last)
        await overwrite(bench, gone)
        await bench.settle(Verb.FINISH, held)
        job = await bench.job(top.jid)
        assert (job.state, job.reason) == (S.CANCELLED, f"its child {gone} was cancelled")


async def test_a_user_who_may_not_read_records_is_told_so(own_server: RedisServer) -> None:
    """That is no key of another type: jobs that are there must not be taken for none."""
    async with Bench(own_server.url) as bench:
        held = await bench.run()
        await bench.redis.execute_command("ACL", "SETUSER", "blind", "on", ">pw", "~*", "&*", "+@all")
        url = own_server.url.replace("redis://", "redis://blind:pw@")
        blind = Store(Settings.load({}, url=url), by="blind", clock=bench.clock)
        await blind.open()
        await bench.redis.execute_command("ACL", "SETUSER", "blind", "-hmget")
        try:
            with pytest.raises(BusUnavailable, match="Check the ACL"):
                await blind.renew(0, [Renewal(held.jid, held.token)])
        finally:
            await blind.close()


# Records with a field that is gone, or that is nonsense --------------------------------------------------------------

FIELDS = (
    "n", "attempt", "deadline", "kind", "queue", "seq", "open", "cleared", "enqueued", "terms", "losses", "failures",
    "due", "due_by", "entry", "owner", "own", "requested", "payload", "v", "token", "depth", "state", "cancel_grace",
    "cause",
)  # fmt: skip
LATER_S = 7200.0
Pair = tuple[Held, Held]
Heard = Callable[[Bench, Pair], Awaitable[Sequence[Any]]]


def _in_time(verb: Heard) -> Heard:
    """After every lease, deadline and moment."""

    async def later(bench: Bench, pair: Pair) -> Sequence[Any]:
        bench.clock.advance(LATER_S)
        return await verb(bench, pair)

    return later


def _jids(pair: Pair) -> list[str]:
    return [held.jid for held in pair]


async def _settled_both(verb: Verb, outcome: str, bench: Bench, pair: Pair) -> Sequence[Any]:
    ends = [
        Settlement(jid=held.jid, entry=held.entry, token=held.token, attempt=held.attempt, outcome=outcome)
        for held in pair
    ]
    return await bench.a.settle(verb, 0, QUEUE, ends)


async def _started_both(bench: Bench, pair: Pair) -> Sequence[Any]:
    terms = KindTerms(KIND, 0, 5, 5000, 2000)
    return await bench.a.start(0, QUEUE, [Delivery(h.entry, h.jid, KIND, bench.fresh("t")) for h in pair], [terms])


async def _cancelled_both(bench: Bench, pair: Pair) -> Sequence[Any]:
    return await bench.b.cancel(_jids(pair), CancelRequest(cause=Cause.USER, grace_s=1.0), request=bench.fresh("r"))


async def _reclaimed_both(bench: Bench, pair: Pair) -> Sequence[Any]:
    held = [(each.jid, each.entry) for each in pair]
    return await bench.dog.reclaim(0, QUEUE, "a", held, owner_gone=False, failure=b"\x01x")


async def _noted_both(bench: Bench, pair: Pair) -> Sequence[Any]:
    note = Note("log", 0, "words")
    return [await bench.a.note(h.jid, token=h.token, attempt=1, note=note, saved=b"") for h in pair]


async def _walked(bench: Bench, pair: Pair) -> Sequence[Any]:
    await bench.decide(group="g")
    await bench.walk()
    return ["", await bench.state(pair[1].jid)]


async def _surveyed(bench: Bench, pair: Pair) -> Sequence[Any]:
    survey, _ = await bench.scopes.survey(Filter(jid_prefix=pair[1].jid))
    return ["", survey.jobs]


async def _rewound(bench: Bench, pair: Pair) -> Sequence[Any]:
    await bench.redis.delete(bench.a.keys(0).events)
    await set_back(bench)
    await bench.dog.rewind(0, index="deadlines", rank=0, step=10)
    left_ms = await bench.redis.zscore(bench.a.keys(0).deadlines, pair[1].jid) - bench.clock.now_ms
    return ["", left_ms]


EACH: dict[str, tuple[Heard, tuple[State, ...]]] = {
    "renew": (
        lambda bench, pair: bench.a.renew(0, [Renewal(held.jid, held.token) for held in pair]),
        (S.RUNNING, S.CANCELLING),
    ),
    "finish": (partial(_settled_both, Verb.FINISH, "succeeded"), (S.RUNNING, S.CANCELLING)),
    "fail": (partial(_settled_both, Verb.FINISH, "failed"), (S.RUNNING,)),
    "retry": (partial(_settled_both, Verb.RETRY, "failed"), (S.RUNNING, S.CANCELLING)),
    "release": (partial(_settled_both, Verb.RELEASE, "released"), (S.RUNNING, S.CANCELLING)),
    "note": (_noted_both, (S.RUNNING, S.CANCELLING)),
    "start": (_started_both, (S.QUEUED, S.CANCELLED)),
    "refuse": (
        lambda bench, pair: bench.a.refuse(
            0, QUEUE, [Refusal(jid=held.jid, entry=held.entry, why="no_slot") for held in pair]
        ),
        (S.QUEUED, S.CANCELLED),
    ),
    "finalize": (
        _in_time(lambda bench, pair: bench.dog.finalize(0, QUEUE, [(jid, False) for jid in _jids(pair)])),
        (S.CANCELLING,),
    ),
    "reclaim": (_in_time(_reclaimed_both), (S.QUEUED, S.RUNNING, S.CANCELLING)),
    "promote": (_in_time(lambda bench, pair: bench.dog.promote(0, QUEUE, _jids(pair))), (S.SCHEDULED,)),
    "expire": (_in_time(lambda bench, pair: bench.dog.expire(0, _jids(pair))), (S.SCHEDULED, S.QUEUED, S.RUNNING)),
    "cancel": (_cancelled_both, (S.SCHEDULED, S.QUEUED, S.RUNNING, S.CANCELLING, S.WAITING)),
    "look": (lambda bench, pair: bench.a.look(0, _jids(pair)), (S.SCHEDULED, S.QUEUED, S.RUNNING)),
    "carry out": (_walked, (S.SCHEDULED, S.QUEUED, S.RUNNING)),
    "survey": (_surveyed, (S.SCHEDULED, S.QUEUED)),
    "rewind": (_rewound, (S.CANCELLING,)),
}


@pytest.mark.parametrize("ruled", [False, True], ids=["no rule", "a rule"])
@pytest.mark.parametrize("verb", EACH)
async def test_a_record_with_nonsense_in_it_keeps_no_verb_from_the_job_beside_it(
    redis_url: str, verb: str, ruled: bool
) -> None:
    """That one is answered as it is beside a sound record."""
    call, states = EACH[verb]
    more = {"group": "g", "due_by": "3600000", "on_cancel": "always"}
    async with Bench(redis_url, strict=False) as bench:
        if ruled:
            await bench.decide(kind="another", how={"standing": True})
        for state in states:
            expected = None
            for field, value in [("", ""), *itertools.product(FIELDS, ("", "abc", "inf"))]:
                odd, sound = [await put_in(bench, state, **more) for _ in range(2)]
                key = bench.a.job_key(odd.jid)
                if field and value:
                    await bench.redis.hset(key, field, value)
                elif field:
                    await bench.redis.hdel(key, field)
                try:
                    _, heard = await call(bench, (odd, sound))
                except BadRecord as error:
                    raise AssertionError(f"beside one that is {state} with {field}={value!r}: {error}") from error
                answered = _word(heard)
                expected = answered if expected is None else expected
                assert answered == expected, f"beside one that is {state} with {field}={value!r}"
                await bench.redis.delete(*await bench.redis.keys("*{0}:job:*"), bench.a.keys(0).stream(QUEUE))
                await bench.redis.delete(bench.a.keys(0).deadlines, bench.a.keys(0).scheduled)
                await Streams(bench.a, [QUEUE]).open()


def _word(heard: Any) -> Any:
    """What an answer says in a word, without moments."""
    if isinstance(heard, Look):
        return heard.record[b"state"]
    if isinstance(heard, tuple):
        return heard[0]
    return getattr(heard, "verdict", None) or getattr(heard, "word", heard)
