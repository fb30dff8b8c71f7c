"""Processes of a release and of today side by side, as in a rollout: every job ends once, and as it should."""

from __future__ import annotations

import contextlib
import sys

import pytest

import busq
from tests.golden.making import versions
from tests.interface import commands
from tests.runtime.bench import until

JOBS = 120


@pytest.mark.parametrize("version", versions())
async def test_a_rollout_with_cancels_in_the_middle_of_it(
    redis_url: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = commands.COMMAND
    old = [sys.executable, "-c", f"from tests.golden.old import run; run({version!r})"]
    quick = {"BUSQ_BEAT_S": "0.2", "BUSQ_FORCE_S": "0.2"}
    with contextlib.ExitStack() as processes:
        workers = []
        for command in (now, old):
            monkeypatch.setattr(commands, "COMMAND", command)
            start = [("worker", "shop:bus", "--concurrency", "3"), ("watchdog",)]
            made = [processes.enter_context(commands.service(*words, url=redis_url, **quick)) for words in start]
            made[1].until("watchdog.started")
            workers.append(made[0].until("worker.started")["worker"])
        async with busq.Bus(redis_url) as bus:
            adds = await bus.enqueue_many([bus.spec("add", n) for n in range(JOBS)])
            fails = await bus.enqueue_many([bus.options(retries=1, backoff=0.05).spec("fail") for _ in range(4)])
            later = await bus.enqueue_many([bus.options(delay=3600, group="w").spec("wait") for _ in range(4)])
            assert [await handle.result(timeout=60) for handle in adds] == [n + 1 for n in range(JOBS)]
            assert [(await handle.wait(timeout=60)).attempt for handle in fails] == [2] * 4
            # As many as both workers have slots: when all of them run, each worker has three.
            waits = await bus.enqueue_many([bus.options(group="w").spec("wait") for _ in range(6)])
            for handle in waits:

                async def runs(jid: str = handle.jid) -> bool:
                    return (await bus.get(jid)).state == "running"

                await until(runs)
            monkeypatch.setattr(commands, "COMMAND", old)
            assert commands.busq("cancel", waits[0].jid, url=redis_url).returncode == 0
            await bus.cancel(waits[1].jid)
            assert commands.busq("cancel", "--group", "w", url=redis_url).returncode == 0
            for handle in [*waits, *later]:
                job = await handle.wait(timeout=60)
                assert (job.state, job.attempt) == ("cancelled", 1 if handle in waits else 0)
            for handle in [*adds, *waits]:
                names = [event.name for event in await bus.history(handle.jid)]
                assert names.count("started") == names.count("finalized") == 1

            async def tidied() -> bool:
                kinds = [job.kind for job in await bus.list(state="succeeded", limit=1000)]
                return kinds.count("wait/on_cancel") == len(waits) + len(later)

            await until(tidied)
            owners = {
                event.by for handle in waits for event in await bus.history(handle.jid) if event.name == "started"
            }
            assert owners == set(workers)
            stats = await bus.stats()
            assert (stats.dead, stats.suspects, stats.now["running"], stats.now["queued"]) == (0, 0, 0, 0)
