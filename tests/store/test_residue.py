"""
What a drained bus still holds: keys that the table of keys names, with the expiry that it says, and in the end nothing
but those that stay for good.
"""

from __future__ import annotations

import pytest

from busq.protocol.keys import KEY_TABLE, LEFT_WHEN_DRAINED
from busq.protocol.states import State, Verb, is_terminal
from busq.store.streams import Streams
from tests.store import residue
from tests.store.bench import DEADLINE_S, DELAY_S, KIND, LEASE_S, QUEUE, Bench, Held, put_in

S = State
FOR_GOOD = {row for row, how in LEFT_WHEN_DRAINED.items() if how.startswith("for good")}


def test_what_may_be_left_is_in_the_table_of_keys() -> None:
    assert set(LEFT_WHEN_DRAINED) <= {row[0] for row in KEY_TABLE}


async def _tell(bench: Bench) -> None:
    """Every ending, hooks, trees, scopes, keys, dead letters, tombstones, suspects, rates: what leaves something."""
    await bench.a.declare(0, {KIND: "always"}, keep_s=60)
    for state in State:
        await put_in(bench, state, group="g", key=bench.fresh("key"))
    await bench.cancel("nobody", tombstone_s=60)
    await bench.cancel("somebody", tombstone_s=60)
    await bench.admit("somebody")
    for key in ("same", "same"):
        await bench.enqueue(key=key, expires=1000)
    await bench.enqueue(due_by=1000)
    parent = await bench.run()
    between = await bench.run(await bench.enqueue(parent=parent.jid))
    await bench.enqueue(parent=between.jid)
    await bench.settle(Verb.FINISH, between, "failed", cause="error")
    await bench.settle(Verb.FINISH, parent, finalizer=True)
    cancelled = await bench.run()
    await bench.enqueue(parent=cancelled.jid)
    await bench.cancel(cancelled.jid)
    retried = await bench.run(retries=1)
    await bench.settle(Verb.RETRY, retried, delay_s=DELAY_S)
    lost = await bench.run(max_losses=0)
    left = await bench.run()
    await bench.settle(Verb.FINISH, left, "failed", stopped=False, cause="error")
    await bench.beat(held=[lost])
    bench.clock.advance(LEASE_S)
    await bench.reclaim(lost)
    late = await put_in(bench, S.CANCELLING)
    bench.clock.advance(DEADLINE_S)
    await bench.finalize(late.jid)
    await bench.redis.xadd(bench.a.keys(0).stream(QUEUE), {"no": "job"})
    for entry in [each for each in await bench.read() if not each.jid]:
        await bench.a.bury(0, QUEUE, entry.id, reason="bad_entry", raw=b"raw")
    await bench.enqueue(group="covered")
    await bench.decide(group="covered")
    standing = await bench.decide(group="nobody", how={"standing": True})
    await bench.walk()
    await bench.scopes.revoke(standing)
    await bench.beat(bench.b)


async def _drain(bench: Bench) -> None:
    """What workers and watchdogs do until every job has ended and they have left."""
    own = bench.a.keys(0)
    for _ in range(20):
        bench.clock.advance(2 * 86_400)  # every delay is over, every moment and every deadline
        for jid in await _jids(bench, await bench.redis.zrange(own.timers, 0, -1)):
            await bench.expire(jid)
        for jid in await _jids(bench, await bench.redis.zrange(own.deadlines, 0, -1)):
            await bench.finalize(jid, queue=(await bench.job(jid)).queue)
        await bench.walk()
        await bench.pass_on()
        for jid in await _jids(bench, await bench.redis.zrange(own.scheduled, 0, -1)):
            await bench.dog.promote(0, (await bench.job(jid)).queue, [jid])
        for queue in [name.decode() for name in await bench.redis.smembers(own.queues)]:
            await _work(bench, queue)
    for worker in (bench.a, bench.b):
        await worker.forget(0, worker.by, [], own_wish=True)


async def _work(bench: Bench, queue: str) -> None:
    streams = Streams(bench.a, [queue])
    await streams.open()
    await bench.read(queue=queue)
    for store in (bench.a, bench.b):
        streams = Streams(store, [queue])
        await streams.open()
        for entry in await streams.pending():
            held = Held(entry.jid, entry.id, queue=queue)
            if (await bench.begin(held, store, kind=entry.kind, adopt=True)).word == "started":
                await bench.settle(Verb.FINISH, held, by=store)


async def _jids(bench: Bench, members: list[bytes]) -> list[str]:
    return [member.decode() for member in members]


async def test_a_drained_bus_holds_what_the_table_says_and_in_the_end_only_what_stays_for_good(url: str) -> None:
    async with Bench(url, queue_rate=1000.0, group_rate=1000.0) as bench:
        await _tell(bench)
        assert await residue.complaints(bench.redis) == []
        await _drain(bench)
        assert await residue.residue(bench.redis) == []
        left = {residue.row_of(key)[0] for key in await bench.redis.keys("*")}
        assert {"{s}:suspects", "{s}:dead", "{s}:scope:<id>", "{s}:fallen:<jid>"} <= left
        states = [await bench.state(key.partition(b":job:")[2].decode()) for key in await bench.redis.keys("*:job:*")]
        assert all(state and is_terminal(state) for state in states)

        # A day later: what expires has expired, and a watchdog drops what is pruned.
        for key in await bench.redis.keys("*"):
            if await bench.redis.pttl(key) > 0:
                await bench.redis.delete(key)
        bench.clock.advance(86_400 + 1)
        while await bench.dog.prune(0, limit=100, suspect_s=86_400):
            pass
        assert {residue.row_of(key)[0] for key in await bench.redis.keys("*")} <= FOR_GOOD
        assert await bench.redis.xlen(bench.a.keys(0).stream(QUEUE)) == 0


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (("set", "busq:{0}:stray", "1"), "is named by no row"),
        (("set", "busq:{0}:scheduled", "1"), "is said to be a zset"),
        (("persist", "busq:{0}:job:ended"), "is 'succeeded'"),
        (("pexpire", "busq:{0}:job:queued", "1000"), "is 'queued'"),
        (("pexpire", "busq:{0}:counters", "1000"), "is said to stay"),
        (("set", "busq:{0}:rate:queue:q", "1"), "is said to expire"),
    ],
)
async def test_the_search_for_residue_finds_it(redis_url: str, spoil: tuple[str, ...], complaint: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        held = await bench.run(await bench.enqueue("ended"))
        await bench.settle(Verb.FINISH, held)
        await bench.enqueue("queued")
        assert await residue.complaints(bench.redis) == []
        await bench.redis.execute_command(*spoil)
        (found,) = await residue.complaints(bench.redis)
        assert complaint in found
