"""
Ending asyncio tasks for certain.
"""

from __future__ import annotations

import asyncio
from typing import Any

AGAIN_AFTER_S = 0.1


async def end(*tasks: asyncio.Task[Any]) -> None:
    """
    Cancel these tasks and return when all of them have ended, whatever they end with.

    Cancelled again until they have: on Python 3.11 a cancel that lands while redis-py connects can be swallowed on
    the way, and a task that reads for ever would then never hear of it.
    """
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=AGAIN_AFTER_S)
