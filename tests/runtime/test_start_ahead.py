"""
Short jobs of the process pool are started ahead and wait at the door of a child: what is done to them there touches
nobody else, and nobody waits there for long.

Kinds are deemed short by telling the worker's pace so; what they really do is up to the test.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import busq
from busq.protocol.cancel import TripFacts
from busq.store.store import Store
from busq.worker.executors import process
from busq.worker.executors.children import Child
from busq.worker.pace import RECENT, Pace
from busq.worker.worker import Worker
from tests.runtime.bench import PATIENT, Bench, bench, until
from tests.runtime.test_process_pool import CONSISTENT, alive, read, result, there, work

FAR = 60.0  # seconds: longer than any test
TAKES_S = 2.0  # longer than a handler that has its go-ahead needs, on a busy machine too


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """Where handlers and the test meet; whoever waits there is let go at the end."""
    yield str(tmp_path)
    for name in "abcd":
        (tmp_path / name).touch()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits at a door may wait for as long as the test likes."""
    monkeypatch.setattr(process, "MOST_AT_DOOR_S", FAR)
    monkeypatch.setattr(process, "HELD_UP_S", FAR)


def go_on(folder: str, *names: str) -> None:
    for name in names:
        (Path(folder) / name).touch()


async def ready(b: Bench, monkeypatch: pytest.MonkeyPatch, *, children: int, **how: Any) -> Worker:
    """A worker with so many warm children that takes `waits` and `deaf` for short, whatever happens."""
    worker = await work(b, concurrency=children, **how)
    folder = str(Path(os.environ["BUSQ_TEST_FOLDER"]))
    held = [await b.bus.enqueue("waits", folder, "warm") for _ in range(children)]
    await until(lambda: len(worker._processes._crew.fit) == children)
    go_on(folder, "warm")
    for handle in held:
        await handle.result(timeout=20)
    for kind in ("waits", "deaf"):
        for _ in range(RECENT * 20):
            worker._pace.heard(kind, 0.0001)
    monkeypatch.setattr(Pace, "heard", lambda *_: None)
    return worker


@pytest.fixture(autouse=True)
def told_folder(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSQ_TEST_FOLDER", folder)


async def line_up(b: Bench, folder: str, *names: str, **options: Any) -> list[busq.JobHandle[Any]]:
    """Jobs of the same kind in this order; returns when the first one runs and the others have been started."""
    handles = [await b.bus.options(**options).enqueue("waits", folder, name) for name in names]
    for handle in handles:
        await b.reaches(handle.jid, "running")
    await until(lambda: there(folder, f"running-{names[0]}"))
    return handles


# Waiting -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patience")
async def test_short_jobs_are_started_ahead_and_run_one_at_a_time(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        await ready(b, monkeypatch, children=1)
        _, second, third = await line_up(b, folder, "a", "b", "c")
        assert not there(folder, "running-b")
        go_on(folder, "a")
        await until(lambda: there(folder, "running-b"))
        assert not there(folder, "running-c")
        go_on(folder, "b", "c")
        for handle in (second, third):
            await handle.result(timeout=20)
            assert await b.names(handle.jid) == ["enqueued", "started", "finalized"]


@pytest.mark.usefixtures("patience")
async def test_one_script_call_starts_many_short_jobs(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    start = Store.start

    async def counted(self: Store, shard: int, queue: str, deliveries: Any, terms: Any, **how: Any) -> Any:
        calls.append(len(deliveries))
        return await start(self, shard, queue, deliveries, terms, **how)

    async with bench(redis_url, **PATIENT) as b:
        worker = await work(b, concurrency=2, queues=["default"])
        await asyncio.gather(*(result(b, "doubled", n) for n in range(8)))
        for _ in range(RECENT * 20):
            worker._pace.heard("doubled", 0.0001)
        monkeypatch.setattr(Pace, "heard", lambda *_: None)
        monkeypatch.setattr(Store, "start", counted)
        handles = await b.bus.enqueue_many([b.bus.spec("doubled", n) for n in range(400)])
        assert [await handle.result(timeout=20) for handle in handles] == [2 * n for n in range(400)]
        assert sum(calls) == 400
        assert max(calls) > 10, "how many calls it takes in all is a matter of how fast the children are"


async def test_one_that_waits_behind_a_long_job_is_handed_back_and_spends_nothing(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "HELD_UP_S", FAR)  # or it might never be started ahead
    async with bench(redis_url, **PATIENT) as b:
        await ready(b, monkeypatch, children=1)
        first = await b.bus.enqueue("waits", folder, "a")
        second = await b.bus.enqueue("waits", folder, "b")

        async def handed_back() -> bool:
            return "handed_back" in await b.names(second.jid)

        await until(handed_back)
        event = next(each for each in await b.bus.history(second.jid) if each.name == "handed_back")
        assert event.facts == "no_slot"
        assert not there(folder, "running-b")
        assert (await first.get()).state == "running"
        go_on(folder, "a", "b")
        await second.result(timeout=20)
        job = await second.get()
        assert (job.failures, job.losses, job.state) == (0, 0, "succeeded")
        assert await b.names(first.jid) == ["enqueued", "started", "finalized"]


@pytest.mark.usefixtures("patience")
async def test_those_behind_a_long_job_go_to_an_idle_child(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two children, each with one job that waits; when one of them is idle, both of these have run."""
    async with bench(redis_url, **PATIENT) as b:
        await ready(b, monkeypatch, children=2)
        first = await line_up(b, folder, "a", "b", "c", "d")
        await until(lambda: there(folder, "running-b"))
        go_on(folder, "b", "c", "d")
        for handle in first[1:]:
            await handle.result(timeout=20)
            assert await b.names(handle.jid) == ["enqueued", "started", "finalized"]
        assert (await first[0].get()).state == "running"


async def test_nothing_is_started_ahead_of_children_that_are_held_up(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        worker = await ready(b, monkeypatch, children=1)
        first = await b.bus.enqueue("waits", folder, "a")
        await until(lambda: worker._pace.held_up == 1)
        second = await b.bus.enqueue("waits", folder, "b")
        go_on(folder, "b")
        other = await b.bus.options(queue="others").enqueue("beside", 1)  # read after it
        await other.result(timeout=20)
        assert (await second.get()).attempt == 0
        go_on(folder, "a")
        await first.result(timeout=20)
        await second.result(timeout=20)
        assert worker._pace.held_up == 0


@pytest.mark.usefixtures("patience")
async def test_the_time_that_a_job_may_take_begins_with_its_handler(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        await ready(b, monkeypatch, children=1)
        first = await b.bus.enqueue("waits", folder, "a")
        second = await b.bus.options(timeout=TAKES_S).enqueue("waits", folder, "b")
        await b.reaches(second.jid, "running")
        later = time.monotonic() + TAKES_S + 0.2
        await until(lambda: time.monotonic() > later)
        go_on(folder, "b")
        go_on(folder, "a")
        await first.result(timeout=20)
        assert (await second.wait(timeout=20)).state == "succeeded"


# Cancel, force, death --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patience")
async def test_a_cancel_of_one_that_waits_ends_it_without_running_it(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        worker = await ready(b, monkeypatch, children=1)
        first, second, third = await line_up(b, folder, "a", "b", "c")
        await second.cancel()
        job = await second.wait(timeout=20)
        assert (job.state, job.ended) == ("cancelled", "confirmed")
        assert (await first.get()).state == "running"
        pids = worker._processes.pids
        go_on(folder, "a", "b", "c")
        assert [await handle.result(timeout=20) for handle in (first, third)] == pids * 2
        assert not there(folder, "running-b")


@pytest.mark.usefixtures("patience")
async def test_force_ends_the_child_of_the_deaf_one_and_those_behind_it_run_elsewhere(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, grace_s=0.2, lease_s=15) as b:
        await ready(b, monkeypatch, children=1)
        first = await b.bus.enqueue("deaf", folder, "to SIGTERM")
        second = await b.bus.enqueue("waits", folder, "b")
        await b.reaches(second.jid, "running")
        await until(lambda: there(folder, "running"))
        go_on(folder, "b")
        await first.cancel()
        assert (await first.wait(timeout=20)).ended == "killed"
        assert await second.result(timeout=20) != int(read(folder, "running"))
        assert await b.names(second.jid) == ["enqueued", "started", "finalized"]


@pytest.mark.usefixtures("patience")
async def test_a_child_that_dies_takes_only_the_job_along_that_ran_in_it(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        worker = await ready(b, monkeypatch, children=1)
        first, *others = await line_up(b, folder, "a", "b", "c")
        go_on(folder, "b", "c")
        os.kill(worker._processes.pids[0], signal.SIGKILL)
        job = await first.wait(timeout=20)
        assert (job.state, job.failures) == ("failed", 1)
        assert job.error is not None
        assert "SIGKILL" in job.error.message
        for handle in others:
            await handle.result(timeout=20)
            assert await b.names(handle.jid) == ["enqueued", "started", "finalized"]


@pytest.mark.usefixtures("patience")
async def test_force_for_a_job_that_has_ended_does_not_hit_the_next_one(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has ended and the second runs, and the worker has not heard of it yet."""
    async with bench(redis_url, **PATIENT) as b:
        worker = await ready(b, monkeypatch, children=1)
        first, second = await line_up(b, folder, "a", "b")
        attempt = worker.running[first.jid]
        (child,) = worker._processes._crew.children
        asyncio.get_running_loop().remove_reader(child._work.sock.fileno())
        go_on(folder, "a")
        await until(lambda: there(folder, "running-b"))
        assert worker._processes.kill(attempt), "it has ended, which is as good as gone"
        assert not child.doomed
        child._read()
        asyncio.get_running_loop().add_reader(child._work.sock.fileno(), child._read)
        await first.result(timeout=20)
        go_on(folder, "b")
        assert await second.result(timeout=20) == child.pid


@pytest.mark.usefixtures("patience")
async def test_a_drain_hands_back_those_that_wait_without_running_them(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, lease_s=15) as b:
        worker = await ready(b, monkeypatch, children=1)
        first, second = await line_up(b, folder, "a", "b")
        pids = worker._processes.pids
        await b.end(worker)
        for handle in (first, second):
            job = await handle.get()
            assert (job.state, job.failures, job.losses) == ("queued", 0, 0)
            assert (await b.names(handle.jid))[-1] == "handed_back"
        assert not there(folder, "running-b")
        assert not any(alive(pid) for pid in pids)


@pytest.mark.usefixtures("patience")
async def test_a_drain_lets_those_that_wait_run_while_there_is_time(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, shutdown_timeout_s=20, **PATIENT) as b:
        worker = await ready(b, monkeypatch, children=1)
        first, second = await line_up(b, folder, "a", "b")
        worker.stop()
        await until(lambda: worker.draining)
        go_on(folder, "a", "b")
        await b.ended(worker)
        assert [(await handle.get()).state for handle in (first, second)] == ["succeeded", "succeeded"]


@pytest.mark.usefixtures("patience")
async def test_a_trip_of_the_next_job_is_kept_while_one_for_the_last_job_arrives(
    redis_url: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have begun as far as the worker can tell; the child hears of the second one first."""
    async with bench(redis_url, **PATIENT) as b:
        worker = await ready(b, monkeypatch, children=1)
        first = await b.bus.enqueue("waits", folder, "a")
        second = await b.bus.enqueue("checks", folder)
        await until(lambda: there(folder, "running-a"))
        (child,) = worker._processes._crew.children
        facts = TripFacts(cause=busq.Cause.USER, reason="", grace_s=5.0)
        numbers: dict[str, int] = {}
        while len(numbers) < 2:
            await asyncio.sleep(0)
            numbers = {attempt.jid: run for run, attempt in child.given.items()}
        _trip(child, numbers[second.jid], facts)
        _trip(child, numbers[first.jid], facts)
        go_on(folder, "a")
        await second.wait(timeout=20)
        assert there(folder, "heard")


def _trip(child: Child, run: int, facts: TripFacts) -> None:
    from busq.worker.executors.frames import Trip, packed

    child._control.write(packed(Trip(run, facts)))


# Many ----------------------------------------------------------------------------------------------------


async def test_cancels_of_many_short_jobs_leave_no_contradiction(redis_url: str) -> None:
    """Bursts, so that most of them wait at a door, and cancels at random moments; what was cancelled unrun says so."""
    rng = random.Random(5)
    async with bench(redis_url, **PATIENT) as b:
        worker = await work(b, concurrency=2, queues=["default"])
        await asyncio.gather(*(result(b, "doubled", n) for n in range(10)))
        pids = set(worker._processes.pids)

        async def cancelled_some_time(handle: busq.JobHandle[Any]) -> None:
            await asyncio.sleep(rng.uniform(0, 0.03))
            verdict = (await handle.cancel()).verdict
            job = await handle.wait(timeout=20)
            assert (job.state, job.ended) in CONSISTENT[verdict], (verdict, job)

        for _ in range(10):
            handles = await b.bus.enqueue_many([b.bus.spec("doubled", n) for n in range(50)])
            await asyncio.gather(*(cancelled_some_time(handle) for handle in handles))
            for handle in handles:
                assert (await b.names(handle.jid)).count("finalized") == 1
        assert set(worker._processes.pids) == pids
        await until(lambda: worker._slots.used == 0)
        assert not worker._processes._at_work
