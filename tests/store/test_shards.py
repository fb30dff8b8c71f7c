"""Many jobs in one call, and several shards: order, bounds, and that each script call touches one slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from redis.crc import key_slot

from busq.errors import ConfigError
from busq.protocol.cancel import CancelRequest, Verdict
from busq.protocol.jids import child_jid, shard_of
from busq.protocol.scope import Filter, ScopeState
from busq.protocol.states import State, Verb
from busq.store import scripts, store
from busq.store.forms import NewJob
from tests.store.bench import DEADLINE_S, DELAY_S, LEASE_S, QUEUE, Bench, Held, put_in

S = State
MANY = 300
SHARDS = 4
OF_RULES = {"decide", "revoke", "survey", "cascade"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[bytes], int]]:
    """Every script call of the test: name, keys, and how many arguments."""
    seen: list[tuple[str, list[bytes], int]] = []
    run = scripts.Script.run

    async def noting(self: scripts.Script, redis: Any, keys: Sequence[bytes], argv: Sequence[scripts.Arg]) -> Any:
        seen.append((self.name, list(keys), len(argv)))
        return await run(self, redis, keys, argv)

    monkeypatch.setattr(scripts.Script, "run", noting)
    return seen


def _mixed(count: int) -> list[NewJob]:
    """Jobs of three queues, some with a delay, some with further fields."""
    return [
        NewJob(f"job-{n}", "k", f"q{n % 3}", b"\x01p%d" % n, 1000 * (n % 5 == 0), ("tag", n) if n % 2 else ())
        for n in range(count)
    ]


@pytest.mark.parametrize("shards", [1, SHARDS])
async def test_answers_come_in_the_order_of_the_question(url: str, shards: int) -> None:
    async with Bench(url, shards=shards) as bench:
        jobs = _mixed(MANY)
        answers = await bench.a.enqueue(jobs, call="one")
        assert answers == [("enqueued", S.SCHEDULED if job.delay_ms else S.QUEUED) for job in jobs]
        for n in range(0, MANY, 37):
            record = await bench.record(f"job-{n}")
            assert record[b"payload"] == b"\x01p%d" % n
            assert record.get(b"tag") == (b"%d" % n if n % 2 else None)
            assert record[b"queue"] == b"q%d" % (n % 3)
        wanted = [f"job-{n}" if n % 2 else f"nobody-{n}" for n in range(MANY)]
        cancelled = await bench.b.cancel(wanted, CancelRequest(), request="two")
        assert [answer.jid for answer in cancelled] == wanted
        assert [answer.verdict for answer in cancelled] == [
            Verdict.CANCELLED if n % 2 else Verdict.NOT_FOUND for n in range(MANY)
        ]
        assert await bench.a.enqueue(jobs, call="one") == [
            ("enqueued", S.CANCELLED if n % 2 else was) for n, (_, was) in enumerate(answers)
        ]


async def _meet(bench: Bench, calls: list[tuple[str, list[bytes], int]]) -> None:
    """The first call to a server that is too old for us is made twice."""
    for each in (bench.a, bench.b):
        await each.look(0, ["nobody"])
    calls.clear()


@pytest.mark.parametrize("shards", [1, SHARDS])
async def test_no_call_takes_more_than_a_batch(
    url: str, shards: int, calls: list[tuple[str, list[bytes], int]]
) -> None:
    async with Bench(url, shards=shards) as bench:
        await _meet(bench, calls)
        await bench.a.enqueue([NewJob(f"job-{n}", "k", QUEUE, b"p") for n in range(MANY)], call="one")
        await bench.b.cancel([f"job-{n}" for n in range(MANY)], CancelRequest(), request="two")
        jobs = [len([key for key in keys if b"}:job:" in key]) for _, keys, _ in calls]
        assert sum(jobs) == 2 * MANY
        assert max(jobs) <= store.BATCH
        assert len(calls) == 2 * max(2, shards)


@pytest.mark.parametrize(("payload", "tags"), [(400, 0), (10, 390)])
async def test_no_call_carries_more_than_a_batch_may(
    url: str, payload: int, tags: int, calls: list[tuple[str, list[bytes], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BATCH_BYTES", 1000)
    fields = ("tags", "x" * tags) if tags else ()
    async with Bench(url) as bench:
        await _meet(bench, calls)
        await bench.a.enqueue(
            [NewJob(f"job-{n}", "k", QUEUE, bytes(payload), fields=fields) for n in range(7)], call="one"
        )
        assert [len([key for key in keys if b"}:job:" in key]) for _, keys, _ in calls] == [3, 3, 1]


async def test_one_jid_twice_in_a_call_is_one_job(url: str) -> None:
    async with Bench(url) as bench:
        answers = await bench.a.enqueue([NewJob("job", "k", QUEUE, b"p")] * 2, call="one")
        assert answers == [("enqueued", S.QUEUED)] * 2
        assert len(await bench.entries()) == 1
        verdicts = await bench.b.cancel(["job", "job"], CancelRequest(), request="two")
        assert [answer.verdict for answer in verdicts] == [Verdict.CANCELLED] * 2


async def test_every_verb_works_with_several_shards_and_touches_one_slot(
    url: str, calls: list[tuple[str, list[bytes], int]]
) -> None:
    async with Bench(url, shards=SHARDS) as bench:
        for shard in range(SHARDS):
            await bench.a.renew(shard, [])
        used = set()
        for _ in range(4):
            queued, scheduled = await put_in(bench, S.QUEUED), await put_in(bench, S.SCHEDULED)
            used |= {bench.a.shard_of(queued.jid), bench.a.shard_of(scheduled.jid)}
            assert (await bench.begin(queued, retries=1)).word == "started"
            assert (await bench.beat(held=[queued]))[0].word == "running"
            assert (await bench.a.note(queued.jid, token=queued.token, attempt=1, saved=b"s"))[0] == "noted"
            assert await bench.settle(Verb.RELEASE, queued) == ("settled", "queued")
            again = await bench.run(queued.jid)
            assert await bench.settle(Verb.RETRY, again) == ("settled", "scheduled")
            assert await bench.promote(again.jid) == ("promoted", "queued")
            last = await bench.run(again.jid)
            assert await bench.settle(Verb.FINISH, last) == ("settled", "succeeded")
            bench.clock.advance(DELAY_S)
            assert await bench.promote(scheduled.jid) == ("promoted", "queued")
            lost = await bench.run(scheduled.jid)
            assert await bench.reclaim(lost) == ("reclaimed", "queued")
            overdue = await bench.run(lost.jid)
            assert await bench.expire(overdue.jid) == ("stale", "running")
            assert (await bench.cancel(overdue.jid)).verdict is Verdict.SIGNALLED
            bench.clock.advance(DEADLINE_S)
            assert await bench.finalize(overdue.jid) == ("finalized", "cancelled")
            parent = await put_in(bench, S.WAITING)
            scope = await bench.decide(descendants_of=parent.jid)
            assert (await bench.scopes.survey(Filter(everything=True)))[0].jobs > 0
            await bench.walk()
            await bench.pass_on()
            assert (await bench.a.look(bench.a.shard_of(parent.jid), [parent.jid]))[0].wish is None
            assert await bench.scopes.revoke(scope) is ScopeState.SETTLED
        bench.clock.advance(LEASE_S)
        for shard in range(SHARDS):
            await bench.dog.prune(shard, limit=10, suspect_s=1)
            await bench.dog.run("drain", shard, (), (), named={"worker": "a", "whole": "worker"})
            assert await bench.dog.forget(shard, "a", [QUEUE]) == "forgotten"
        assert used == set(range(SHARDS))
    for name, keys, _ in calls:
        assert len({key_slot(key) for key in keys}) == 1, name
    assert {name for name, *_ in calls} >= set(Verb) - {Verb.REFUSE, Verb.LAST_CHILD} | {
        "prune",
        "drain",
        "forget",
        "look",
    } | OF_RULES


@pytest.mark.parametrize("root", ["order-17", "a", "0190b6a1c5d27e3f8a0c4d5e6f708192"])
async def test_children_land_in_the_shard_of_their_root(url: str, root: str) -> None:
    async with Bench(url, shards=SHARDS) as bench:
        await bench.enqueue(root)
        child = child_jid(root)
        grandchild = child_jid(child)
        for jid in (child, grandchild):
            await bench.enqueue(jid)
            assert bench.a.shard_of(jid) == bench.a.shard_of(root) == shard_of(root, SHARDS)
            assert key_slot(bench.a.job_key(jid)) == key_slot(bench.a.job_key(root))


async def test_a_bus_says_how_many_shards_it_has_and_refuses_another_number(url: str) -> None:
    async with Bench(url, shards=SHARDS):
        async with Bench(url) as other:
            assert other.a.shards == SHARDS
        with pytest.raises(ConfigError, match="shards: 2 was given, but the bus 'busq' was made with 4"):
            async with Bench(url, shards=2):
                pass


async def test_a_bus_of_a_newer_version_is_refused(url: str) -> None:
    async with Bench(url) as bench:
        await bench.redis.hset("busq:meta", "v", 9)
        with pytest.raises(ConfigError, match="speaks version 9"):
            async with Bench(url):
                pass


async def test_namespaces_do_not_see_each_other(url: str) -> None:
    async with Bench(url) as bench, Bench(url, namespace="other") as other:
        await bench.enqueue("job")
        assert (await other.cancel("job")).verdict is Verdict.NOT_FOUND
        assert (await other.begin(Held("job"))).word == "missing"
        assert other.a.notice_prefix == b"other:cancel:"
        assert await other.admit("job") == ("enqueued", S.QUEUED)
