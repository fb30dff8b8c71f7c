"""
Rules: what live rules that match nothing cost a drain of no-op jobs.

The same drain as the benchmark `drain` makes, in turns: with no rule; with one standing rule and with ten, which were
there before the jobs and so were judged when these were enqueued; and with one and with ten that were decided when the
jobs were queued already, so that every start judges its job, for no watchdog runs that would do it sooner. Beside the
time there is the server's CPU time for each job, which others on the machine disturb less.
"""

from __future__ import annotations

import asyncio

import msgspec

from benchmarks import drain
from benchmarks.figures import Figure, Requirement
from benchmarks.processes import Helper, Place, fresh_place
from benchmarks.wide import server_cpu
from busq.protocol.keys import ShardKeys

NONE = "no rule"
COSTS = {1: Requirement("under", 1.10), 10: Requirement("under", 1.25)}  # by how many rules there are


class _Case(msgspec.Struct, frozen=True):
    rules: int
    standing: bool


CASES = {
    NONE: _Case(0, standing=True),
    "one standing": _Case(1, standing=True),
    "ten standing": _Case(10, standing=True),
    "one, jobs came first": _Case(1, standing=False),
    "ten, jobs came first": _Case(10, standing=False),
}


def measure(url: str, pairs: int, jobs: int) -> list[Figure]:
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    cpu: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(pairs):
        for name, case in CASES.items() if turn % 2 else reversed(CASES.items()):
            with fresh_place(url) as place:
                took, spent_us = _drain(place, jobs, case)
            seconds[name].append(took)
            cpu[name].append(spent_us / jobs)
    figures = [Figure.of("rules", name, "jobs/s", [jobs / s for s in values]) for name, values in seconds.items()]
    figures += [Figure.of("rules", f"{name}: the server's CPU", "us/job", values) for name, values in cpu.items()]
    for what, measured in (("time", seconds), ("CPU", cpu)):
        for name, case in CASES.items():
            if name != NONE:
                ratios = [with_it / without for with_it, without in zip(measured[name], measured[NONE], strict=True)]
                required = COSTS[case.rules] if what == "time" else None
                figures.append(Figure.of("rules", f"{name} / {NONE}, {what}", "x", ratios, required))
    return figures


def _drain(place: Place, jobs: int, case: _Case) -> tuple[float, float]:
    if case.standing:
        asyncio.run(_decide(place, case))
    asyncio.run(drain.fill(place, jobs))
    if not case.standing:
        asyncio.run(_decide(place, case))
    stream = ShardKeys(place.namespace, 0).stream("default").decode()
    with server_cpu(place) as cpu, Helper(drain.be_worker, place) as worker:
        seconds = drain.wait_for_end(place, stream, worker)
    return seconds, cpu.us


async def _decide(place: Place, case: _Case) -> None:
    async with place.bus() as bus:
        for n in range(case.rules):
            await bus.cancel_where(group=f"nobody-{n}", standing=case.standing)
