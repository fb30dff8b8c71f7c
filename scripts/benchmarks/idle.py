"""
Idle: how many commands a worker without work sends.

Counted are the lines of MONITOR that come from the worker's own connections; commands that a script runs inside
the server are not sent by anyone and not counted.
"""

from __future__ import annotations

import threading
import time
from multiprocessing.connection import Connection

from redis import Redis

from benchmarks.figures import Figure, Requirement
from benchmarks.processes import Helper, Place, fresh_place, work

REQUIRED = Requirement("at most", 5)
SETTLE_S = 1.0


def measure(url: str, seconds: float) -> list[Figure]:
    with fresh_place(url) as place, Redis.from_url(url) as redis:
        others = _addresses(redis)
        with Helper(_be_worker, place) as worker:
            assert worker.hear() == "ready"
            time.sleep(SETTLE_S)
            rates = [_listen(redis, _addresses(redis) - others, seconds)]
    return [Figure.of("idle", "commands an idle worker sends", "/s", rates, REQUIRED)]


def _addresses(redis: Redis) -> set[str]:
    return {client["addr"] for client in redis.client_list()}


def _listen(redis: Redis, counted: set[str], seconds: float) -> float:
    count = 0
    with redis.monitor() as monitor:  # type: ignore[no-untyped-call]
        over = threading.Timer(seconds, lambda: redis.echo("busq-bench: over"))
        over.start()
        for command in monitor.listen():
            if command["command"] == "ECHO busq-bench: over":
                break
            own = f"{command['client_address']}:{command['client_port']}" in counted
            count += own and command["client_type"] != "lua"
    over.join()
    return count / seconds


async def _be_worker(pipe: Connection, place: Place) -> None:
    bus = place.bus()

    @bus.job
    async def noop() -> None: ...

    await work(pipe, bus)
