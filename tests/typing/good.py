"""What type checkers shall make of busq; read by mypy, never run. See test_typing.py."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any, assert_type

import busq

bus = busq.Bus()


@bus.job
async def measured(path: str, precise: bool = False) -> int:
    return len(path)


@bus.job(queue="media", retries=2, timeout=600, expires=60, deadline=3600.0, grace=5.0, late_success="keep")
async def transcode(path: str, *, preset: str = "slow") -> str:
    return path


@bus.job(raise_in_thread=True)
def resized(width: int) -> list[int]:
    return [width]


@bus.job(pool="process", kind="heavy")
def crunched(numbers: list[float]) -> dict[str, float]:
    return {}


@transcode.on_cancel(timeout=10)
async def drop_parts(job: busq.CancelledJob) -> None:
    assert_type(job.jid, str)
    assert_type(job.args, dict[str, Any])
    assert_type(job.cause, busq.Cause)
    assert_type(job.ended, busq.Ended)


@crunched.on_cancel
def cleared(job: busq.CancelledJob) -> int:
    return job.attempt


@resized.on_cancel(retries=0, never_started=False)
async def redrawn(job: busq.CancelledJob) -> None: ...


@transcode.finalize
async def joined(job: busq.FinishedJob) -> None:
    assert_type(job.args, dict[str, Any])
    assert_type(job.failed, int)
    assert_type(job.failed_children, tuple[str, ...])


@crunched.finalize(timeout=10, retries=1)
def summed(job: busq.FinishedJob) -> int:
    return job.children


async def finalizers(job: busq.FinishedJob) -> None:
    await joined(job)
    assert_type(summed(job), int)
    assert_type((await bus.get("x")).finalize_of, str | None)


async def families() -> None:
    assert_type(await measured.options(key="a", supersede=True).enqueue("a"), busq.JobHandle[int])
    await measured.options(parent="x", on_parent_cancel="abandon").enqueue("a")
    await busq.current_job().spawn(measured.options(on_parent_cancel="wait"), "a")
    try:
        await bus.options(parent="x", on_parent_cancel="wait", key="k", supersede=True).enqueue("measured")
    except busq.ParentClosed as error:
        assert_type(error.state, busq.State | None)
    except busq.TooDeep as error:
        assert_type(error.jid, str)


async def hooks(job: busq.CancelledJob) -> None:
    await drop_parts(job)
    assert_type(cleared(job), int)
    assert_type((await bus.get("x")).hook, str | None)


async def uses() -> None:
    one = await measured.enqueue("a.mp4", precise=True)
    assert_type(one, busq.JobHandle[int])
    assert_type(await one.result(timeout=3), int)
    assert_type(await one.wait(), busq.Job)
    assert_type(await one.cancel(reason="no"), busq.CancelAnswer)

    two = await transcode.options(jid="x", group="g", tags={"a": "b"}, delay=3, expires=9, deadline=60).enqueue(
        "a.mp4", preset="fast"
    )
    assert_type(two, busq.JobHandle[str])
    assert_type(await (await resized.enqueue(3)).result(), list[int])
    assert_type(await (await crunched.enqueue([1.0])).result(), dict[str, float])
    assert_type(await bus.enqueue("transcode", "a.mp4"), busq.JobHandle[Any])
    assert_type(await bus.options(queue="media").enqueue("transcode", "a.mp4"), busq.JobHandle[Any])
    assert_type(measured.spec("a"), busq.JobSpec[int])
    assert_type(await bus.enqueue_many(measured.spec(p) for p in ("a", "b")), list[busq.JobHandle[int]])

    here = measured("a")
    _ = assert_type(here, Coroutine[Any, Any, int])
    await here
    assert_type(await measured("a"), int)
    assert_type(resized(3), list[int])
    assert_type(await bus.get("x"), busq.Job)
    assert_type(await bus.history("x"), list[busq.Event])
    assert_type((await bus.get("x")).state, busq.State)
    assert_type((await bus.get("x")).ended, busq.Ended | None)
    answer = await bus.cancel("x", grace=2.0)
    assert_type(answer.verdict, busq.Verdict)
    assert_type(await bus.cancel_many(["x"]), list[busq.CancelAnswer])


async def by_filter() -> None:
    scope = await bus.cancel_where(group="g", tags={"a": "b"}, where="attempt > 1", until=5, standing=True)
    assert_type(scope, busq.Scope)
    assert_type(await bus.cancel_where(kind="k", dry_run=True), busq.Survey)
    assert_type(await bus.cancel_where(kind="k", dry_run=bool(scope.id)), busq.Scope | busq.Survey)
    assert_type(await bus.cancel_group("g", reason="no", grace=2.0), busq.Scope)
    assert_type(await bus.cancel_kind("k", dry_run=True), busq.Survey)
    assert_type(await bus.cancel_descendants("x", expect="digest"), busq.Scope)
    assert_type(scope.counts, dict[str, int])
    assert_type((await scope.wait(timeout=5)).unfinished, int)
    assert_type(await bus.scope("s-1").revoke(), bool)
    assert_type(await bus.rules(), list[busq.Rule])
    assert_type((await bus.get("x")).scope, str | None)


async def inside() -> None:
    job = busq.current_job()
    assert_type(job.cancelled, bool)
    assert_type(job.cause, busq.Cause | None)
    assert_type(await job.wait_cancelled(timeout=1), bool)
    assert_type(await job.save({"a": 1}), None)
    print((await job.spawn(measured, "a", precise=True)).jid, await job.spawn(resized.options(delay=5), 3))
    async with job.shield(limit=2.0):
        job.check_cancelled()
    with job.shield():
        job.progress(0.5, "half")
    async with job.subprocess("ffmpeg", "-i", Path("a.mp4"), stdout=-1) as awaited:
        assert_type(await awaited.wait(timeout=5), int)
        assert_type(awaited.returncode, int | None)
    assert_type(await (await job.subprocess("true")).communicate(b"x"), tuple[Any, Any])


def inside_a_def_handler() -> None:
    job = busq.current_job()
    with job.subprocess("ffmpeg", "-i", "a.mp4") as blocks:
        assert_type(blocks.wait(), int)
        assert_type(blocks.pid, int)
        assert_type(blocks.stop(within=1.0), None)


def blocking() -> None:
    handle = measured.blocking.enqueue("a")
    assert_type(handle, busq.BlockingHandle[int])
    assert_type(handle.result(), int)
    assert_type(busq.cancel("x"), busq.CancelAnswer)
    assert_type(busq.enqueue("k", 1), busq.BlockingHandle[Any])
    assert_type(bus.blocking.get("x"), busq.Job)
    assert_type(busq.cancel_where(queue="q"), busq.BlockingScope)
    assert_type(busq.cancel_where(queue="q", dry_run=True), busq.Survey)
    scope = bus.blocking.cancel_group("g", standing=True)
    assert_type(scope, busq.BlockingScope)
    assert_type(scope.wait(timeout=5).endings, dict[str, int])
    assert_type(bus.blocking.cancel_descendants("x", dry_run=True), busq.Survey)
    assert_type(bus.blocking.rules(), list[busq.Rule])
