"""An application for the tests of the command line: jobs that end, fail, wait, and will not stop."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time

import structlog

import busq

bus = busq.Bus()
empty = busq.Bus()
not_a_bus = 7


@bus.job
async def add(a: int, b: int = 1) -> int:
    return a + b


@bus.job
async def fail() -> None:
    raise ValueError("no \x1b[31mred\x1b[0m")


@bus.job(grace=0.2)
async def wait() -> None:
    structlog.get_logger("shop").info("waiting", password="hunter22", place="redis://u:hunter22@host/0")
    logging.getLogger("library").warning("by way of logging")
    await asyncio.sleep(3600)


@wait.on_cancel
def tidy(job: busq.CancelledJob) -> str:
    return f"tidied up after {job.jid}"


@bus.job(grace=0.1)
def ignore() -> None:
    logging.getLogger("shop").warning("ignoring")
    threading.Event().wait(3600)


@bus.job(pool="process")
def child() -> int:
    logging.getLogger("library").warning("by way of a child")
    return os.getpid()


@bus.job
async def block(way_out: str) -> None:
    logging.getLogger("shop").warning("blocking")
    _wait_for(way_out)


def _wait_for(way_out: str) -> None:
    while not os.path.exists(way_out):
        time.sleep(0.01)
