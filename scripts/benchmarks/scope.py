"""
Scope: deciding that a whole group stops, beside one single cancel on the same bus.

Two buses stand on the server at the same time, one with a hundred times the backlog of the other, and both are asked
in turns: so the cost over the large one can be held against that over the small one. Each decision is taken back
before the next, so that all find the same. The last one stands: then a worker drains the large backlog, and its
handlers say what they start. A few jobs of another group stand among the others, and those do start.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection

from redis import Redis

import busq
from benchmarks.figures import Figure, Requirement, over, percentile
from benchmarks.processes import Helper, Place, fresh_place, work
from benchmarks.wide import fill
from busq.protocol.keys import ShardKeys

REQUIRED = Requirement("at most", 10)
NOTHING = Requirement("at most", 0)
LOOK_EVERY_S = 0.003
SMALLER = 100  # times
EVERY = 100  # jobs has one of another group
WARM = 3
PATIENCE_S = 60.0  # without any progress

Rounds = dict[str, list[list[float]]]  # seconds, by place and by round


def measure(url: str, pairs: int, samples: int, backlog: int) -> list[Figure]:
    sizes = {"small": max(1, backlog // SMALLER), "large": backlog}
    with fresh_place(url) as small, fresh_place(url) as large:
        places = {"small": small, "large": large}
        for name, place in places.items():
            asyncio.run(fill(place, _backlog(sizes[name])))
        one, wide = asyncio.run(_decide_in_turns(places, pairs, samples))
        started = _drain(large)
    if started["spared"] == 0:
        raise RuntimeError("the worker started nothing at all: it proves nothing that no matching job was among it")
    figures = []
    for name, size in sizes.items():
        ratios = [percentile(w, 50) / percentile(o, 50) for w, o in zip(wide[name], one[name], strict=True)]
        figures += [
            Figure("scope", f"{size:,} queued: one cancel, p50", "ms", over(one[name], 50)),
            Figure("scope", f"{size:,} queued: a group, p50", "ms", over(wide[name], 50)),
            Figure("scope", f"{size:,} queued: a group, p99", "ms", over(wide[name], 99)),
            Figure.of("scope", f"{size:,} queued: group / one", "x", ratios, REQUIRED),
        ]
    grown = [percentile(b, 50) / percentile(a, 50) for a, b in zip(wide["small"], wide["large"], strict=True)]
    return [
        *figures,
        Figure.of("scope", f"a group: {sizes['large']:,} / {sizes['small']:,}", "x", grown),
        Figure.of("scope", "matching handlers started afterwards", "jobs", [float(started["matching"])], NOTHING),
        Figure.of("scope", "other handlers started afterwards", "jobs", [float(started["spared"])]),
    ]


def _backlog(size: int) -> Iterator[tuple[str, str]]:
    """A kind and a group for each job."""
    for n in range(size):
        yield ("spared", "others") if n % EVERY == 0 else ("matching", "many")


async def _decide_in_turns(places: dict[str, Place], pairs: int, samples: int) -> tuple[Rounds, Rounds]:
    """Seconds of single cancels and of decisions."""
    each = -(-samples // pairs)
    one: Rounds = {name: [] for name in places}
    wide: Rounds = {name: [] for name in places}
    async with AsyncExitStack() as opened:
        buses = {name: await opened.enter_async_context(place.bus()) for name, place in places.items()}
        for turn in range(pairs + 1):
            for name in buses if turn % 2 else reversed(buses):
                taken = [await _decide_once(buses[name]) for _ in range(each if turn else WARM)]
                if turn:  # the first round opens connections and loads scripts
                    one[name].append([single for single, _ in taken])
                    wide[name].append([whole for _, whole in taken])
        await buses["large"].cancel_where(group="many")
    return one, wide


async def _decide_once(bus: busq.Bus) -> tuple[float, float]:
    """Seconds that one single cancel takes, and one of the whole group, which is taken back."""
    single = await bus.enqueue("single")
    began = time.monotonic()
    await bus.cancel(single.jid)
    cancelled = time.monotonic()
    scope = await bus.cancel_where(group="many")
    decided = time.monotonic()
    await scope.revoke()
    return cancelled - began, decided - cancelled


def _drain(place: Place) -> Counter[str]:
    """How many handlers of each kind a worker starts until the queue is empty."""
    started: Counter[str] = Counter()
    stream = ShardKeys(place.namespace, 0).stream("default").decode()
    with Helper(_be_worker, place) as worker, Redis.from_url(place.url) as redis:
        assert worker.hear() == "ready"
        before, moved = redis.xlen(stream), time.monotonic()
        while left := redis.xlen(stream):
            started.update(worker.overheard())
            if left != before:
                before, moved = left, time.monotonic()
            if time.monotonic() - moved > PATIENCE_S:
                raise RuntimeError(f"{left} entries stay in the queue")
            time.sleep(LOOK_EVERY_S)
        started.update(worker.overheard())
    return started


async def _be_worker(pipe: Connection, place: Place) -> None:
    bus = place.bus()

    @bus.job
    async def matching() -> None:
        pipe.send("matching")

    @bus.job
    async def spared() -> None:
        pipe.send("spared")

    @bus.job
    async def single() -> None:
        pipe.send("single")

    await work(pipe, bus)
