"""
Stories without a cancel: what a handler gets, gives back, raises and says is the same in every executor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import busq
from tests.executors.house import house
from tests.runtime.bench import until

RAN = [("enqueued", 0), ("started", 1), ("finalized", 1)]


async def test_a_job_runs_once_and_its_value_comes_back(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        handle = await h.bus.enqueue("doubled", 21)
        assert await handle.result(timeout=20) == 42
        job = await handle.get()
        assert (job.state, job.ended, job.cause, job.evidence, job.attempt) == ("succeeded", None, None, None, 1)
        assert await h.events(handle.jid) == RAN


async def test_a_handler_knows_its_job(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        handle = await h.bus.options(jid="film-1").enqueue("facts")
        assert await handle.result(timeout=20) == ["film-1", "facts", 1, False, None, "", None]


async def test_a_failing_job_is_retried_until_nothing_is_left(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        await h.watch()
        handle = await h.play("broken", retries=2)
        job = await handle.wait(timeout=20)
        assert (job.state, job.cause, job.attempt, job.failures, job.losses) == ("failed", "error", 3, 3, 0)
        assert job.error is not None
        assert (job.error.type, job.error.message) == ("ValueError", "no such film")
        assert "in broken" in job.error.traceback
        assert h.lines("attempts") == ["1", "2", "3"]
        again = [event for n in (1, 2) for event in (("started", n), ("retried", n), ("promoted", n))]
        assert await h.events(handle.jid) == [("enqueued", 0), *again, ("started", 3), ("finalized", 3)]


async def test_a_failed_job_may_succeed_when_it_is_retried(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        await h.watch()
        handle = await h.bus.enqueue("second_time_lucky")
        assert await handle.result(timeout=20) == "done"
        job = await handle.get()
        assert (job.state, job.attempt, job.failures) == ("succeeded", 2, 1)
        assert await h.events(handle.jid) == [
            ("enqueued", 0), ("started", 1), ("retried", 1), ("promoted", 1), ("started", 2), ("finalized", 2),
        ]  # fmt: skip


@pytest.mark.parametrize("args", [[], ["one"], [1, 2, 3]], ids=str)
async def test_arguments_that_do_not_fit_fail_the_job_at_once(
    redis_url: str, executor: str, tmp_path: Path, args: list[Any]
) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        handle = await h.bus.enqueue("adds", *args)
        job = await handle.wait(timeout=20)
        assert (job.state, job.cause, job.attempt, job.failures) == ("failed", "bad_arguments", 1, 1)
        assert await h.events(handle.jid) == RAN
        assert await (await h.bus.enqueue("adds", 1, b=5)).result(timeout=20) == 6


async def test_a_result_that_cannot_be_kept_fails_the_job_for_good(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    """Too large, or nothing that MessagePack can write: the work is done, and a retry would do it twice."""
    async with house(redis_url, executor, tmp_path, result_bytes=1000) as h:
        await h.work()
        for kind, args, cause in (("large", [2000], "result_too_large"), ("odd", [], "bad_result")):
            handle = await h.bus.enqueue(kind, *args)
            job = await handle.wait(timeout=20)
            assert (job.state, job.cause, job.attempt, job.result) == ("failed", cause, 1, None)
            assert await h.events(handle.jid) == RAN
        assert await (await h.bus.enqueue("large", 900)).result(timeout=20) == "x" * 900


async def test_the_newest_progress_travels_with_the_beat(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        handle = await h.play("reports")

        async def newest() -> bool:
            job = await handle.get()
            return (job.progress, job.progress_note) == (0.5, "encoding")

        await until(newest)
        h.go_on()
        assert (await handle.wait(timeout=20)).state == "succeeded"


async def test_what_is_saved_is_there_for_the_next_attempt(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        await h.watch()
        handle = await h.bus.enqueue("resumes")
        assert await handle.result(timeout=20) == {"cursor": 2, "found": {"cursor": 1, "found": None}}
        assert (await handle.get()).saved["cursor"] == 3


async def test_what_a_handler_logs_names_its_job(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        worker = h.apart()
        handle = await h.bus.enqueue("says")
        await handle.wait(timeout=20)
        await until(lambda: '"said"' in worker.log.read_text())
        said = next(json.loads(line) for line in worker.log.read_text().splitlines() if '"said"' in line)
        assert (said["jid"], said["kind"], said["attempt"], said["word"]) == (handle.jid, "says", 1, "hello")


async def test_many_jobs_share_the_slots_and_none_is_lost(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work(concurrency=2)
        handles = await h.bus.enqueue_many(h.bus.spec("doubled", n) for n in range(100))
        assert [await handle.result(timeout=20) for handle in handles] == [2 * n for n in range(100)]
        jobs: list[busq.Job] = [await handle.get() for handle in handles]
        assert {(job.failures, job.losses) for job in jobs} == {(0, 0)}
        for job in jobs:  # a short one may have waited for a child in vain
            names = [name for name, _ in await h.events(job.jid)]
            assert names.count("handed_back") >= job.attempt - 1
            names = [name for name in names if name != "handed_back"]
            assert names == ["enqueued", *["started"] * job.attempt, "finalized"]
