"""
Observe: from the call of `cancel` to the moment at which a `def` handler of another process knows of it.

In a thread and in a child process; by a loop that calls `check_cancelled` and sleeps a millisecond in between, and by
`wait_cancelled`. Beside it, in turns, the floor of the coroutines' figure: a bare redis-py PUBLISH to a `get_message`
loop in another process. The moment of the call travels as the cancel's reason; what the handler measured comes back
as the evidence of its job. Jobs have run for 50 ms and longer, and there is one for each slot at a time.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from multiprocessing.connection import Connection

import busq
from benchmarks.bare import APART_S, publishing
from benchmarks.cancel import RUN_FOR_S
from benchmarks.figures import Figure, Requirement, over
from benchmarks.processes import Helper, Place, fresh_place, work
from benchmarks.turns import Measured, Side, in_turns

REQUIRED = Requirement("under", 100)  # ms: what the contract of the process pool says of `check_cancelled`
LOOK_EVERY_S = 0.001
WARM_UP_S = 0.5
WAYS = {
    "thread_checks": "thread, check_cancelled",
    "thread_waits": "thread, wait_cancelled",
    "process_checks": "process, check_cancelled",
    "process_waits": "process, wait_cancelled",
}

handlers = busq.Bus()


def _since_the_call(job: busq.CurrentJob) -> float:
    heard = time.monotonic()
    return heard - float(job.reason)


def _checks() -> float:
    job = busq.current_job()
    try:
        while True:
            job.check_cancelled()
            time.sleep(LOOK_EVERY_S)
    except busq.Cancelled:
        return _since_the_call(job)


def _waits() -> float:
    job = busq.current_job()
    job.wait_cancelled()
    return _since_the_call(job)


@handlers.job
def thread_checks() -> float:
    return _checks()


@handlers.job
def thread_waits() -> float:
    return _waits()


@handlers.job(pool="process")
def process_checks() -> float:
    return _checks()


@handlers.job(pool="process")
def process_waits() -> float:
    return _waits()


@handlers.job(pool="process")
def warm_up() -> None:
    """Keeps its child busy until every slot has one."""
    time.sleep(WARM_UP_S)


def measure(url: str, pairs: int, samples: int) -> list[Figure]:
    with (
        fresh_place(url) as place,
        Helper(_be_worker, place) as worker,
        Helper(_be_client, place) as client,
        publishing(place) as publish,
    ):
        assert worker.hear() == "ready"
        sides: list[Side] = [publish, *(partial(_observe, client, kind) for kind in WAYS)]
        bare, *observed = in_turns(pairs, samples, sides, warm_up=1)
    ours = dict(zip(WAYS, observed, strict=True))
    return [figure for percent in (50.0, 99.0) for figure in _figures(ours, bare, percent)]


def _observe(client: Helper, kind: str, count: int) -> Measured:
    client.tell((kind, count))
    heard: Measured = client.hear()
    return heard


def _figures(ours: dict[str, list[Measured]], bare: list[Measured], percent: float) -> list[Figure]:
    figures = [Figure("observe", f"bare PUBLISH: p{percent:g}", "ms", over(bare, percent))]
    for kind, rounds in ours.items():
        spread = over(rounds, percent)
        requirement = REQUIRED if percent == 99 else None
        ok = None if requirement is None else requirement.met_by(spread.median)
        figures.append(Figure("observe", f"{WAYS[kind]}: p{percent:g}", "ms", spread, requirement, ok))
    return figures


# In processes of their own -------------------------------------------------------------------------------


async def _be_worker(pipe: Connection, place: Place) -> None:
    await work(pipe, place.bus(handlers))


async def _be_client(pipe: Connection, place: Place) -> None:
    slots = len(os.sched_getaffinity(0))
    async with place.bus() as bus:
        for child in await bus.enqueue_many(bus.spec("warm_up") for _ in range(slots)):
            await child.result(timeout=30)
        while True:
            kind, count = pipe.recv()
            heard: list[float] = []
            while len(heard) < count:
                heard += await _cancel_some(bus, kind, min(slots, count - len(heard)))
            pipe.send(heard)


async def _cancel_some(bus: busq.Bus, kind: str, count: int) -> list[float]:
    handles = await bus.enqueue_many(bus.spec(kind) for _ in range(count))
    for handle in handles:
        while (await handle.get()).state != "running":  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(LOOK_EVERY_S)
    await asyncio.sleep(RUN_FOR_S)
    for handle in handles:
        await handle.cancel(reason=repr(time.monotonic()))
        await asyncio.sleep(APART_S)
    jobs = [await handle.wait(timeout=30) for handle in handles]
    return [job.evidence.result for job in jobs if job.evidence is not None]
