"""
What does not belong on a queue, in front of a live worker: each ends as it should, and the worker goes on.
"""

from __future__ import annotations

from typing import Any

import pytest

import busq
from busq.protocol.judgement import REFUSALS
from busq.store.letters import DeadLetter
from busq.store.store import Store
from busq.worker.reception import Reception
from tests.roles import as_role
from tests.runtime.bench import Bench, bench, until


@pytest.fixture
def quick_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backoff of refusals in milliseconds instead of seconds."""
    monkeypatch.setattr(Reception._refuse, "__kwdefaults__", {"delay_s": 0.002, "counted": "", "unknown": False})
    monkeypatch.setattr("busq.worker.reception.REFUSAL_MOST_S", 0.01)


async def the_store(b: Bench) -> Store:
    return await b.store()


async def letters(b: Bench) -> list[DeadLetter]:
    return await (await b.bus._link()).reader.dead()


def good_kind(b: Bench) -> Any:
    @b.bus.job
    async def good(n: int) -> int:
        return n

    return good


async def still_works(b: Bench, kind: Any) -> None:
    assert await (await kind.enqueue(7)).result(timeout=10) == 7


@pytest.mark.usefixtures("quick_refusals")
async def test_an_unknown_kind_is_handed_back_ten_times_and_then_failed(redis_url: str) -> None:
    async with bench(redis_url) as b:
        good = good_kind(b)
        await b.work()
        await b.watch()
        handle = await b.bus.enqueue("goood", 1)
        job = await handle.wait(timeout=20)
        assert (job.state, job.cause, job.attempt, job.failures) == ("failed", "unknown_kind", 0, 0)
        assert job.error is not None
        assert "near it: good" in job.error.message
        assert (await b.names(handle.jid)).count("handed_back") == REFUSALS
        (letter,) = await letters(b)
        assert (letter.reason, letter.jid, letter.kind) == ("unknown_kind", handle.jid, "goood")
        assert letter.payload
        await still_works(b, good)


async def test_an_unknown_kind_runs_as_soon_as_a_worker_knows_it(redis_url: str) -> None:
    async with bench(redis_url, backoff_s=0.01) as b:
        good_kind(b)
        unknowing = await b.work()
        await b.watch()
        handle = await b.bus.enqueue("newer", 1)
        await until(lambda: _handed_back(b, handle.jid))
        await b.end(unknowing)  # which of two reads it is a throw of dice, and each refusal doubles the wait
        async with busq.Bus(as_role(redis_url, "client"), **b.given) as other:

            @other.job
            async def newer(n: int) -> int:
                return n + 1

            await b.work(other)
            assert await handle.result(timeout=20) == 2


async def _handed_back(b: Bench, jid: str) -> bool:
    return "handed_back" in await b.names(jid)


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\xc1garbage", b"\x01\x93", b"\xff" * 100])
async def test_a_payload_that_cannot_be_read_fails_its_job_and_keeps_its_bytes(redis_url: str, payload: bytes) -> None:
    async with bench(redis_url) as b:
        good = good_kind(b)
        handle = await good.options(jid="broken", retries=5).enqueue(1)
        store = await the_store(b)
        await store.redis.hset(store.job_key("broken"), "payload", payload)
        await b.work()
        job = await handle.wait(timeout=10)
        assert (job.state, job.cause, job.attempt) == ("failed", "bad_payload", 1)
        (letter,) = await letters(b)
        assert (letter.reason, letter.jid, letter.payload) == ("bad_payload", "broken", payload)
        await still_works(b, good)


ODD_ENTRIES: dict[str, dict[bytes, bytes]] = {
    "not_utf8": {b"jid": b"\xff\xfe", b"kind": b"good"},
    "kind_not_utf8": {b"jid": b"x", b"kind": b"\xff\xfe"},
    "other_fields": {b"task": b"good", b"args": b"[]"},
    "more_fields": {b"jid": b"x", b"kind": b"good", b"more": b"1"},
    "empty_jid": {b"jid": b"", b"kind": b"good"},
    "odd_jid": {b"jid": b"../../etc {0}", b"kind": b"good"},
    "long_jid": {b"jid": b"x" * 129, b"kind": b"good"},
    "unknown_jid": {b"jid": b"never-enqueued", b"kind": b"good"},
    "unknown_jid_and_kind": {b"jid": b"never-enqueued", b"kind": b"whatever"},
    "empty_kind": {b"jid": b"never-enqueued", b"kind": b""},
}


@pytest.mark.parametrize("entry", ODD_ENTRIES.values(), ids=ODD_ENTRIES)
async def test_an_entry_that_is_no_job_goes_to_the_dead_letters_with_its_bytes(
    redis_url: str, entry: dict[bytes, bytes]
) -> None:
    async with bench(redis_url) as b:
        good = good_kind(b)
        worker = await b.work()
        store = await the_store(b)
        stream = store.keys(0).stream("default")
        await store.redis.xadd(stream, entry)
        found = await until(lambda: letters(b))
        assert len(found) == 1
        assert found[0].raw == [part for pair in entry.items() for part in pair]
        await until(lambda: _empty(store, stream))
        await still_works(b, good)
        assert worker._slots.used == 0


async def _empty(store: Store, stream: bytes) -> bool:
    groups = await store.redis.xinfo_groups(stream)
    return int(await store.redis.xlen(stream)) == 0 and groups[0]["pending"] == 0


async def test_an_entry_that_lies_about_its_kind_runs_nothing_and_harms_no_job(redis_url: str) -> None:
    async with bench(redis_url) as b:
        gate, ran = b.gate(), []
        good = good_kind(b)

        @b.bus.job
        async def drop_all_tables() -> None:
            ran.append(1)

        @b.bus.job
        async def waits() -> str:
            await gate.wait()
            return "unharmed"

        await b.work()
        victim = await waits.enqueue()
        await b.reaches(victim.jid, "running")
        store = await the_store(b)
        stream = store.keys(0).stream("default")
        await store.redis.xadd(stream, {"jid": victim.jid, "kind": "drop_all_tables"})
        await store.redis.xadd(stream, {"jid": victim.jid, "kind": "waits"})
        await still_works(b, good)
        gate.open()
        assert await victim.result(timeout=10) == "unharmed"
        assert ran == []
        assert (await victim.get()).attempt == 1
        await until(lambda: _empty(store, stream))


@pytest.mark.usefixtures("quick_refusals")
async def test_a_record_of_a_newer_version_is_left_to_newer_workers(redis_url: str) -> None:
    async with bench(redis_url) as b:
        good = good_kind(b)
        handle = await good.enqueue(1)
        store = await the_store(b)
        await store.redis.hset(store.job_key(handle.jid), "v", "99")
        await b.work()
        await b.watch()
        job = await handle.wait(timeout=20)
        assert (job.state, job.cause, job.attempt) == ("failed", "newer_version", 0)
        assert job.error is not None
        assert "99" in job.error.message
        await still_works(b, good)


async def test_a_payload_over_the_limit_is_refused_where_it_is_sent(redis_url: str) -> None:
    async with bench(redis_url, payload_bytes=1000) as b:

        @b.bus.job
        async def takes(text: str) -> int:
            return len(text)

        await b.work()
        with pytest.raises(busq.TooLarge, match=r"1,?000"):
            await takes.enqueue("x" * 1001)
        assert await (await takes.enqueue("x" * 900)).result(timeout=10) == 900


async def test_a_worker_whose_keys_are_of_another_type_says_so_and_does_not_fall_silent(redis_url: str) -> None:
    """Somebody wrote over the roster: the beat fails, the jobs go on, and it recovers when the key is gone."""
    async with bench(redis_url) as b:
        good = good_kind(b)
        worker = await b.work()
        store = await the_store(b)
        await store.redis.set(store.keys(0).workers, "not a sorted set")
        await until(lambda: worker._outage.words("beat"))
        await still_works(b, good)
        await store.redis.delete(store.keys(0).workers)
        await until(lambda: not worker._outage.words("beat"))
