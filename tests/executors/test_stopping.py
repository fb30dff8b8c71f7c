"""
Stories that are cancelled and end: the same record and the same history in every executor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import busq
from busq.protocol.job import Event
from tests.executors.house import House, house
from tests.runtime.bench import until

ASKED = [("enqueued", 0), ("started", 1), ("requested", 1), ("tripped", 1)]
CONFIRMED = [*ASKED, ("observed", 1), ("stopped", 1), ("finalized", 1)]
COMPLETED = [*ASKED, ("stopped", 1), ("finalized", 1)]


async def cancelled(h: House, handle: busq.JobHandle[Any]) -> busq.Job:
    """Cancel a running story, with words of our own, and see it end."""
    answer = await handle.cancel(reason="deleted", source="api")
    assert (answer.verdict, answer.state) == ("signalled", "cancelling")
    job = await handle.wait(timeout=20)
    assert (job.state, job.cause, job.reason, job.source) == ("cancelled", "user", "deleted", "api")
    assert (job.attempt, job.failures, job.losses, job.result) == (1, 0, 0, None)
    return job


async def test_a_cancel_before_the_start_keeps_the_handler_from_running(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work(concurrency=1)
        first = await h.running("waits")
        queued, last = await h.play("broken"), await h.bus.enqueue("doubled", 2)
        assert (await queued.cancel(reason="deleted")).verdict == "cancelled"
        h.go_on()
        assert (await first.result(timeout=20), await last.result(timeout=20)) == (1, 4)
        job = await queued.get()
        assert (job.state, job.ended, job.cause, job.attempt) == ("cancelled", "before_start", "user", 0)
        assert job.evidence is None
        assert h.lines("attempts") == []
        assert await h.events(queued.jid) == [("enqueued", 0), ("requested", 0), ("finalized", 0)]


@pytest.mark.parametrize("how", ["check", "look", "wait"])
async def test_a_cancel_is_observed_by_whatever_looks_for_it(
    redis_url: str, executor: str, tmp_path: Path, how: str, record_property: Any
) -> None:
    """How long it took is reported beside the test; the benchmark measures it."""
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        handle = await h.running("hears", how)
        job = await cancelled(h, handle)
        assert job.ended == "confirmed"
        assert job.evidence is not None
        assert (job.evidence.outcome, job.evidence.result) == ("cancelled", None)
        assert await h.events(handle.jid) == CONFIRMED
        record_property("requested_to_observed_ms", between(await h.bus.history(handle.jid), "requested", "observed"))


def between(events: list[Event], one: str, other: str) -> float:
    """Milliseconds from one event to another."""
    at = {event.name: event.at for event in events}
    first, second = at[one], at[other]
    assert first is not None
    assert second is not None
    return (second - first).total_seconds() * 1000


async def test_a_cancel_is_delivered_to_whoever_waits(redis_url: str, executor: str, tmp_path: Path) -> None:
    """`CancelledError` at the await of a coroutine, `Cancelled` from the check of a `def`."""
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        handle = await h.running("waits")
        job = await cancelled(h, handle)
        assert job.ended == "confirmed"
        assert h.lines("causes") == ["user deleted"]
        assert await h.events(handle.jid) == CONFIRMED


async def test_a_cancel_does_not_end_the_place_where_the_handler_ran(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work(concurrency=1)
        for turn in range(3):
            (tmp_path / "running").unlink(missing_ok=True)
            handle = await h.running("waits")
            pid = int(await h.at("running"))
            await handle.cancel()
            assert (await handle.wait(timeout=20)).ended == "confirmed"
            assert await (await h.bus.enqueue("place")).result(timeout=20) == pid, f"turn {turn}"


async def test_trip_callbacks_are_called_once_whatever_they_raise(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    """Also one that is handed in when the token is tripped already."""
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        handle = await h.running("listens")
        job = await cancelled(h, handle)
        assert job.ended == "confirmed"
        await until(lambda: len(h.lines("called")) == 3)
        assert sorted(h.lines("called")) == ["fails", "late", "user deleted"]
        assert await h.events(handle.jid) == CONFIRMED


async def test_a_cancel_waits_outside_a_shield(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        handle = await h.running("shields")
        await handle.cancel()
        await until(lambda: h.has(handle.jid, "tripped"))
        assert h.lines("story") == []
        h.go_on()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended) == ("cancelled", "confirmed")
        assert h.lines("story") == ["published", "cancelled"]
        assert await h.events(handle.jid) == CONFIRMED


async def test_a_shields_limit_lets_the_cancel_in(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        handle = await h.running("shields", 0.05)
        job = await cancelled(h, handle)
        assert job.ended == "confirmed"
        assert h.lines("story") == ["cancelled"]
        assert await h.events(handle.jid) == CONFIRMED


@pytest.mark.parametrize(
    ("how", "outcome", "result", "error"),
    [("returns", "succeeded", "finished all the same", None), ("raises", "failed", None, "while tidying up")],
)
async def test_what_a_handler_does_after_its_cancel_is_kept_as_evidence_and_never_applied(
    redis_url: str, executor: str, tmp_path: Path, how: str, outcome: str, result: str | None, error: str | None
) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        handle = await h.running("ends_after_the_cancel", how)
        job = await cancelled(h, handle)
        assert (job.ended, job.error) == ("confirmed", None)
        assert job.evidence is not None
        assert (job.evidence.outcome, job.evidence.result) == (outcome, result)
        assert (job.evidence.error and job.evidence.error.message) == error
        assert await h.events(handle.jid) == CONFIRMED


async def test_a_handler_that_never_looked_is_completed(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        worker = await h.work()
        handle = await h.running("never_looks")
        attempt = worker.worker.running[handle.jid]
        await handle.cancel(reason="deleted", source="api")
        await until(lambda: attempt.token.tripped)
        h.go_on()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended, job.result) == ("cancelled", "completed", None)
        assert job.evidence is not None
        assert (job.evidence.outcome, job.evidence.result) == ("succeeded", "my work")
        assert await h.events(handle.jid) == COMPLETED


async def test_late_success_keep_makes_a_normal_return_count(redis_url: str, executor: str, tmp_path: Path) -> None:
    """It is the handler's own setting: the producer here has not the handler's code."""
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        handle = await h.running("keeps_its_result")
        assert (await handle.cancel(reason="too late")).verdict == "signalled"
        assert await handle.result(timeout=20) == "kept"
        job = await handle.get()
        assert (job.state, job.ended, job.reason, job.evidence) == ("succeeded", None, "too late", None)
        assert await h.events(handle.jid) == CONFIRMED


@pytest.mark.parametrize("times", [1, 10])
async def test_a_handler_that_swallows_a_few_cancels_is_stopped_by_the_next(
    redis_url: str, executor: str, tmp_path: Path, times: int
) -> None:
    """The next check of a `def` says so again; a coroutine is cancelled again, every 50 ms, once the grace is over."""
    force_s = 20.0 if executor == "coroutine" else 0.2
    async with house(redis_url, executor, tmp_path, force_s=force_s) as h:
        await h.work()
        handle = await h.running("swallows", times, grace=0.01 if executor == "coroutine" else 10.0)
        job = await cancelled(h, handle)
        assert job.ended == "confirmed"
        assert len(h.lines("swallowed")) == times + 1
        assert await h.events(handle.jid) == CONFIRMED


async def test_a_timeout_is_a_failure_and_retried_by_policy(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        await h.watch()
        await (await h.bus.enqueue("doubled", 1)).result(timeout=20)  # the start of a child counts as running time
        handle = await h.play("runs_too_long", "stops")
        job = await handle.wait(timeout=20)
        assert (job.state, job.cause, job.ended, job.attempt, job.failures) == ("failed", "timed_out", None, 2, 2)
        assert job.error is not None
        assert (job.error.type, "0.1 s" in job.error.message) == ("TimedOut", True)
        assert h.lines("causes") == ["timeout", "timeout"]
        once = [("tripped", 1), ("observed", 1), ("stopped", 1)]
        assert await h.events(handle.jid) == [
            ("enqueued", 0), ("started", 1), *once, ("retried", 1), ("promoted", 1),
            ("started", 2), *((name, 2) for name, _ in once), ("finalized", 2),
        ]  # fmt: skip


async def test_clean_up_after_a_timeout_is_kept_for_the_next_attempt(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work()
        await h.watch()
        await (await h.bus.enqueue("doubled", 1)).result(timeout=20)  # the start of a child counts as running time
        handle = await h.play("runs_too_long", "cleans up")
        job = await handle.wait(timeout=20)
        assert (job.state, job.cause, job.failures, job.saved) == ("failed", "timed_out", 2, {"tidied": 2})


async def test_a_job_that_waits_for_its_slot_to_be_ready_can_be_cancelled(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    """The first job of a worker: its child, if it has one, is only being started. It may or may not have begun."""
    async with house(redis_url, executor, tmp_path) as h:
        await h.work(concurrency=1)
        handle = await h.play("waits")
        await h.b.reaches(handle.jid, "running")
        assert (await handle.cancel()).verdict == "signalled"
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended, job.attempt) == ("cancelled", "confirmed", 1)
        assert await h.events(handle.jid) == CONFIRMED
        assert await (await h.bus.enqueue("doubled", 3)).result(timeout=20) == 6
