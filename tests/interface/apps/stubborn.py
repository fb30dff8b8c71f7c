"""An application of handlers that do not stop: they block the loop, ignore their cancel, hold the interpreter lock."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import threading
import time
from pathlib import Path

import structlog

import busq

bus = busq.Bus()
log = structlog.get_logger("stubborn")


@bus.job(grace=0.1)
async def spin() -> None:
    log.info("spinning")
    while True:
        pass


@bus.job(grace=0.1)
async def derive() -> None:
    """Blocks the loop in C code that lets go of the interpreter lock and looks at no signal."""
    log.info("deriving")
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000_000)


@bus.job(grace=0.1)
def ignore() -> None:
    """And leaves a thread behind that is no daemon, as libraries do."""
    threading.Thread(target=threading.Event().wait, args=(3600,)).start()
    log.info("ignoring")
    threading.Event().wait(3600)


@bus.job(grace=600)
def match(met: str) -> str:
    """
    Calls of `re` that hold the interpreter lock, each longer, until one has taken a second and a second attempt, which
    is quick, was `met`: where the machine is slow it is met before this has held the lock for longer than a lease.
    Its grace is for the calls that are still to come when it hears that it has lost its lease.
    """
    if busq.current_job().attempt > 1:
        Path(met).touch()
        return "second"
    log.info("matching")
    length, took_s = 18, 0.0
    while took_s < 1.0 or not Path(met).exists():
        length += 1
        began = time.monotonic()
        re.match(r"(a*)*b", "a" * length)
        took_s = time.monotonic() - began
    return "first"


@bus.job(grace=600)
async def match_in_loop(met: str) -> str:
    return match(met)


@bus.job
def fork() -> int:
    """A child made by fork ends by SIGTERM, as ever. Return the signal that ended it."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.write(theirs, b"ready")
        os.close(2)
        time.sleep(20)
        os._exit(7)
    os.read(ours, 5)
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@bus.job
async def linger() -> None:
    """Takes very long to clean up."""
    try:
        log.info("lingering")
        await asyncio.sleep(3600)
    finally:
        log.info("cleaning")
        await asyncio.sleep(3600)
