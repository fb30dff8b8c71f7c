"""
What a worker and a watchdog have in common as processes: signals, the check of the server, the way out.

The first SIGTERM or Ctrl-C asks to stop, the second hurries. Once everything has been told to Redis, nothing may keep
the process from ending: not a thread of a library, not code that was abandoned.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from busq import events
from busq.cli import exits, logs, signals
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
    run: Coroutine[Any, Any, None],
    *,
    stop: Callable[[], None],
    started: Callable[[], bool],
    for_certain: Callable[[], None] | None = None,
) -> None:
    """
    Run until it ends; signals call `stop` in the loop. One that comes before there is anything to stop ends it at once.

    `for_certain` is called beside it, in another thread, for each signal: it has to do what is to be done when the loop
    is blocked. Raise what `run` raises.
    """
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(run)

    def asked() -> None:
        if started():
            stop()
        else:
            running.cancel()

    def hear(name: str) -> None:
        if for_certain is not None:
            for_certain()
        log.info("signal", signal=name)  # first: the loop may be over with all of it before we have our next turn
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(asked)

    with signals.heard(hear):
        try:
            await running
        except asyncio.CancelledError:
            if started():
                raise


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
