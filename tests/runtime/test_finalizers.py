"""
Finalizers as workers run them, whatever made their jobs: these are enqueued by hand, their payload as the start would
tell it. How they come about, and what becomes of the job that they finalize, is told in `test_trees.py`.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import busq
from busq.protocol.codec import encode_payload, encode_result
from busq.protocol.jids import new_jid
from busq.protocol.tree import finalizer_kind, write_finished
from busq.store.forms import NewJob
from tests.runtime import tree_handlers
from tests.runtime.bench import PATIENT, Bench, bench

LONG_S = 20.0


async def finalize(b: Bench, kind: str, payload: bytes, result: bytes = b"", saved: bytes = b"") -> str:
    """Have a job of this kind finalized that nobody has run. Return the jid of the finalizing job."""
    told = write_finished(payload, "parent", 1, 2, 1, ["failed"], result, saved)
    link = await b.bus._link()
    jid = new_jid()
    await link.store.enqueue([NewJob(jid, finalizer_kind(kind), "default", told)], call=new_jid())
    return jid


@pytest.mark.parametrize("pool", ["coroutine", "thread"])
async def test_a_finalizer_runs_like_any_handler_and_is_told_of_its_job(redis_url: str, pool: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        told: list[busq.FinishedJob] = []

        @b.bus.job
        async def sums(*numbers: int, start: int = 0) -> int:
            raise AssertionError("only its finalizer is run")

        async def coroutine(job: busq.FinishedJob) -> str:
            await asyncio.sleep(0)
            told.append(job)
            return busq.current_job().kind

        def thread(job: busq.FinishedJob) -> str:
            assert threading.current_thread() is not threading.main_thread()
            told.append(job)
            return busq.current_job().kind

        sums.finalize(coroutine if pool == "coroutine" else thread)
        await b.work()
        jid = await finalize(b, "sums", encode_payload((1, 2), {}, 100), encode_result(3, 100))
        assert await b.bus.result(jid, timeout=LONG_S) == "sums/finalize"
        (job,) = told
        assert (job.jid, job.kind, job.args, job.result) == ("parent", "sums", {"numbers": (1, 2), "start": 0}, 3)
        assert (job.children, job.failed, job.failed_children) == (2, 1, ("failed",))


async def test_a_finalizer_in_a_child_process_is_sent_all_that_its_job_may_hold(redis_url: str) -> None:
    """Arguments, result, saved data and what an earlier try of its own saved, each as large as it may be."""
    large = 300_000
    async with bench(redis_url, **PATIENT, result_bytes=large, payload_bytes=large, traceback_bytes=1024) as b:
        await b.work(handlers=tree_handlers.bus.handlers)
        await b.watch()  # it brings the second try on
        load = b"x" * (large - 100)
        result = encode_result(load, large)
        jid = await finalize(b, "carries", encode_payload((), {"load": load}, large), result, result)
        job = await b.bus.wait(jid, timeout=LONG_S)
        assert (job.state, job.attempt, job.result, job.error and job.error.message) == (
            "succeeded", 2, 4 * len(load), "once more",
        )  # fmt: skip


async def test_a_finalizer_whose_jobs_arguments_fit_no_more_fails_at_once(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        told: list[Any] = []

        @b.bus.job
        async def takes(n: int) -> None: ...

        takes.finalize(told.append)
        await b.work()
        job = await b.bus.wait(await finalize(b, "takes", encode_payload(("no number",), {}, 100)), timeout=LONG_S)
        assert (job.state, job.cause, job.attempt, told) == ("failed", "bad_arguments", 1, [])


async def test_a_queue_with_finalizers_in_another_pool_keeps_room_in_mind_for_both(redis_url: str) -> None:
    """A pool of one slot each: what finds none is given back, and all run in the end."""
    async with bench(redis_url, **PATIENT) as b:
        ran: list[str] = []

        @b.bus.job
        async def sums() -> None: ...

        @sums.finalize
        def adds(job: busq.FinishedJob) -> None:
            ran.append(busq.current_job().jid)

        jids = [await finalize(b, "sums", encode_payload((), {}, 100)) for _ in range(12)]
        await b.work(concurrency=1)
        for jid in jids:
            assert (await b.bus.wait(jid, timeout=LONG_S)).state == "succeeded"
        assert sorted(ran) == sorted(jids)
