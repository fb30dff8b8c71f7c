"""
The application that the chart runs until it is given yours: two harmless handlers, to try a cancel with.

    busq worker busq.placeholder:bus
    busq enqueue snooze '[600]' --jid first; busq cancel first --wait 30
"""

from __future__ import annotations

import asyncio

import busq

bus = busq.Bus()


@bus.job
async def snooze(seconds: float) -> float:
    """Sleep for so many seconds, a day at most, and tell how far it is."""
    job = busq.current_job()
    seconds = min(max(0.0, seconds), 86400.0)
    for step in range(100):
        job.progress(step / 100)
        await asyncio.sleep(seconds / 100)
    return seconds


@bus.job
async def echo(words: str) -> str:
    """Answer with what was said."""
    return words
