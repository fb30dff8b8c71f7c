"""
An attempt that is given up is listed as a suspect when its ending arrives, and its code may have stopped by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tests.runtime.bench import Bench, bench, taken, until


async def test_code_that_stops_before_its_attempt_is_listed_leaves_no_suspect(redis_url: str) -> None:
    """The ending waits, as it does while Redis is away; what clears the list comes first and finds nothing to clear."""
    async with bench(redis_url) as b:
        way_out, told = b.gate(), b.gate()

        @b.bus.job(timeout=0.05)
        async def swallows() -> None:
            while not way_out.is_open:
                with suppress(asyncio.CancelledError):
                    await way_out.wait()

        worker = await b.work()
        runner = worker._runner
        settle = runner._store.settle

        async def late(*where: Any) -> Sequence[tuple[str, str]]:
            await told.wait()
            return await settle(*where)

        runner._store.settle = late  # type: ignore[method-assign]
        handle = await swallows.enqueue()
        attempt = await taken(worker, handle.jid)
        await until(lambda: attempt in runner.suspects)
        way_out.open()
        await until(lambda: attempt not in runner.suspects)
        await until(lambda: not runner._errands)
        told.open()
        job = await handle.wait(timeout=30)
        assert (job.state, job.cause) == ("failed", "timed_out")
        await until(lambda: _suspects(b, 0))


async def _suspects(b: Bench, count: int) -> bool:
    return (await b.bus.stats()).suspects == count
