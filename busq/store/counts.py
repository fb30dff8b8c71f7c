"""
The bus in numbers: jobs by state, queues, totals; a bounded number of commands for each shard and queue.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import msgspec

from busq.protocol.keys import GROUP
from busq.protocol.states import State
from busq.store import watch
from busq.store.connection import reaching
from busq.store.store import Store


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """One queue: entries that nobody has read, entries that workers hold, and the age of the oldest unread (s)."""

    queue: str
    ready: int
    held: int
    oldest_s: float | None


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """
    The bus in numbers.

    `now` counts live jobs by state; for `succeeded`, `failed`, `cancelled` it counts records that are still kept.
    `total` counts since the bus was made, `endings` how the execution of cancelled jobs ended, `verdicts` what was
    answered to cancels of single jobs. `rules` are live cancels by filter, `settling` those of them whose hits are
    still being written to the records.
    """

    now: dict[str, int]
    total: dict[str, int]
    queues: list[QueueStats]
    suspects: int
    dead: int
    rules: int = 0
    settling: int = 0
    endings: dict[str, int] = {}
    verdicts: dict[str, int] = {}


async def counted(store: Store) -> Stats:
    """The whole bus, one shard after the other. Raise `BusUnavailable`."""
    shards = [await _numbers(store, shard) for shard in range(store.shards)]
    now = Counter({str(state): 0 for state in State})
    queues: dict[str, QueueStats] = {}
    total: Counter[str] = Counter()
    endings: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    for numbers in shards:
        now.update(numbers.by_state())
        for each in numbers.queues:
            queues[each.queue] = _together(queues.get(each.queue), each)
        for name, count in numbers.counters.items():
            sort, _, word = name.decode().rpartition(":")
            {"ended": endings, "verdict": verdicts}.get(sort, total)[word] += int(count)
    if total["rules"]:  # a rule is decided in every shard, and is one rule all the same
        total["rules"] = max(int(numbers.counters.get(b"rules", 0)) for numbers in shards)
    live = [[int(number) for number in numbers.rules if number.isdigit()] for numbers in shards]
    return Stats(
        now=dict(now),
        total=dict(total),
        queues=sorted(queues.values(), key=lambda each: each.queue),
        suspects=sum(numbers.suspects for numbers in shards),
        dead=sum(numbers.dead for numbers in shards),
        rules=max(map(len, live)),
        settling=max(
            sum(number > int(numbers.walked or 0) for number in own) for numbers, own in zip(shards, live, strict=True)
        ),
        endings=dict(endings),
        verdicts=dict(verdicts),
    )


class _Numbers(NamedTuple):
    """What one shard says of itself. `parked`: cancelling, and the attempt has ended."""

    queues: list[QueueStats]
    counters: dict[bytes, bytes]
    scheduled: int
    waiting: int
    cancelling: int
    succeeded: int
    failed: int
    cancelled: int
    suspects: int
    dead: int
    parked: int
    marked: int  # cancelling, or cancelled with an entry still unread
    rules: list[bytes]
    walked: bytes | None

    def by_state(self) -> dict[str, int]:
        ready, held = sum(each.ready for each in self.queues), sum(each.held for each in self.queues)
        return {
            State.SCHEDULED: self.scheduled,
            State.WAITING: self.waiting - self.parked,
            State.CANCELLING: self.cancelling,
            State.QUEUED: max(0, ready - max(0, self.marked - self.cancelling)),
            State.RUNNING: max(0, held - (self.cancelling - self.parked)),
            State.SUCCEEDED: self.succeeded,
            State.FAILED: self.failed,
            State.CANCELLED: self.cancelled,
        }


async def _numbers(store: Store, shard: int) -> _Numbers:
    keys = store.keys(shard)
    with reaching(store.connections.place):
        pipe = store.redis.pipeline(transaction=False)
        pipe.hgetall(keys.counters)
        for index in (
            keys.scheduled, keys.waiting, keys.deadlines, keys.succeeded, keys.failed, keys.cancelled_jobs,
            keys.suspects,
        ):  # fmt: skip
            pipe.zcard(index)
        pipe.xlen(keys.dead)
        pipe.zcount(keys.waiting, "+inf", "+inf")
        pipe.zcount(keys.cancelled, "+inf", "+inf")
        pipe.hkeys(keys.rules)
        pipe.hget(keys.rules, "walked")
        told = await pipe.execute()
    queues = [await _queue(store, shard, queue) for queue in await watch.queues(store, shard)]
    return _Numbers(queues, *told)


async def _queue(store: Store, shard: int, queue: str) -> QueueStats:
    """Counted from the stream and its pending list; `lag` would be blind after some deletions."""
    stream = store.keys(shard).stream(queue)
    now_ms = await watch.server_now_ms(store, shard)
    with reaching(store.connections.place):
        length = await store.redis.xlen(stream)
        group: dict[str, Any] = {}
        if length and await store.redis.exists(stream):
            groups = await store.redis.xinfo_groups(stream)
            group = next((each for each in groups if each["name"] == GROUP), {})
        held = group.get("pending", 0)
        after = (group.get("last-delivered-id") or b"0-0").decode()
        oldest = await store.redis.xrange(stream, f"({after}", "+", count=1) if length > held else []
    age = (now_ms - int(oldest[0][0].split(b"-")[0])) / 1000 if oldest else None
    return QueueStats(
        queue=queue, ready=max(0, length - held), held=held, oldest_s=None if age is None else max(0.0, age)
    )


def _together(one: QueueStats | None, other: QueueStats) -> QueueStats:
    if one is None:
        return other
    ages = [age for age in (one.oldest_s, other.oldest_s) if age is not None]
    return QueueStats(
        queue=one.queue, ready=one.ready + other.ready, held=one.held + other.held, oldest_s=max(ages, default=None)
    )
