"""
Settle: how fast a watchdog carries out on the records what a wide cancel has decided, and how long it holds the server.

One watchdog in a process of its own, with the settings as they come, over a backlog in which every job matches, and
over one in which 1 of 100 does. The clock runs from the decision to the moment when the scope is settled. How long
single calls were comes from the server's slow log, which counts wall time: on a busy machine a call also waits for the
CPU. The CPU time of the server stands beside it, over the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import msgspec
from redis import Redis

from benchmarks.figures import Figure, Requirement, percentile
from benchmarks.processes import Helper, Place, fresh_place, until_closed
from benchmarks.wide import fill, server_cpu
from busq.watchdog.watchdog import Watchdog

RATE = Requirement("at least", 50_000)
LONGEST = Requirement("at most", 5)
LOOK_EVERY_S = 0.01
LOGGED_US = 100  # shorter calls are not of interest
LOGGED = 100_000  # calls
ROUNDS = 3  # at most: each fills its backlog anew
SHARES = {"all match": 1, "1 in 100 matches": 100}


class _Run(msgspec.Struct, frozen=True):
    seconds: float
    cpu_us: float
    calls_ms: list[float]  # of the scripts, those that were logged


def measure(url: str, pairs: int, jobs: int) -> list[Figure]:
    runs: dict[str, list[_Run]] = {name: [] for name in SHARES}
    for turn in range(min(pairs, ROUNDS)):
        for name in SHARES if turn % 2 else reversed(SHARES):
            with fresh_place(url) as place:
                asyncio.run(fill(place, _backlog(jobs, SHARES[name])))
                runs[name].append(_settle(place, -(-jobs // SHARES[name])))
    figures = []
    for name, found in runs.items():
        figures += [
            Figure.of("settle", f"{name}: records", "/s", [jobs / run.seconds for run in found], RATE),
            Figure.of("settle", f"{name}: the server's CPU for one", "us", [run.cpu_us / jobs for run in found]),
            Figure.of("settle", f"{name}: script calls, p99", "ms", [percentile(run.calls_ms, 99) for run in found]),
            Figure.of("settle", f"{name}: longest script call", "ms", [max(run.calls_ms) for run in found], LONGEST),
        ]
    return figures


def _backlog(jobs: int, one_in: int) -> Iterator[tuple[str, str]]:
    for n in range(jobs):
        yield "noop", "others" if n % one_in else "many"


def _settle(place: Place, matching: int) -> _Run:
    with Helper(_be_watchdog, place) as watchdog:
        assert watchdog.hear() == "ready"
        with _slow_log(place) as log, server_cpu(place) as cpu:
            seconds = asyncio.run(_decide(place, matching))
    return _Run(seconds, cpu.us, log or [LOGGED_US / 1000])


@contextmanager
def _slow_log(place: Place) -> Iterator[list[float]]:
    """Milliseconds of the script calls that were made meanwhile; filled at its end."""
    calls: list[float] = []
    settings = {"slowlog-log-slower-than": LOGGED_US, "slowlog-max-len": LOGGED}
    with Redis.from_url(place.url) as redis:
        before = {name: redis.config_get(name)[name] for name in settings}
        for name, value in settings.items():
            redis.config_set(name, value)
        redis.slowlog_reset()
        try:
            yield calls
            calls += [
                entry["duration"] / 1000
                for entry in redis.slowlog_get(LOGGED)
                if entry["command"].startswith(b"EVALSHA")
            ]
        finally:
            for name, value in before.items():
                redis.config_set(name, value)


async def _decide(place: Place, matching: int) -> float:
    """Seconds until all is settled."""
    async with place.bus() as bus:
        began = time.monotonic()
        scope = await bus.cancel_where(group="many")
        while (look := await scope.look()).state == "settling":  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY_S)
        seconds = time.monotonic() - began
    hit = look.counts["cancelled"]
    if hit != matching:
        raise RuntimeError(f"{hit:,} jobs were cancelled, and {matching:,} match")
    return seconds


async def _be_watchdog(pipe: Connection, place: Place) -> None:
    watchdog = Watchdog(place.bus().settings)
    running = asyncio.create_task(watchdog.run())
    while not watchdog.started and not running.done():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.005)
    pipe.send("ready")
    await until_closed(pipe, _wait_for(running))


async def _wait_for(running: asyncio.Task[None]) -> None:
    await running
