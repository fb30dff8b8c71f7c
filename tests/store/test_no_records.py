"""
A key of another type where a record should be is no record to any verb, and the call deals with the others in it.

On a real server only: fakeredis tells a script no errors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from busq.config import Settings
from busq.errors import BusUnavailable
from busq.protocol.jids import child_jid
from busq.protocol.scope import Filter
from busq.protocol.states import State, Verb
from busq.store.forms import Note, Refusal, Renewal
from busq.store.store import Store
from tests.servers import RedisServer
from tests.store.bench import DELAY_S, LEASE_S, QUEUE, Bench, Held, put_in
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
