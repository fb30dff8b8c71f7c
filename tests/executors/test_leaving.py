"""
Stories whose worker leaves: in peace, in a hurry, or with its lease.
"""

from __future__ import annotations

import signal
from pathlib import Path

from tests.executors.differences import FORCE
from tests.executors.house import house
from tests.executors.test_stopping import CONFIRMED
from tests.runtime.bench import until
from tests.runtime.test_process_pool import alive

HURRIED = {"shutdown_timeout_s": 0.1}
HANDED_BACK = [("enqueued", 0), ("started", 1), ("tripped", 1), ("observed", 1), ("stopped", 1), ("handed_back", 1)]


async def test_a_handler_that_ends_during_the_drain_is_recorded(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path, shutdown_timeout_s=30.0) as h:
        worker = await h.work()
        handle = await h.running("waits")
        worker.stop()
        await until(lambda: worker.worker.draining)
        h.go_on()
        await worker.left()
        job = await handle.get()
        assert (job.state, job.result, job.attempt) == ("succeeded", 1, 1)
        assert await h.events(handle.jid) == [("enqueued", 0), ("started", 1), ("finalized", 1)]


async def test_a_handler_that_tidies_up_in_time_is_handed_back_with_nothing_spent(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    async with house(redis_url, executor, tmp_path, **HURRIED, cleanup_s=20.0) as h:
        worker = await h.work()
        handle = await h.running("leaves", "tidies up")
        worker.stop()
        await worker.left()
        job = await handle.get()
        assert (job.state, job.attempt, job.failures, job.losses) == ("queued", 1, 0, 0)
        assert (job.cause, job.ended, job.saved) == (None, None, "tidied")
        assert h.lines("causes") == ["shutdown"]
        assert await h.events(handle.jid) == HANDED_BACK
        await h.work()
        assert await handle.result(timeout=20) == [2, "tidied"]
        assert await h.events(handle.jid) == [*HANDED_BACK, ("started", 2), ("finalized", 2)]


async def test_a_handler_that_ignores_the_shutdown_is_handed_back_all_the_same(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    """Its code ends with the worker's process; of a child, before the job is handed back."""
    async with house(redis_url, executor, tmp_path, **HURRIED, cleanup_s=2.0) as h:  # in time to hear of it
        worker = await h.work()
        handle = await h.running("leaves", "ignores it")
        pid = int(await h.at("running"))
        worker.stop()
        await worker.left()
        assert executor != "process" or not alive(pid)
        job = await handle.get()
        assert (job.state, job.attempt, job.failures, job.losses) == ("queued", 1, 0, 0)
        assert "shutdown" in h.lines("causes")
        events = await h.events(handle.jid)
        assert events[-1] == ("handed_back", 1)
        assert (("stopped", 1) in events) == FORCE[executor].stopped
        assert await h.suspects() == 0
        other = await h.work()
        assert other.worker.name != worker.worker.name
        assert await handle.result(timeout=20) == [2, None]


async def test_a_users_cancel_during_the_drain_is_a_cancel(redis_url: str, executor: str, tmp_path: Path) -> None:
    async with house(redis_url, executor, tmp_path, shutdown_timeout_s=30.0) as h:
        worker = await h.work()
        handle = await h.running("waits")
        worker.stop()
        await until(lambda: worker.worker.draining)
        assert (await handle.cancel(reason="no longer wanted")).verdict == "signalled"
        await worker.left()
        job = await handle.get()
        assert (job.state, job.ended, job.cause, job.reason) == ("cancelled", "confirmed", "user", "no longer wanted")
        assert h.lines("causes") == ["user no longer wanted"]
        assert await h.events(handle.jid) == CONFIRMED


async def test_a_users_cancel_during_the_clean_up_is_a_cancel_too(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    """The job is not handed back; its clean-up never looks again, so nobody says that it learned of the cancel."""
    async with house(redis_url, executor, tmp_path, shutdown_timeout_s=0.0, cleanup_s=20.0) as h:
        worker = await h.work()
        handle = await h.running("lingers")
        worker.stop()
        await until(lambda: h.has(handle.jid, "tripped"))
        assert (await handle.cancel()).verdict == "signalled"
        h.go_on("tidied")
        await worker.left()
        job = await handle.get()
        assert (job.state, job.ended, job.cause) == ("cancelled", "completed", "user")
        assert not await h.has(handle.jid, "handed_back")


async def test_a_worker_that_lost_its_lease_tells_the_handler_and_nothing_of_it_counts(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    """It was frozen past its lease; another worker took the job over meanwhile."""
    async with house(redis_url, executor, tmp_path) as h:
        first = h.apart(lease_s=1.0)
        handle = await h.running("waits")
        first.signal(signal.SIGSTOP)
        (tmp_path / "running").unlink()
        await h.watch()
        await h.work()
        await h.at("running")
        first.signal(signal.SIGCONT)
        await until(lambda: h.has(handle.jid, "late_result"), timeout=20)
        assert h.lines("causes") == ["lease_lost another attempt owns the job"]
        assert (await handle.get()).state == "running"
        h.go_on()
        assert await handle.result(timeout=20) == 2
        job = await handle.get()
        assert (job.attempt, job.losses, job.failures, job.evidence) == (2, 1, 0, None)
        events = await h.events(handle.jid)
        # Redis may give the entry to the read that the frozen worker left behind: then it is reclaimed once more.
        assert [event for event, before in zip(events, [None, *events], strict=False) if event != before] == [
            ("enqueued", 0), ("started", 1), ("reclaimed", 1), ("started", 2), ("late_result", 1), ("finalized", 2),
        ]  # fmt: skip


async def test_a_killed_workers_cancelled_job_never_starts_again(redis_url: str, executor: str, tmp_path: Path) -> None:
    """Killed with whatever ran in it: nobody claims less than that, and nobody starts the job again."""
    async with house(redis_url, executor, tmp_path) as h:
        first = h.apart()
        handle = await h.running("swallows_for_ever", grace=0.2)
        pid = int(await h.at("running"))
        await h.work()
        first.signal(signal.SIGSTOP)  # it hears nothing any more, however late the signal that ends it
        await handle.cancel()
        first.kill()
        await h.watch()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended, job.attempt, job.losses) == ("cancelled", "killed", 1, 0)
        await until(lambda: not alive(pid))
        assert await h.suspects() == 0
