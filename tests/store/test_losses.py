"""Queues whose stream was removed while jobs were behind it: who leaves word, and what mending makes of it."""

from __future__ import annotations

from collections import Counter

from busq import events
from busq.store import losses
from busq.store.streams import Streams
from busq.watchdog.mend import mend
from tests.store.bench import QUEUE, Bench


async def _stranded(bench: Bench, jid: str, *, worker: str = "") -> None:
    """A job without its entry: of a worker whose lease is good, or queued."""
    await bench.enqueue(jid)
    if worker:
        record = {"state": "running", "owner": worker, "token": "t"}
        await bench.redis.hset(bench.a.job_key(jid), mapping=record)
        await bench.redis.zadd(bench.a.keys(0).workers, {worker: 9e15})
    await bench.redis.delete(bench.a.keys(0).stream(QUEUE))


async def _leave_word(bench: Bench) -> None:
    await bench.redis.hset(bench.a.keys(0).birth, "lost", "some word")


async def _mend(bench: Bench) -> tuple[int, bool]:
    """How many jobs were queued again, and whether to look again later."""
    done: Counter[str] = Counter()
    again = await mend(bench.dog, 0, done)
    assert done[events.QUEUE_MENDED] == done[events.JOB_RECLAIMED]
    return done[events.QUEUE_MENDED], again


async def test_who_finds_a_group_gone_leaves_word_before_it_makes_it_again(redis_url: str) -> None:
    async with Bench(redis_url) as bench:
        streams = Streams(bench.a, [QUEUE])
        await streams.open()
        assert await losses.lost_word(bench.dog, 0) is None
        await bench.redis.delete(bench.a.keys(0).stream(QUEUE))
        assert await streams.read(streams.places, each=1, block_ms=0) == []
        assert await losses.lost_word(bench.dog, 0) is not None


async def test_jobs_whose_entries_are_lost_are_given_new_ones_once(redis_url: str) -> None:
    async with Bench(redis_url) as bench:
        await _stranded(bench, "one")
        assert await _mend(bench) == (0, False), "nobody has left word"
        await _leave_word(bench)
        assert await _mend(bench) == (1, False)
        assert len(await bench.entries()) == 1
        assert await _mend(bench) == (0, False), "that word is dealt with"


async def test_odd_keys_among_the_records_keep_no_job_lost(redis_url: str) -> None:
    """Others wrote there: no text, no hash, no id of a stream."""
    async with Bench(redis_url, strict=False) as bench:
        await _stranded(bench, "one")
        await _leave_word(bench)
        prefix = bench.a.job_key("")
        await bench.redis.hset(prefix + b"\xff", "state", "queued")
        await bench.redis.set(prefix + b"no-hash", "1")
        await bench.redis.hset(prefix + b"odd", mapping={"state": "queued", "queue": QUEUE, "entry": "nonsense"})
        assert await _mend(bench) == (1, False)


async def test_what_a_mend_says_of_data_that_is_gone_meanwhile_is_no_loss(redis_url: str) -> None:
    """The data was lost during its search, and the word with it."""
    async with Bench(redis_url) as bench:
        await losses.mark_mended(bench.dog, 0, b"of other data")
        assert await losses.lost_word(bench.dog, 0) is None


async def test_a_job_whose_worker_lives_keeps_the_word_until_it_is_looked_at_again(redis_url: str) -> None:
    async with Bench(redis_url, strict=False) as bench:
        await _stranded(bench, "held", worker="a")
        await _leave_word(bench)
        assert await _mend(bench) == (0, True)
        assert await losses.lost_word(bench.dog, 0) is not None
        await bench.redis.zadd(bench.a.keys(0).workers, {"a": 1.0})
        assert await _mend(bench) == (1, False)
