"""What a script spares itself when it touches a job changes nothing of what has been decided for it."""

from __future__ import annotations

from busq.protocol.scope import Filter
from busq.protocol.states import Verb
from busq.store.forms import Delivery, KindTerms, NewJob, Settlement
from busq.store.scopes import Scopes
from tests.store.bench import KIND, QUEUE, Bench

EMPTY = b"\x01\x92\x90\x80"


async def _start(b: Bench, jid: str) -> tuple[str, bytes]:
    entry = (await b.redis.hget(b.a.job_key(jid), "entry")) or b"1-1"
    stream = b.a.keys(0).stream(QUEUE)
    await b.redis.execute_command("XREADGROUP", "GROUP", "busq", "a", "STREAMS", stream, ">")
    delivery = Delivery(entry=entry, jid=jid, kind=KIND, token="t")
    (answer,) = await b.a.start(0, QUEUE, [delivery], [KindTerms(KIND, 0, 5, 5000, 2000)])
    return answer.word, entry


async def test_a_queued_child_of_a_cancelled_parent_does_not_start_though_no_rule_is_live(redis_url: str) -> None:
    async with Bench(redis_url) as b:
        await b.a.enqueue([NewJob("parent", KIND, QUEUE, EMPTY)], call="one")
        await b.a.enqueue([NewJob("child", KIND, QUEUE, EMPTY, 0, ("parent", "parent"))], call="two")
        await b.cancel("parent")
        assert (await _start(b, "child"))[0] == "stale"


async def test_a_scope_counts_a_job_that_returned_in_time_as_its_handler_may(redis_url: str) -> None:
    async with Bench(redis_url) as b:
        scopes = Scopes(b.a)
        await b.a.enqueue([NewJob("job", KIND, QUEUE, EMPTY)], call="one")
        _, entry = await _start(b, "job")
        await scopes.decide("s-1", Filter(kind=KIND))
        end = Settlement(jid="job", entry=entry, token="t", attempt=1, outcome="succeeded", keep=True)
        assert await b.a.settle(Verb.FINISH, 0, QUEUE, [end]) == [("settled", "succeeded")]
        look = await scopes.look("s-1")
        assert look is not None
        assert (look.endings, look.unfinished) == ({"succeeded": 1}, 0)
