"""The judge reads what a real server has written down of real workers, and finds nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import busq
from busq.worker.worker import Worker
from tests.runtime.bench import UNHURRIED, Bench, bench, until
from tests.servers import RedisServer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from judge.run import judge_run
from judge.verdict import Verdict

Start = Callable[..., RedisServer]

TELLING = (
    "--appendfsync", "no", "--aof-use-rdb-preamble", "no", "--auto-aof-rewrite-percentage", "0",
    "--aof-timestamp-enabled", "yes",
)  # fmt: skip


def judged(server: RedisServer, folder: Path, settings: dict[str, Any]) -> Verdict:
    """The verdict over everything that the server, which has been killed, wrote down."""
    shutil.copytree(server.aof_folder, folder / "server" / "appendonlydir")
    told = {"run": "t", "namespace": "busq", "shards": 1, "settings": settings, "expect_drained": True, "slack_s": 20}
    (folder / "run.json").write_text(json.dumps(told))
    return judge_run(folder)


async def at_work(b: Bench) -> Worker:
    """One job of each sort of ending, and some that hang together. Returns the worker, with nothing left to do."""

    @b.bus.job
    async def quick(n: int) -> int:
        return n

    @b.bus.job(retries=1)
    async def fails() -> None:
        raise ValueError("as it was told")

    @b.bus.job
    async def hold() -> None:
        await gate.wait()

    @b.bus.job
    async def deaf() -> None:
        while not gate.is_open:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    @b.bus.job
    async def parent() -> None:
        for n in range(3):
            await busq.current_job().spawn(quick, n)

    @hold.on_cancel
    async def clean(job: busq.CancelledJob) -> None: ...

    @parent.finalize
    async def done(job: busq.FinishedJob) -> None: ...

    gate = b.gate()
    await b.watch()
    worker = await b.work()
    late = await quick.options(delay=60).enqueue(0)
    assert (await late.cancel()).verdict == "cancelled"
    await quick.options(group="g", delay=60).enqueue(0)
    handles = [await fails.enqueue(), await parent.enqueue(), await quick.options(expires=0.001, delay=0).enqueue(1)]
    handles += await b.bus.enqueue_many([quick.spec(n) for n in range(300)])
    held = [await hold.enqueue() for _ in range(3)] + [await deaf.enqueue()]
    for handle in held:
        await b.reaches(handle.jid, "running")
    await b.bus.cancel_many([handle.jid for handle in held])
    scope = await b.bus.cancel_where(group="g")
    for handle in [*handles, *held, late]:
        await handle.wait(timeout=30)
    await scope.wait(timeout=30)
    gate.open()
    await until(lambda: at_rest(b))
    return worker


async def at_rest(b: Bench) -> bool:
    """Clean-ups, too, have ended."""
    stats = await b.bus.stats()
    return not any(stats.now[state] for state in ("scheduled", "queued", "running", "waiting", "cancelling"))


async def test_a_run_of_real_workers_is_valid(start_server: Start, tmp_path: Path) -> None:
    server = start_server(aof=True, options=TELLING)
    async with bench(server.url, **UNHURRIED) as b:
        await at_work(b)
        settings = {"watchdog_interval_s": b.settings.watchdog_interval_s}
    server.kill()
    verdict = judged(server, tmp_path, settings)
    assert (verdict.violations, verdict.void) == ([], [])
    seen = verdict.figures
    assert {"waiting -> succeeded", "running -> scheduled", "cancelling -> cancelled"} <= set(seen["moves"])
    assert {"before_start", "confirmed", "abandoned"} <= set(seen["ended"])
    assert {"user", "scope"} <= set(seen["causes"])


async def test_a_log_that_begins_with_a_state_is_judged_from_there(start_server: Start, tmp_path: Path) -> None:
    """The server rewrites its log in the middle: what it then holds is no history, but what follows is."""
    server = start_server(aof=True, options=TELLING)
    async with bench(server.url) as b:
        await b.end(await at_work(b))
        waiting = [await b.bus.enqueue("quick", n) for n in range(3)]
        delayed = await b.bus.options(delay=60).enqueue("quick", 4)
        with server.client() as client:
            client.bgrewriteaof()
            await until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
        await delayed.cancel()
        await b.work()
        for handle in waiting:
            await handle.wait(timeout=30)
        settings = {"watchdog_interval_s": b.settings.watchdog_interval_s}
    server.kill()
    verdict = judged(server, tmp_path, settings)
    assert (verdict.violations, verdict.void) == ([], [])
    assert verdict.figures["moves"] == {"queued -> running": 3, "running -> succeeded": 3, "scheduled -> cancelled": 1}
