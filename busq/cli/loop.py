"""
The event loop of a command: uvloop where it is installed, unless `BUSQ_LOOP=asyncio`.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from busq.errors import ConfigError

T = TypeVar("T")


def factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes our loops. Raise `ConfigError` for a `BUSQ_LOOP` that is neither asyncio nor uvloop."""
    wanted = os.environ.get("BUSQ_LOOP", "")
    if wanted not in ("", "asyncio", "uvloop"):
        raise ConfigError(f"BUSQ_LOOP: {wanted!r} will not do; it takes asyncio or uvloop, or nothing")
    if wanted != "asyncio":
        try:
            import uvloop
        except ImportError:
            if wanted:
                raise ConfigError("BUSQ_LOOP: uvloop is not installed; leave it out, or set asyncio") from None
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end in a loop of its own. Ctrl-C cancels the work, then raises `KeyboardInterrupt`."""
    try:
        runner = asyncio.Runner(loop_factory=factory())
    except BaseException:
        work.close()
        raise
    with runner:
        return runner.run(work)


def spare_collector() -> None:
    """
    Have Python look for reference cycles less often, for a process that does nothing but run jobs.

    What exists by now (modules, handlers) is never looked at again; a full search of the rest waits for 250 times
    20,000 new objects. Measured: a sixth of the worker's own time for each no-op job.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 25, 10)
