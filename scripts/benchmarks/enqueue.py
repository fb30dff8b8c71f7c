"""
Bulk enqueue: one call of `enqueue_many` beside pipelined XADD with a payload of the same size.

The whole call is what counts: specs are made, checked and encoded inside the timing. What sending alone costs is
reported too. Connections are open and scripts loaded on both sides.
"""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

from redis.asyncio import Redis

from benchmarks import floor
from benchmarks.figures import Figure, Requirement
from benchmarks.processes import Helper, Main, Place, fresh_place

REQUIRED = Requirement("at least", 0.4)
ARGS = ("a.mp4",)
OPTIONS = {"preset": "fast"}


def measure(url: str, pairs: int, jobs: int) -> list[Figure]:
    whole, sending, its, tuned = [], [], [], []
    for turn in range(pairs):
        sides = (_be_producer, _be_floor) if turn % 2 else (_be_floor, _be_producer)
        told = {side: _side(side, url, jobs) for side in sides}
        making, sent = told[_be_producer]
        whole.append(jobs / (making + sent))
        sending.append(jobs / sent)
        its.append(jobs / told[_be_floor][0])
        tuned.append(jobs / told[_be_floor][1])
    return [
        Figure.of("enqueue", "busq, making specs and sending", "jobs/s", whole),
        Figure.of("enqueue", "busq, sending alone", "jobs/s", sending),
        Figure.of("enqueue", "floor: pipelined XADD", "jobs/s", its),
        Figure.of("enqueue", "floor, tuned past redis-py", "jobs/s", tuned),
        Figure.of("enqueue", "busq / floor", "x", [a / b for a, b in zip(whole, its, strict=True)], REQUIRED),
        Figure.of("enqueue", "busq, sending alone / floor", "x", [a / b for a, b in zip(sending, its, strict=True)]),
        Figure.of("enqueue", "busq / floor, tuned", "x", [a / b for a, b in zip(whole, tuned, strict=True)]),
    ]


def _side(side: Main, url: str, jobs: int) -> list[float]:
    with fresh_place(url) as place, Helper(side, place, jobs) as helper:
        told: list[float] = helper.hear()
        return told


async def _be_producer(pipe: Connection, place: Place, jobs: int) -> None:
    async with place.bus() as bus:

        @bus.job
        async def transcode(path: str, preset: str = "slow") -> None: ...

        await bus.enqueue_many([transcode.spec(*ARGS, **OPTIONS)])
        begun = time.monotonic()
        specs = [transcode.spec(*ARGS, **OPTIONS) for _ in range(jobs)]
        made = time.monotonic()
        await bus.enqueue_many(specs)
        pipe.send([made - begun, time.monotonic() - made])


async def _be_floor(pipe: Connection, place: Place, jobs: int) -> None:
    payload = place.bus().spec("transcode", *ARGS, **OPTIONS).job.payload
    seconds = []
    for tuned in (False, True):
        async with floor.connect(place) if tuned else Redis.from_url(place.url) as redis:
            await floor.enqueue(redis, place, "transcode", [payload], tuned=tuned)
            begun = time.monotonic()
            await floor.enqueue(redis, place, "transcode", [payload] * jobs, tuned=tuned)
            seconds.append(time.monotonic() - begun)
    pipe.send(seconds)
