"""
Handlers that block the loop of all others: what is seen, told and done from outside meanwhile.

The tests live in the very loop that is blocked, so what happens during a block is the work of another thread: `beside`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

import busq
from busq.store.store import Store
from busq.worker import standin
from busq.worker.loopwatch import LoopWatch
from busq.worker.runner import Runner
from tests.runtime.bench import BUSY_S, SHORT_LEASE, Bench, bench, until

LIMIT_S = 30.0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in waits less."""
    monkeypatch.setattr(standin, "STUCK_S", 0.3)
    monkeypatch.setattr(standin, "WATCHDOG_PATIENCE_S", 0.1)


def told(lines: list[Any], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


def spin(condition: Callable[[], Any]) -> None:
    """Block in Python code until it is true."""
    over = threading.Event()
    safety = threading.Timer(LIMIT_S, over.set)
    safety.daemon = True
    safety.start()
    while not condition() and not over.is_set():
        pass
    safety.cancel()
    assert not over.is_set(), "it never came true"


class Block:
    """A time in which the loop stands still, and the story that another thread tells meanwhile."""

    def __init__(self) -> None:
        self.began, self.over = threading.Event(), threading.Event()
        self._errors: list[BaseException] = []

    def last(self) -> None:
        """Block the loop until the story is over."""
        self.began.set()
        spin(self.over.is_set)

    def start(self, story: Callable[[], None]) -> None:
        """Tell this story as soon as the block has begun."""

        def tell() -> None:
            try:
                assert self.began.wait(LIMIT_S)
                story()
            except BaseException as error:
                self._errors.append(error)
            finally:
                self.over.set()

        threading.Thread(target=tell, daemon=True).start()

    async def ended(self) -> None:
        """The block and the story are over. What the story raised is raised here."""
        await until(self.began.is_set)
        await until(self.over.is_set)
        for error in self._errors:
            raise error

    async def beside(self, story: Callable[[], None]) -> None:
        self.start(story)
        await self.ended()


async def test_a_blocked_loop_is_told_with_the_culprit_and_its_whole_length(redis_url: str) -> None:
    """It is told while it lasts: the handler goes on until that is heard."""
    with capture_logs() as lines:
        async with bench(redis_url) as b:

            @b.bus.job
            async def hogs() -> None:
                spin_here(lambda: worker.loop_lag_s > 0.6 and told_of_it())

            def spin_here(condition: Callable[[], Any]) -> None:
                spin(condition)

            def told_of_it() -> list[dict[str, Any]]:
                # A busy machine may hold the loop up too, and that is told as well: without a job.
                return [line for line in told(lines, "loop.blocked") if line.get("kind") == "hogs"]

            worker = await b.work()
            await until(lambda: worker.loop_lag_s < 0.1)
            handle = await hogs.enqueue()
            await handle.result(timeout=10)
            await until(lambda: any(line["seconds"] >= 0.6 for line in told(lines, "loop.unblocked")))
    [first] = told_of_it()
    assert (first["jid"], first["attempt"]) == (handle.jid, 1)
    assert "in hogs" in first["stack"]
    assert first["stack"].index("in hogs") < first["stack"].index("in spin_here"), "the innermost last"
    assert len(first["stack"]) <= 4000


async def test_a_task_that_a_handler_made_is_told_by_its_stack(redis_url: str) -> None:
    with capture_logs() as lines:
        async with bench(redis_url) as b:

            @b.bus.job
            async def starts_others() -> None:
                await asyncio.create_task(hogs())

            async def hogs() -> None:
                spin(told_of_it)

            def told_of_it() -> list[dict[str, Any]]:  # a busy machine may hold the loop up elsewhere too
                return [line for line in told(lines, "loop.blocked") if "in hogs" in line["stack"]]

            await b.work()
            await (await starts_others.enqueue()).result(timeout=LIMIT_S)
    assert len(told_of_it()) == 1


async def test_a_loop_that_goes_on_is_not_told(redis_url: str) -> None:
    with capture_logs() as lines:
        async with bench(redis_url) as b:
            b.bus.job(kind="waits")(_turn)
            worker = await b.work()
            for _ in range(20):
                handle = await b.bus.enqueue("waits")
                await handle.result(timeout=10)
            await until(lambda: worker.loop_lag_s < 0.1)
    assert not [line for line in told(lines, "loop.blocked") if "watch_late_s" not in line and "_turn" in line["stack"]]


async def _turn() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("where", ["between two looks", "in a look"])
async def test_time_that_could_not_be_watched_counts_for_nothing(where: str) -> None:
    """The watch itself is held up, as in a process that was frozen: its loop may be in perfect order."""

    class Silent:
        """A loop in which no turn ever comes."""

        def call_soon_threadsafe(self, call: Callable[[], object]) -> None: ...

    watch = LoopWatch(Silent(), dict)  # type: ignore[arg-type]
    look = watch._look

    def held_up() -> None:
        look()
        watch._look = look  # type: ignore[method-assign]
        freeze()

    def freeze() -> None:
        thawed = time.monotonic() + 1.0
        spin(lambda: time.monotonic() > thawed)

    watching = asyncio.create_task(watch.run())
    await until(lambda: watch.lag_s > 0.0)
    if where == "in a look":
        watch._look = held_up  # type: ignore[method-assign]
    else:
        freeze()
    await until(lambda: watch._unwatched_s > 0.5)
    assert watch.lag_s >= 1.0
    assert watch.blocked_s < 0.5
    watching.cancel()


@pytest.mark.usefixtures("quick")
async def test_without_a_watchdog_the_worker_itself_gives_up_what_blocks_its_loop_past_the_deadline(
    redis_url: str,
) -> None:
    """And it works on once the block has ended: the suspect is cleared, and it is fit again."""
    with capture_logs() as lines:
        async with bench(redis_url) as b:
            block, seen = Block(), []

            @b.bus.job
            async def hogs() -> str:
                block.last()
                return "too late"

            @b.bus.job
            async def other() -> str:
                return "done"

            def story() -> None:
                answer = b.bus.blocking.cancel(handle.jid)
                job = b.bus.blocking.wait(handle.jid, timeout=LIMIT_S)
                spin(lambda: worker.lifeless)
                seen.extend([answer, job, worker.lifeless, worker.loop_lag_s])

            worker = await b.work()
            handle = await hogs.enqueue()
            await block.beside(story)
            answer, job, lifeless, lag_s = seen
            assert (answer.verdict, job.state, job.ended) == ("signalled", "cancelled", "abandoned")
            assert job.finished_at >= answer.deadline
            assert job.finished_at <= answer.deadline + timedelta(
                seconds=standin.WATCHDOG_PATIENCE_S + standin.STUCK_S + BUSY_S
            )
            assert handle.jid in lifeless
            assert "hogs" in lifeless
            assert lag_s >= 0.3
            await until(lambda: not worker.lifeless)
            assert await (await other.enqueue()).result(timeout=10) == "done"
            await until(lambda: worker.leftovers == 0)
            await until(lambda: _suspects(b, 0))
            again = await handle.get()
            assert (again.state, again.ended, again.result) == ("cancelled", "abandoned", None)
            assert (await b.names(handle.jid)).count("finalized") == 1
    assert len(told(lines, "worker.lifeless")) == 1


async def _suspects(b: Bench, count: int) -> bool:
    return (await b.bus.stats()).suspects == count


@pytest.mark.usefixtures("quick")
async def test_a_block_within_the_deadline_gives_nothing_up(redis_url: str) -> None:
    """A cancel that had to wait for the loop is honoured as soon as the loop goes on."""
    with capture_logs() as lines:
        async with bench(redis_url, grace_s=20.0) as b:
            block = Block()

            @b.bus.job
            async def hogs() -> None:
                block.last()
                await asyncio.sleep(LIMIT_S)

            def story() -> None:
                b.bus.blocking.cancel(handle.jid)
                spin(lambda: worker.loop_lag_s > 0.8)
                assert not worker.lifeless

            worker = await b.work()
            handle = await hogs.enqueue()
            await block.beside(story)
            job = await handle.wait(timeout=10)
            assert (job.state, job.ended) == ("cancelled", "confirmed")
    assert not told(lines, "worker.lifeless")


@pytest.mark.usefixtures("quick")
async def test_a_check_inside_a_block_hears_the_cancel(redis_url: str) -> None:
    """The token is tripped by the control thread: a loop in Python that checks is stopped, blocked loop or not."""
    async with bench(redis_url, grace_s=20.0) as b:
        block = Block()

        @b.bus.job
        async def hogs() -> None:
            block.began.set()
            spin(busq.current_job().check_cancelled)

        def story() -> None:
            b.bus.blocking.cancel(handle.jid)

        await b.work()
        handle = await hogs.enqueue()
        await block.beside(story)
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended) == ("cancelled", "confirmed")


# Timeouts whose timer stands still with the loop ----------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_the_timeout_of_what_blocks_the_loop_is_served_from_outside(redis_url: str) -> None:
    """Failed and listed as a suspect while it runs on, and the worker is lifeless; when it ends, all is in order."""
    with capture_logs() as lines:
        async with bench(redis_url) as b:
            block, seen = Block(), []

            @b.bus.job(timeout=0.3)
            async def hogs() -> str:
                block.last()
                return "too late"

            @b.bus.job
            async def other() -> str:
                return "done"

            def story() -> None:
                job = b.bus.blocking.wait(handle.jid, timeout=LIMIT_S)
                spin(lambda: worker.lifeless)
                seen.extend([job, worker.lifeless, b.bus.blocking.stats().suspects])

            worker = await b.work(concurrency=1)
            handle = await hogs.enqueue()
            await block.beside(story)
            job, lifeless, suspects = seen
            assert (job.state, job.cause, job.failures, suspects) == ("failed", "timed_out", 1, 1)
            assert "could not be stopped" in job.error.message
            assert f"past the timeout of 1 job: {handle.jid} (hogs)" in lifeless
            await until(lambda: not worker.lifeless)
            assert await (await other.enqueue()).result(timeout=10) == "done"
            await until(lambda: worker.leftovers == 0)
            await until(lambda: _suspects(b, 0))
            again = await handle.get()
            assert (again.state, again.failures, again.result) == ("failed", 1, None)
            names = await b.names(handle.jid)
            assert names.count("tripped") == 1
            assert worker._slots.used == 0
    assert len(told(lines, "worker.lifeless")) == 1
    assert [line["cause"] for line in told(lines, "job.failed")] == ["timed_out"]


@pytest.mark.usefixtures("quick")
async def test_a_timeout_served_from_outside_leads_to_the_next_attempt(redis_url: str) -> None:
    """In the same worker too, once its loop goes on; and what the first attempt goes on with is interrupted."""
    async with bench(redis_url) as b:
        await b.watch()
        block, ends = Block(), []

        @b.bus.job(timeout=0.3, retries=1)
        async def hogs() -> str:
            if busq.current_job().attempt > 1:
                return "second"
            block.last()
            try:
                await asyncio.sleep(LIMIT_S)
            except asyncio.CancelledError:
                ends.append("interrupted")
                raise
            return "first"

        def story() -> None:
            spin(lambda: b.bus.blocking.get(handle.jid).failures)

        worker = await b.work()
        handle = await hogs.enqueue()
        await block.beside(story)
        assert await handle.result(timeout=10) == "second"
        await until(lambda: worker.leftovers == 0)
        await until(lambda: _suspects(b, 0))
        job = await handle.get()
        assert (job.attempt, job.failures, ends) == (2, 1, ["interrupted"])
        assert worker._slots.used == 0


@pytest.mark.usefixtures("quick")
async def test_a_check_inside_a_block_and_one_in_a_thread_beside_it_hear_the_timeout(redis_url: str) -> None:
    async with bench(redis_url, grace_s=20.0) as b:
        inside, causes = threading.Event(), []

        @b.bus.job(timeout=0.3)
        def checks() -> None:
            inside.set()
            try:
                spin(busq.current_job().check_cancelled)
            except busq.Cancelled as error:
                causes.append(error.cause)
                raise

        @b.bus.job(timeout=0.3)
        async def hogs() -> None:
            while not inside.is_set():  # noqa: ASYNC110 - it would never begin, once the loop is blocked
                await asyncio.sleep(0.001)
            spin(lambda: causes)
            spin(busq.current_job().check_cancelled)

        worker = await b.work()
        handles = [await hogs.enqueue(), await checks.enqueue()]
        for handle in handles:
            job = await handle.wait(timeout=LIMIT_S)
            assert (job.state, job.cause, job.failures) == ("failed", "timed_out", 1)
        assert causes == ["timeout"]
        assert not worker.lifeless
        assert await _suspects(b, 0)


@pytest.mark.usefixtures("quick")
async def test_a_timeout_that_is_overdue_when_the_worker_leaves_is_a_failure_and_no_hand_back(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin, "WATCHDOG_PATIENCE_S", 600.0)
    async with bench(redis_url, cleanup_s=0.1) as b:
        block, left, seen = Block(), threading.Event(), []

        @b.bus.job(timeout=0.3)
        async def hogs() -> None:
            block.last()

        def story() -> None:
            spin(lambda: worker.lifeless)
            worker.stop_for_certain(left.set)
            assert left.wait(LIMIT_S)
            seen.extend([b.bus.blocking.get(handle.jid), b.bus.blocking.stats().suspects])

        worker = await b.work()
        handle = await hogs.enqueue()
        await block.beside(story)
        job, suspects = seen
        assert (job.state, job.cause, job.failures, suspects) == ("failed", "timed_out", 1, 0)


# A stop that the loop cannot hear ------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("times", "shutdown_timeout_s"), [(1, 0.2), (2, 600.0)])
async def test_a_worker_that_is_told_to_stop_while_its_loop_is_blocked_hands_everything_back_and_leaves(
    redis_url: str, times: int, shutdown_timeout_s: float
) -> None:
    """Nothing is spent: the culprit, the one beside it and a thread's job are queued again. Told twice, it hurries."""
    async with bench(redis_url, shutdown_timeout_s=shutdown_timeout_s) as b:
        block, left, gate, seen = Block(), threading.Event(), b.gate(), []

        @b.bus.job
        async def hogs() -> None:
            block.last()

        @b.bus.job
        async def waits() -> None:
            await gate.wait()

        @b.bus.job
        def blocks() -> None:
            gate.block()

        def story() -> None:
            for _ in range(times):
                worker.stop_for_certain(left.set)
            assert left.wait(LIMIT_S)
            seen.extend(b.bus.blocking.get(jid) for jid in jids)
            seen.append(b.bus.blocking.stats())
            seen.append(b.bus.blocking.workers())
            gate.open()

        worker = await b.work()
        jids = [(await kind.enqueue()).jid for kind in (waits, blocks)]
        for jid in jids:
            await b.reaches(jid, "running")
        jids.append((await hogs.enqueue()).jid)
        await block.beside(story)
        *jobs, stats, members = seen
        assert [(job.state, job.attempt, job.failures, job.losses) for job in jobs] == [("queued", 1, 0, 0)] * 3
        assert stats.suspects == 0
        assert [each.held for each in stats.queues] == [0], "nothing waits for its lease to run out"
        assert members == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("told_first", [True, False])
async def test_a_lifeless_worker_that_is_told_to_stop_does_not_wait_for_jobs_to_end(
    redis_url: str, *, told_first: bool
) -> None:
    """Whichever comes first: what a drain begins with, the wait for jobs, is over for a loop that was given up."""
    async with bench(redis_url, shutdown_timeout_s=600.0, cleanup_s=0.1, force_s=0.1, grace_s=0.2) as b:
        block, left, gate, seen = Block(), threading.Event(), b.gate(), []

        @b.bus.job
        async def hogs() -> None:
            block.last()

        @b.bus.job
        async def waits() -> None:
            await gate.wait()

        def story() -> None:
            if told_first:
                worker.stop_for_certain(left.set)
            b.bus.blocking.cancel(hog.jid)
            spin(lambda: worker.lifeless)
            if not told_first:
                worker.stop_for_certain(left.set)
            assert left.wait(LIMIT_S)
            seen.extend(b.bus.blocking.get(jid) for jid in (hog.jid, beside_it.jid))

        worker = await b.work()
        beside_it = await waits.enqueue()
        await b.reaches(beside_it.jid, "running")
        hog = await hogs.enqueue()
        await block.beside(story)
        gate.open()
        cancelled, handed_back = seen
        assert (cancelled.state, cancelled.ended) == ("cancelled", "abandoned")
        assert (handed_back.state, handed_back.failures, handed_back.losses) == ("queued", 0, 0)
        assert "late_result" not in await b.names(hog.jid)


@pytest.mark.usefixtures("quick")
async def test_a_worker_that_comes_back_to_life_has_its_whole_drain_before_it(redis_url: str) -> None:
    """Told to stop while lifeless, it goes on after all; that its loop is blocked once more is no reason to leave."""
    async with bench(redis_url, shutdown_timeout_s=600.0, cleanup_s=2.0, force_s=0.1, grace_s=0.2) as b:
        block, gate, leaves, told_at = Block(), b.gate(), [], []

        @b.bus.job
        async def hogs() -> None:
            block.last()

        @b.bus.job
        async def waits() -> str:
            await gate.wait()
            return "done"

        def story() -> None:
            b.bus.blocking.cancel(hog.jid)
            spin(lambda: worker.lifeless)
            worker.stop_for_certain(lambda: leaves.append(1))
            told_at.append(time.monotonic())
            loop.call_soon_threadsafe(worker.stop)

        loop = asyncio.get_running_loop()
        worker = await b.work()
        beside_it = await waits.enqueue()
        await b.reaches(beside_it.jid, "running")
        hog = await hogs.enqueue()
        await block.beside(story)
        await until(lambda: not worker.lifeless)
        spin(lambda: time.monotonic() > told_at[0] + 2.1 + 1.0)
        gate.open()
        assert await beside_it.result(timeout=10) == "done"
        await b.ended(worker)
        assert leaves == []


@pytest.mark.usefixtures("quick")
async def test_a_worker_that_cannot_hand_back_leaves_all_the_same(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in the place of a blocked loop: it was told to leave, and nobody tells it again."""
    async with bench(redis_url, shutdown_timeout_s=0.0, cleanup_s=0.0, force_s=0.1) as b:
        block, left = Block(), threading.Event()

        @b.bus.job
        async def hogs() -> None:
            block.last()

        def broken(self: Runner) -> Any:
            raise RuntimeError("no such luck")

        def story() -> None:
            worker.stop_for_certain(left.set)
            assert left.wait(LIMIT_S)

        monkeypatch.setattr(Runner, "hand_backs", broken)
        worker = await b.work()
        await hogs.enqueue()
        await block.beside(story)


@pytest.mark.usefixtures("quick")
async def test_endings_that_a_blocked_loop_has_not_told_are_told_before_it_leaves(redis_url: str) -> None:
    async with bench(redis_url, shutdown_timeout_s=0.0, cleanup_s=0.0, force_s=0.1) as b:
        block, left, seen = Block(), threading.Event(), []

        @b.bus.job
        async def quick_one() -> str:
            # Its ending is put into the box, and before the box is emptied the loop is blocked.
            loop.call_soon(loop.call_soon, hogs)
            return "done"

        def hogs() -> None:
            block.last()

        def story() -> None:
            worker.stop_for_certain(left.set)
            assert left.wait(LIMIT_S)
            seen.append(b.bus.blocking.get(handle.jid))

        loop = asyncio.get_running_loop()
        worker = await b.work()
        handle = await quick_one.enqueue()
        await block.beside(story)
        assert (seen[0].state, seen[0].result) == ("succeeded", "done")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_start_whose_answer_a_blocked_loop_has_not_heard_is_handed_back_before_it_leaves(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """The record says that it runs here, and nothing of it does: that is no loss, and no suspect either."""
    async with bench(redis_url, shutdown_timeout_s=0.0, cleanup_s=0.0, force_s=0.1) as b:
        block, left, seen = Block(), threading.Event(), []

        @b.bus.job
        async def short() -> None: ...

        start = Store.start

        async def blocked_after(self: Store, *args: Any, **how: Any) -> Any:
            answers = await start(self, *args, **how)
            if not block.began.is_set():
                block.last()
            return answers

        def story() -> None:
            if cancelled:
                b.bus.blocking.cancel("one")
            worker.stop_for_certain(left.set)
            assert left.wait(LIMIT_S)
            seen.append(b.bus.blocking.get("one"))
            seen.append([member.name for member in b.bus.blocking.workers()])

        monkeypatch.setattr(Store, "start", blocked_after)
        worker = await b.work()
        block.start(story)
        await short.options(jid="one").enqueue()
        await block.ended()
        job, members = seen
        assert (job.state, job.ended) == (("cancelled", "before_start") if cancelled else ("queued", None))
        assert (job.failures, job.losses) == (0, 0)
        assert members == [], "it holds nothing any more, so it could leave the roster"


@pytest.mark.usefixtures("quick")
async def test_a_handler_that_checks_inside_a_block_hears_that_the_worker_stops(redis_url: str) -> None:
    """Then the loop goes on, and the drain is the ordinary one."""
    async with bench(redis_url, shutdown_timeout_s=0.1, cleanup_s=20.0) as b:
        block, causes, leaves = Block(), [], []

        @b.bus.job
        async def hogs() -> None:
            block.began.set()
            try:
                spin(busq.current_job().check_cancelled)
            except busq.Cancelled as error:
                causes.append(error.cause)
                raise

        def story() -> None:
            worker.stop_for_certain(lambda: leaves.append(1))
            loop.call_soon_threadsafe(worker.stop)

        loop = asyncio.get_running_loop()
        worker = await b.work()
        handle = await hogs.enqueue()
        await block.beside(story)
        await b.ended(worker)
        job = await handle.get()
        assert (causes, leaves) == (["shutdown"], [])
        assert (job.state, job.failures, job.losses) == ("queued", 0, 0)


# What blocks one worker after the other --------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("before_it_was_told", [True, False])
async def test_a_job_that_blocked_the_loop_too_long_for_any_honest_handler_costs_a_loss(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, *, before_it_was_told: bool
) -> None:
    """Its neighbours are handed back for nothing; and so is it, when the block began in a drain that was on."""
    monkeypatch.setattr(standin, "POISON_S", 0.5)
    async with bench(redis_url, shutdown_timeout_s=1.0, cleanup_s=0.1, **SHORT_LEASE) as b:
        block, left, gate, seen = Block(), threading.Event(), b.gate(), []

        @b.bus.job
        async def hogs() -> None:
            block.last()

        @b.bus.job
        async def waits() -> None:
            await gate.wait()

        def story() -> None:
            if before_it_was_told:
                # More than the drain will take: time in which the watch did not get its turn counts for nothing.
                spin(lambda: worker._stand_in.watch.culprit()[1] > 2.0)
                worker.stop_for_certain(left.set)
            assert left.wait(LIMIT_S)
            seen.extend(b.bus.blocking.get(jid) for jid in (hog.jid, beside_it.jid))

        worker = await b.work()
        beside_it = await waits.enqueue()
        await b.reaches(beside_it.jid, "running")
        if not before_it_was_told:
            worker.stop_for_certain(left.set)
        hog = await hogs.enqueue()
        await block.beside(story)
        gate.open()
        culprit, neighbour = seen
        assert (neighbour.state, neighbour.failures, neighbour.losses) == ("queued", 0, 0)
        assert culprit.state == ("running" if before_it_was_told else "queued")
        if before_it_was_told:
            await b.watch()
            await until(lambda: _lost_once(hog))


async def _lost_once(handle: busq.JobHandle[Any]) -> bool:
    job = await handle.get()
    return (job.losses, job.failures) == (1, 0)


async def test_a_loop_that_many_handlers_hold_up_in_turn_has_no_culprit() -> None:
    """What is held against a handler is the time of one step of its own, not of the whole block."""

    class Running:
        def __init__(self, task: asyncio.Task[None]) -> None:
            self.task, self.job, self.facts = task, None, {}

    async def first() -> None:
        spin(lambda: watch.culprit()[1] > 1.5)

    async def second() -> None:
        spin(lambda: watch.culprit()[0] is running["second"])
        seen.extend([watch.culprit()[1], watch.blocked_s])

    seen: list[float] = []
    running: dict[str, Any] = {}
    watch = LoopWatch(asyncio.get_running_loop(), lambda: running)
    watching = asyncio.new_event_loop()

    async def look_on() -> None:
        with suppress(asyncio.CancelledError):
            await watch.run()

    watcher = threading.Thread(target=lambda: watching.run_until_complete(look_on()), daemon=True)
    watcher.start()
    running.update(first=Running(asyncio.create_task(first())), second=Running(asyncio.create_task(second())))
    await asyncio.gather(*(each.task for each in running.values()))
    held_s, blocked_s = seen
    assert held_s < blocked_s - 0.5, "the rest is room for time in which the watch itself did not get its turn"
    [task] = asyncio.all_tasks(watching)
    watching.call_soon_threadsafe(task.cancel)
    watcher.join(LIMIT_S)
    watching.close()
