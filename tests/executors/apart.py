"""
A worker in a process of its own that plays the stories: `python -m tests.executors.apart {"executor": …}`.

It logs as `busq worker` does, and so do its children.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import busq
from busq.cli.logs import configure
from busq.worker.worker import Worker
from tests.executors import stories  # noqa: F401 - fills the applications
from tests.executors.stage import APPLICATIONS


async def main() -> None:
    told = json.loads(sys.argv[1])
    configure()
    bus = busq.Bus(told["url"], **told["settings"])
    worker = Worker(
        bus.settings, APPLICATIONS[told["executor"]].handlers, concurrency=2, child_setup="busq.cli.logs:configure"
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
