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

PATTERN = [("queued", f"q-{n % 4}") for n in range(7)] + [("scheduled", "q-0")] + [("cancelled", "q-1")] * 2
AT_ONCE = 500  # copies made by one script call
RARE = 100_000  # jobs has one of a rare kind and group
COPY = """
local record = redis.call('HGETALL', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
local front = string.match(KEYS[1], '^(.*:job:)')
for n = tonumber(ARGV[2]), ARGV[2] + ARGV[3] - 1 do
  local jid = ARGV[1] .. string.format('%.0f', n)
  redis.call('HSET', front .. jid, unpack(record))
  local kind = 'common'
  if n % ARGV[4] == math.floor(ARGV[4] / 2) then
    kind = 'rare'
    redis.call('HSET', front .. jid, 'kind', kind, 'group', kind)
  end
  if KEYS[3] == '' then
    redis.call('HSET', front .. jid, 'entry', redis.call('XADD', KEYS[2], '*', 'jid', jid, 'kind', kind))
  else
    redis.call('ZADD', KEYS[3], redis.call('TIME')[1] * 1000 + 3600000 + n, jid)
  end
  if left > 0 then redis.call('PEXPIRE', front .. jid, left) end
end
"""
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
    """Some jobs by way of the bus, and as many copies of them as are wanted, made by the server."""
    redis, keys = (await bus._link()).store.redis, (await bus._link()).store.keys(0)
    per_pattern = jobs // len(PATTERN)
    for n, (state, queue) in enumerate(PATTERN):
        options = bus.options(queue=queue, group=f"group-{n}", delay=3600 if state == "scheduled" else None)
        made = await options.enqueue("common", n)
        if state == "cancelled":
            await made.cancel()
        index = {"queued": b"", "scheduled": keys.scheduled, "cancelled": keys.cancelled_jobs}[state]
        for first in range(0, per_pattern, AT_ONCE):
            count = min(AT_ONCE, per_pattern - first)
            where = (keys.job(made.jid), keys.stream(queue), index)
            await redis.eval(COPY, len(where), *where, f"copy-{n}-", first, count, RARE // len(PATTERN))
    return str(made.jid)


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
