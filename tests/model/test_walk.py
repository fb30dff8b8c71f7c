"""
Long random walks of the shipped scripts on a real server beside a plain model of the bus (plain.py).

`BUSQ_WALKS` says how many walks there are; more than some hundred take more than the usual time limit of a test
(`--timeout 0`). Without it they are the same every time. A walk that fails is made as short as it can be, which takes
five minutes at most, is printed as the steps that it took, and becomes a small test of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.choices import SHARDS
from tests.model.comparing import SETTINGS
from tests.model.machine import Walking
from tests.model.walk import Walk
from tests.store.bench import Bench

WALKS = int(os.environ.get("BUSQ_WALKS", "100"))
HOW: dict[str, Any] = {
    "stateful_step_count": 50,
    "deadline": None,
    "database": None,
    "print_blob": False,
    "suppress_health_check": list(HealthCheck),
}


@contextmanager
def walking(url: str) -> Iterator[type[Walking]]:
    """Walks over this server, which is flushed by each."""
    benches = {shards: Bench(url, shards=shards, **SETTINGS) for shards in SHARDS}
    with asyncio.Runner() as runner:

        async def open_all() -> None:
            for bench in benches.values():
                await bench.redis.flushall()
                await bench.__aenter__()

        class OnThisServer(Walking):
            walks = {shards: Walk(bench) for shards, bench in benches.items()}  # noqa: RUF012
            run = staticmethod(runner.run)

        runner.run(open_all())
        try:
            yield OnThisServer
        finally:
            for bench in benches.values():
                runner.run(bench.__aexit__())


@pytest.mark.timeout(900)
def test_every_walk_agrees_with_the_plain_model(redis_url: str) -> None:
    with walking(redis_url) as machine:
        how = settings(max_examples=WALKS, derandomize="BUSQ_WALKS" not in os.environ, **HOW)
        run_state_machine_as_test(machine, settings=how)
