"""
Cancel: from the call in one process to the `CancelledError` in a handler of another.

Beside it, in turns, a bare redis-py PUBLISH to a `get_message` loop in another process, also on uvloop. The moment
of each call travels in the message: as the reason of a cancel, as the text of a bare one. Cancels hit jobs that
have run for 50 ms and longer, one at a time, a few milliseconds apart.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from multiprocessing.connection import Connection

import busq
from benchmarks.bare import APART_S, publishing
from benchmarks.figures import Figure, Requirement, latencies
from benchmarks.processes import Helper, Place, fresh_place, work
from benchmarks.turns import Measured, in_turns

REQUIRED = {50.0: Requirement("under", 3), 99.0: Requirement("under", 10)}
RUN_FOR_S = 0.06


def measure(url: str, pairs: int, samples: int) -> list[Figure]:
    with (
        fresh_place(url) as place,
        Helper(_be_worker, place) as worker,
        Helper(_be_client, place) as client,
        publishing(place) as publish,
    ):
        assert worker.hear() == "ready"
        bare, cancels = in_turns(pairs, samples, [publish, partial(_cancel, client, worker)])
    return latencies("cancel", cancels, bare, REQUIRED, floor_name="bare PUBLISH")


def _cancel(client: Helper, worker: Helper, count: int) -> Measured:
    client.tell(count)
    for _ in range(count):
        worker.hear()
    time.sleep(RUN_FOR_S)
    client.tell("cancel")
    return [worker.hear() for _ in range(count)]


# In processes of their own -------------------------------------------------------------------------------


async def _be_worker(pipe: Connection, place: Place) -> None:
    bus = place.bus()

    @bus.job
    async def sleep_long() -> None:
        pipe.send("started")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            heard = time.monotonic()
            pipe.send(heard - float(busq.current_job().reason))
            raise

    await work(pipe, bus)


async def _be_client(pipe: Connection, place: Place) -> None:
    async with place.bus() as bus:
        while True:
            handles = await bus.enqueue_many([bus.spec("sleep_long") for _ in range(pipe.recv())])
            pipe.recv()
            for handle in handles:
                await bus.cancel(handle.jid, reason=repr(time.monotonic()))
                await asyncio.sleep(APART_S)
