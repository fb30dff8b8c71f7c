"""
Listed: what people ask of a bus that holds very many jobs, how long it takes, and what everybody else feels of it.

Seven in ten jobs are queued in four queues, one is scheduled and two are cancelled. While a question is asked over and
over, another connection pings the server without a pause, and the server's slow log tells how long its commands and
script calls took: shown is the sort that took longest. On a machine that others use, the least of each says most.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from redis import Redis

from benchmarks.figures import Figure, Requirement, percentile
from benchmarks.processes import Place, fresh_place
from busq.store.reader import Reader

AT_ONCE = 5000
QUEUES = 4
RARE = 100_000  # jobs has one of a rare kind and group
SLOW_US = 20  # calls that took less are not told apart
SECONDS = 2.0  # for which a question is asked again and again
LONGEST = Requirement("at most", 10.0)
PING = Requirement("at most", 10.0)

Ask = Callable[[Any, Reader, str], Awaitable[Any]]

QUESTIONS: dict[str, Ask] = {
    "list": lambda bus, reader, jid: reader.listing(),
    "list --limit 1000": lambda bus, reader, jid: reader.listing(limit=1000),
    "list --state running": lambda bus, reader, jid: reader.listing(states=["running"]),
    "list --state cancelled": lambda bus, reader, jid: reader.listing(states=["cancelled"]),
    "list --state scheduled": lambda bus, reader, jid: reader.listing(states=["scheduled"]),
    "list --kind rare": lambda bus, reader, jid: reader.listing(kind="rare"),
    "list --group rare": lambda bus, reader, jid: reader.listing(group="rare"),
    "list --queue q-3": lambda bus, reader, jid: reader.listing(queue="q-3"),
    "list --kind rare --state cancelled": lambda bus, reader, jid: reader.listing(kind="rare", states=["cancelled"]),
    "stats": lambda bus, reader, jid: reader.stats(),
    "top": lambda bus, reader, jid: _top(reader),
    "get": lambda bus, reader, jid: reader.job(jid),
}


async def _top(reader: Reader) -> None:
    await reader.stats()
    await reader.jobs(states=["running", "cancelling"], limit=20)  # type: ignore[list-item]
    await reader.members()


def measure(url: str, jobs: int) -> list[Figure]:
    with fresh_place(url) as place:
        return asyncio.run(_measure(place, jobs))


async def _measure(place: Place, jobs: int) -> list[Figure]:
    figures = []
    async with place.bus() as bus:
        jid = await _fill(bus, jobs)
        reader = (await bus._link()).reader
        for name, ask in QUESTIONS.items():
            await ask(bus, reader, jid)  # loads what is to be loaded
            with _Ping(place.url) as ping:
                took = []
                end = time.monotonic() + SECONDS
                while not took or time.monotonic() < end:
                    began = time.monotonic()
                    await ask(bus, reader, jid)
                    took.append((time.monotonic() - began) * 1000)
            figures += [
                Figure.of("listed", f"{name}: one answer", "ms", took),
                Figure.of("listed", f"{name}: slowest calls", "ms", ping.calls_ms, LONGEST),
                Figure.of("listed", f"{name}: others' PING, p50", "ms", [percentile(ping.ms, 50)]),
                Figure.of("listed", f"{name}: others' PING, p99", "ms", [percentile(ping.ms, 99)], PING),
            ]
    return figures


async def _fill(bus: Any, jobs: int) -> str:
    jid = ""
    for first in range(0, jobs, AT_ONCE):
        specs = []
        for n in range(first, min(first + AT_ONCE, jobs)):
            rare = "rare" if n % RARE == RARE // 2 or n == jobs - 1 else None
            delay = 3600 if n % 10 == 0 else None
            options = bus.options(queue=f"q-{n % QUEUES}", group=rare or f"group-{n % 1000}", delay=delay)
            specs.append(options.spec(rare or "common", n))
        sent = await bus.enqueue_many(specs)
        await bus.cancel_many([handle.jid for n, handle in enumerate(sent) if n % 10 in (1, 2)])
        jid = sent[0].jid
    return jid


class _Ping:
    """Pings from `with` to its end, in a thread with a connection of its own."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.ms: list[float] = []
        self.calls_ms: list[float] = []

    def __enter__(self) -> _Ping:
        self._redis.config_set("slowlog-log-slower-than", SLOW_US)
        self._redis.config_set("slowlog-max-len", 10_000)
        self._redis.slowlog_reset()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        calls: dict[bytes, list[float]] = {}
        for each in self._redis.slowlog_get(10_000):
            calls.setdefault(each["command"].split()[0], []).append(each["duration"] / 1000)
        self.calls_ms = max(calls.values(), key=statistics.median, default=[SLOW_US / 1000])
        self._redis.close()

    def _run(self) -> None:
        while not self._over.wait(0.0005):
            began = time.monotonic()
            self._redis.ping()
            self.ms.append((time.monotonic() - began) * 1000)
