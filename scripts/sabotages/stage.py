#!/usr/bin/env python3
"""
A short run for the judge: everybody who may call a script calls it at the wrong moment, too.

    python scripts/sabotages/stage.py RUN_FOLDER

First a ghost: a worker made of the store's bare verbs that holds entries, falls silent, speaks too late and twice, with
a watchdog that does not look before it acts. Then real workers and watchdogs, with notices that never arrive and others
that nobody meant. On a sound tree the judge finds nothing; that is what makes its finding anything elsewhere worth
something. What does not happen in time is left to the judge, too: the run always comes to its end.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from busq.cli.embedded import HOST, free_port, wait_until_serving  # noqa: E402
from busq.cli.tied import end_process, tied_process  # noqa: E402
from sabotages.ghost import haunt  # noqa: E402
from sabotages.recorder import Recorder  # noqa: E402
from sabotages.staff import employ  # noqa: E402

AOF = (
    "--appendonly", "yes", "--appendfsync", "no", "--aof-use-rdb-preamble", "no", "--auto-aof-rewrite-percentage", "0",
    "--aof-timestamp-enabled", "yes", "--save", "", "--maxmemory-policy", "noeviction",
)  # fmt: skip
SETTINGS: dict[str, Any] = {
    "beat_s": 0.15, "lease_s": 3.0, "grace_s": 0.3, "force_s": 0.1, "watchdog_interval_s": 0.05, "backoff_s": 0.02,
    "backoff_max_s": 0.04, "shutdown_timeout_s": 0.1, "cleanup_s": 0.2,
}  # fmt: skip
PORT_TRIES = 5
HEARS_WITHIN_S = 5.0  # a handler that waits hears its cancel; a beat is promised, the rest is for busy machines


async def perform(folder: Path) -> None:
    recorder = Recorder(folder)
    told = {
        "run": "stage", "seed": 0, "namespace": "busq", "shards": 1, "settings": SETTINGS, "expect_drained": True,
        "slack_s": 20.0, "hears": {"kinds": ["hold"], "within_s": HEARS_WITHIN_S},
    }  # fmt: skip
    async with server(folder / "server") as url:
        await haunt(url, SETTINGS, recorder)
        await employ(url, SETTINGS, recorder)
    recorder.keep("run.json", told)


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[str]:
    """A redis-server that writes everything down."""
    executable = os.environ.get("BUSQ_REDIS_SERVER") or shutil.which("redis-server")
    if executable is None:
        raise SystemExit("no redis-server on PATH and BUSQ_REDIS_SERVER is not set; `sh scripts/test` brings one")
    for _ in range(PORT_TRIES):
        port = free_port()
        process = tied_process([executable, "--dir", str(folder), *AOF, "--bind", HOST, "--port", str(port)])
        try:
            if wait_until_serving(process, port):
                yield f"redis://{HOST}:{port}/0"
                return
        finally:
            end_process(process)
    raise SystemExit("redis-server does not start")


if __name__ == "__main__":
    asyncio.run(perform(Path(sys.argv[1])))
