"""
Workers that die around a clean-up: another one runs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import busq
from tests.fault.process import declare
from tests.fault.test_processes import Start, lines, running, start
from tests.runtime.bench import SHORT_LEASE, Bench, bench, until

__all__ = ["start"]  # the fixture


async def ended_hook(b: Bench, jid: str) -> busq.Job:
    job = await b.bus.get(jid)
    assert job.hook is not None
    return await b.bus.wait(job.hook, timeout=20)


async def told(handle: Any) -> list[str]:
    """How each try of the hook ended, as the job's history has it."""
    ended = [event.facts for event in await handle.history() if event.name == "hook_ended"]
    return [facts.partition(": ")[2].rpartition(" (")[0] for facts in ended]


async def test_a_worker_that_dies_in_the_middle_of_a_hook_leaves_it_to_another(
    redis_url: str, tmp_path: Path, start: Start
) -> None:
    async with bench(redis_url) as b:
        hold, _, _ = declare(b.bus, tmp_path)
        first = start("worker", redis_url, **SHORT_LEASE)
        handle = await hold.enqueue()
        await running(b, tmp_path, handle)
        await handle.cancel()
        await until(lambda: lines(tmp_path, handle.jid, "cleaned"), timeout=20)
        assert lines(tmp_path, handle.jid, "cleaned") == [f"{first.pid} confirmed"]
        first.kill()
        await b.watch()
        second = start("worker", redis_url)
        await until(lambda: len(lines(tmp_path, handle.jid, "cleaned")) == 2, timeout=20)
        (tmp_path / f"{handle.jid}.clean").touch()
        hook = await ended_hook(b, handle.jid)
        assert (hook.state, hook.attempt, hook.losses, hook.failures) == ("succeeded", 2, 1, 0)
        assert lines(tmp_path, handle.jid, "cleaned")[1] == f"{second.pid} confirmed"
        lost, done = await told(handle)
        assert lost.startswith("lost with ")
        assert done == "succeeded"


async def test_a_worker_that_dies_between_the_end_of_its_job_and_the_hook_leaves_it_to_another(
    redis_url: str, tmp_path: Path, start: Start
) -> None:
    """It is frozen, so the watchdog finalizes the job; whatever its last read brought it is pending in its name."""
    async with bench(redis_url) as b:
        hold, _, _ = declare(b.bus, tmp_path)
        first = start("worker", redis_url, lease_s=3.0)
        handle = await hold.enqueue()
        await running(b, tmp_path, handle)
        first.freeze()
        await b.watch()
        await handle.cancel()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended) == ("cancelled", "abandoned")
        assert job.hook is not None
        assert lines(tmp_path, handle.jid, "cleaned") == []
        first.kill()
        second = start("worker", redis_url)
        (tmp_path / f"{handle.jid}.clean").touch()
        hook = await ended_hook(b, handle.jid)
        assert (hook.state, hook.failures) == ("succeeded", 0)
        assert lines(tmp_path, handle.jid, "cleaned") == [f"{second.pid} abandoned"]
        assert (await told(handle))[-1] == "succeeded"


async def test_the_hook_of_a_killed_workers_job_runs_elsewhere(redis_url: str, tmp_path: Path, start: Start) -> None:
    """The job was asked to stop and its worker died before it could: the script that ends it admits the hook."""
    async with bench(redis_url, grace_s=60.0) as b:
        hold, _, _ = declare(b.bus, tmp_path)
        first = start("worker", redis_url, grace_s=60.0, **SHORT_LEASE)
        handle = await hold.enqueue()
        await running(b, tmp_path, handle)
        first.freeze()
        await handle.cancel()
        first.kill()
        await b.watch()
        (tmp_path / f"{handle.jid}.clean").touch()
        second = start("worker", redis_url)
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended) == ("cancelled", "killed")
        assert (await ended_hook(b, handle.jid)).state == "succeeded"
        assert lines(tmp_path, handle.jid, "cleaned") == [f"{second.pid} killed"]
