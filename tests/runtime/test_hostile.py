"""
What anybody with a Redis client can put on the bus, in front of a live worker: garbage among good jobs, forged words.

`FUZZ_INPUTS` says how many messages are published; a few thousand in a run of the tests.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from redis.asyncio import Redis

import busq
from busq.protocol.codec import EMPTY_PAYLOAD, encode_payload
from busq.protocol.keys import ShardKeys
from busq.store.forms import NewJob
from tests.runtime.bench import NEVER_SO_LONG_S, PATIENT, Wait, bench, declare, taken, until
from tests.unit.test_fuzz import BOMBS, CODED, SEED, mutants

MESSAGES = int(os.environ.get("FUZZ_INPUTS", "4000"))
GOOD = 40
KEYS = ShardKeys("busq", 0)


async def test_hostile_entries_and_records_are_buried_and_every_good_job_succeeds(redis_url: str) -> None:
    rng = random.Random(SEED)
    async with bench(redis_url) as b, Redis.from_url(redis_url) as redis:

        @b.bus.job
        async def good(n: int) -> int:
            return n

        stream = KEYS.stream("default")
        await (await good.enqueue(0)).cancel()  # the bus is there
        handles, hostile = [], 0
        for n in range(GOOD):
            handles.append(await good.enqueue(n))
            await redis.xadd(stream, _entry(rng, n))
            await _odd_record(redis, stream, f"odd-{n}", n)
            hostile += 2
        await b.work()
        assert [await handle.result(timeout=NEVER_SO_LONG_S) for handle in handles] == list(range(GOOD))

        async def nothing_is_left() -> bool:
            return await redis.xlen(stream) == 0

        await until(nothing_is_left)
        stats = await b.bus.stats()
        # A payload that cannot be read fails its job; the rest are no jobs, or none that this busq can start.
        failed = [job for job in await b.bus.list(state="failed") if job.cause == "bad_payload"]
        assert stats.dead == hostile
        assert len(failed) == len([n for n in range(GOOD) if n % len(ODD) == ODD.index("payload")])
        assert await (await good.enqueue(7)).result(timeout=NEVER_SO_LONG_S) == 7


async def test_a_producer_that_checks_nothing_of_what_it_sends_harms_nobody_else(redis_url: str) -> None:
    """Sizes are checked where a job is made; what comes without is run, or fails by itself."""
    async with bench(redis_url, payload_bytes=1000) as b:

        @b.bus.job
        async def good(text: str = "") -> int:
            return len(text)

        store = (await b.bus._link()).store
        large = encode_payload((), {"text": "x" * 3_000_000}, 4_000_000)
        deep = b"\x01\x92\x91" + b"\x91" * 5000 + b"\x90\x80"
        unchecked = [
            NewJob("large", "good", "default", large),
            NewJob("deep", "good", "default", deep),
            NewJob("wordy", "good", "default", EMPTY_PAYLOAD, 0, ("group", "g\n" * 50_000, "tags", "[" * 5000)),
            NewJob("odd", "good", "default", EMPTY_PAYLOAD, 0, ("state", "no state", "retries", "many", "grace", "x")),
        ]
        for job in unchecked:
            await store.enqueue([job], call=job.jid)
        handle = await good.enqueue("me")
        await b.work()
        await b.watch()
        assert await handle.result(timeout=NEVER_SO_LONG_S) == 2
        assert await b.bus.result("large", timeout=NEVER_SO_LONG_S) == 3_000_000
        assert (await b.bus.wait("deep", timeout=NEVER_SO_LONG_S)).cause == "bad_payload"
        assert (await b.bus.wait("wordy", timeout=NEVER_SO_LONG_S)).state == "succeeded"
        assert (await b.bus.stats()).now["running"] == 0
        assert await (await good.enqueue("again")).result(timeout=NEVER_SO_LONG_S) == 5


ODD = ("payload", "string", "list", "no state", "no fields that fit", "missing")


def _entry(rng: random.Random, n: int) -> dict[bytes, bytes]:
    noise = rng.randbytes(rng.choice((1, 40, 3000)))
    return [
        {noise: noise},
        {b"jid": noise, b"kind": b"good"},
        {b"jid": b"*", b"kind": b"good"},
        {b"jid": b"j" * 129, b"kind": b"good"},
        {b"jid": b"j\n", b"kind": b"good"},
        {b"jid": b"j", b"kind": b"good", b"more": noise},
        {b"kind": b"good", b"jid": b"j"},
        {b"jid": b"\xff", b"kind": b"\xff"},
        {b"jid": b"", b"kind": b""},
    ][n % 9]


async def _odd_record(redis: Any, stream: bytes, jid: str, n: int) -> None:
    """An entry that names a job whose record is not what it should be."""
    key, odd = KEYS.job(jid), ODD[n % len(ODD)]
    entry = await redis.xadd(stream, {"jid": jid, "kind": "good"})
    sound = {"v": 1, "state": "queued", "kind": "good", "queue": "default", "entry": entry, "n": 0, "seq": 1}
    sound |= {"enqueued": 1, "payload": b"\x01\x92\x90\x81\xa1n\x01", "call": "c"}
    if odd == "payload":
        await redis.hset(key, mapping=sound | {"payload": BOMBS[n % len(BOMBS)] or b"\xff"})
    elif odd == "string":
        await redis.set(key, "no hash")
    elif odd == "list":
        await redis.rpush(key, "no hash")
    elif odd == "no state":
        await redis.hset(key, mapping={"kind": "good", "entry": entry})
    elif odd == "no fields that fit":
        await redis.hset(key, mapping=sound | {"kind": "another"})


@pytest.mark.parametrize("executor", ["coroutine"])
async def test_fuzzed_messages_on_every_channel_cancel_nothing_and_the_listener_goes_on(
    redis_url: str, executor: str
) -> None:
    async with bench(redis_url, **PATIENT) as b, Redis.from_url(redis_url) as redis:
        gate = b.gate()

        def body() -> Any:
            yield Wait(gate)
            return busq.current_job().cancelled

        kind = declare(b.bus, executor, body)
        worker = await b.work(concurrency=5)
        handles = [await kind.enqueue() for _ in range(5)]
        attempts = [await taken(worker, handle.jid) for handle in handles]
        running = [f"cancel:{handle.jid}".encode() for handle in handles]
        channels = [*running, b"busq:rules", b"cancel:", b"cancel:nobody", b"busq:done:" + handles[0].jid.encode()]
        words = [*CODED, *BOMBS[1:], b"cancel", b"rule", b"tree", b"", handles[0].jid.encode()]
        pipe = redis.pipeline(transaction=False)
        for n, message in enumerate(mutants(words, MESSAGES)):
            channel = channels[n % len(channels)]
            pipe.publish(channel if n % 7 else channel + message[:20], message)
            if len(pipe) == 500:
                await pipe.execute()
        await pipe.execute()
        cancelled = handles.pop()
        attempts.pop()
        assert (await cancelled.cancel()).verdict == "signalled"
        assert (await cancelled.wait(timeout=NEVER_SO_LONG_S)).ended == "confirmed"
        assert not any(attempt.token.tripped for attempt in attempts)
        assert worker._control.reconnects == 0
        gate.open()
        assert [await handle.result(timeout=NEVER_SO_LONG_S) for handle in handles] == [False] * 4
