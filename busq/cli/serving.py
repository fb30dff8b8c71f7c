"""
What a worker and a watchdog have in common as processes: signals, the check of the server, the way out.

The first SIGTERM or Ctrl-C asks to stop, the second hurries. Once everything has been told to Redis, nothing may keep
the process from ending: not a thread of a library, not code that was abandoned.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from busq import events
from busq.cli import exits, logs
from busq.config import Settings
from busq.errors import UnfitServer

LINGER_S = 5.0  # how long threads of others may take to end with us
ALLOW_UNFIT = "BUSQ_ALLOW_UNFIT"

log = events.logger("busq.cli")


async def require_fit(settings: Settings) -> None:
    """Refuse a server that must not carry a bus, unless BUSQ_ALLOW_UNFIT=1. Raise `UnfitServer`."""
    from busq.store import fitness

    try:
        for finding in await fitness.require_fit(settings):
            log.warning("server.warning", check=finding.check, found=finding.found, advice=finding.advice)
    except UnfitServer as error:
        if os.environ.get(ALLOW_UNFIT) != "1":
            raise UnfitServer(f"{error} ({ALLOW_UNFIT}=1 goes on all the same.)") from None
        log.warning("server.unfit", error=str(error), allowed_by=f"{ALLOW_UNFIT}=1")


async def until_stopped(
    run: Coroutine[Any, Any, None], *, stop: Callable[[], None], started: Callable[[], bool]
) -> None:
    """
    Run until it ends; signals call `stop`. One that comes before there is anything to stop ends it at once.

    Raise what `run` raises.
    """
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(run)

    def asked(name: str) -> None:
        log.info("signal", signal=name)
        if started():
            stop()
        else:
            running.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number.name)
    try:
        await running
    except asyncio.CancelledError:
        if started():
            raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            # Too late to ask for anything; a second signal must not turn a clean end into another one.
            signal.signal(number, signal.SIG_IGN)


def leave_now(code: int = exits.DONE) -> None:
    """End the process here: code that was given up still runs in it, and nobody waits for that."""
    logs.flush()
    os._exit(code)


def leave_soon(code: int = exits.DONE) -> None:
    """End in the usual way, and without it when somebody else's thread would hold the process."""

    def give_up() -> None:
        print("busq: a thread that is not ours would not end; leaving without it", file=sys.stderr)
        leave_now(code)

    timer = threading.Timer(LINGER_S, give_up)
    timer.daemon = True
    timer.start()
