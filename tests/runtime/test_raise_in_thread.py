"""
Handlers in threads that want `Cancelled` raised in them: it stops pure Python, and nothing else is ever hit.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from typing import Any

import pytest

import busq
from busq.protocol.cancel import Cause, TripFacts
from busq.worker.executors import raising as module
from busq.worker.executors.raising import Raising
from busq.worker.token import CancelToken
from tests.runtime.bench import NEVER_SO_LONG_S, Bench, bench, until

FACTS = TripFacts(cause=Cause.USER, reason="enough")
CANCELLED_STORY = ["enqueued", "started", "requested", "tripped", "observed", "stopped", "finalized"]


@pytest.fixture(autouse=True)
def _the_interpreters_own_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A shot may land in what the collector runs in that thread: the interpreter drops it there, and the next one hits.

    pytest's own hook is Python code, can be hit itself, and would then blame the test.
    """
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)


async def stopped(b: Bench, kind: Any) -> busq.Job:
    """The record of a job of this kind that was cancelled while it ran."""
    handle = await kind.enqueue()
    await b.reaches(handle.jid, "running")
    await handle.cancel(reason="enough")
    job: busq.Job = await handle.wait(timeout=20)
    return job


async def test_a_loop_in_pure_python_is_stopped_by_force(redis_url: str) -> None:
    async with bench(redis_url, force_s=5.0) as b:
        raised: list[Any] = []
        threads: list[int] = []

        @b.bus.job(raise_in_thread=True)
        def spins() -> None:
            threads.append(threading.get_ident())
            try:
                while True:
                    pass
            except busq.Cancelled as error:
                raised.append((str(error), error.cause, error.reason))
                raise

        @b.bus.job
        def which() -> int:
            return threading.get_ident()

        worker = await b.work(concurrency=1)
        job = await stopped(b, spins)
        assert (job.state, job.ended) == ("cancelled", "confirmed")
        assert raised == [("cancelled: user (enough)", "user", "enough")]
        assert await b.names(job.jid) == CANCELLED_STORY
        assert worker.leftovers == 0
        for _ in range(3):
            await until(lambda: worker._threads._idle == 1)
            handle = await which.enqueue()
            assert await handle.result(timeout=10) == threads[0], "the thread is kept and takes the next job unharmed"


async def test_a_handler_that_did_not_ask_for_it_is_left_alone(redis_url: str) -> None:
    async with bench(redis_url) as b:
        gate = b.gate()

        @b.bus.job
        def spins() -> None:
            while not gate.is_open:
                pass

        await b.work()
        await b.watch()
        job = await stopped(b, spins)
        assert (job.state, job.ended) == ("cancelled", "abandoned")


async def test_what_swallows_it_a_few_times_is_raised_in_again(redis_url: str) -> None:
    async with bench(redis_url, force_s=5.0) as b:
        swallowed: list[int] = []

        @b.bus.job(raise_in_thread=True)
        def spins() -> str:
            while len(swallowed) < 3:
                try:
                    while True:
                        pass
                except busq.Cancelled:
                    swallowed.append(1)
            return "at last"

        await b.work()
        job = await stopped(b, spins)
        assert (job.state, job.ended, len(swallowed)) == ("cancelled", "confirmed", 3)


async def test_what_sleeps_is_not_reached_and_abandoned(redis_url: str) -> None:
    """The limit, told: the exception waits until the call returns, and the worker does not."""
    async with bench(redis_url) as b:
        gate, ends = b.gate(), []

        @b.bus.job(raise_in_thread=True)
        def waits() -> None:
            try:
                gate.block()
            finally:
                ends.append(1)

        worker = await b.work()
        await b.watch()
        job = await stopped(b, waits)
        assert (job.state, job.ended, ends) == ("cancelled", "abandoned", [])
        gate.open()
        await until(lambda: worker.leftovers == 0)


async def test_a_timeout_is_forced_in_the_same_way_and_retried(redis_url: str) -> None:
    async with bench(redis_url, force_s=5.0) as b:
        causes: list[Any] = []

        @b.bus.job(raise_in_thread=True, timeout=0.05, retries=1)
        def spins() -> str:
            if busq.current_job().attempt == 2:
                return "second"
            try:
                while True:
                    pass
            except busq.Cancelled as error:
                causes.append(error.cause)
                raise

        await b.work()
        await b.watch()
        handle = await spins.enqueue()
        assert await handle.result(timeout=20) == "second"
        assert causes == ["timeout"]
        assert (await handle.get()).failures == 1


# The gate --------------------------------------------------------------------------------------------------


class Hunted:
    """A thread that runs short pieces of work, and another that shoots at each of them as fast as it can."""

    def __init__(self) -> None:
        self.token = CancelToken()
        self.token.trip(FACTS)
        self.raising = Raising(self.token)
        self.landed = self.missed = self.astray = 0
        self.over = False

    def shoot(self) -> None:
        while not self.over:
            self.raising.fire()

    def run(self, rounds: int) -> None:
        # The last thing that each of them does is to let the other thread run: in the interpreter, or in C.
        ways: list[Any] = [time.sleep, self._hands_over, self._works]
        for i in range(rounds):
            try:
                raising = self.raising = Raising(self.token)
                _, error = raising.call(ways[i % 3], [0], {})
                assert error is None or isinstance(error, busq.Cancelled), error
                self.landed += error is not None
                self.missed += error is None
                for _ in range(50):  # the next job, and the thread's own steps between the two
                    pass
            except busq.Cancelled:
                self.astray += 1
        self.over = True

    def _hands_over(self, seconds: float) -> None:
        try:
            time.sleep(seconds)
        finally:
            time.sleep(seconds)

    def _works(self, seconds: float) -> None:
        for _ in range(100):
            pass


def test_nothing_lands_outside_the_code_that_it_was_aimed_at() -> None:
    """Thousands of ends, the threads switched all the time: a shot lands in the code or is taken back."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    hunted = Hunted()
    threads = [threading.Thread(target=hunted.shoot), threading.Thread(target=hunted.run, args=(6_000,))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
    finally:
        hunted.over = True
        sys.setswitchinterval(before)
    assert hunted.astray == 0
    assert hunted.landed + hunted.missed == 6_000
    assert min(hunted.landed, hunted.missed) > 100, "both happened, or nothing was tried"


def test_a_thread_that_is_logging_is_spared() -> None:
    """A lock of `logging` that an exception left held would stop every thread of the process."""
    token = CancelToken()
    token.trip(FACTS)
    raising = Raising(token)
    inside, go_on = threading.Event(), threading.Event()
    ends: list[Any] = []

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            inside.set()
            while not go_on.is_set():
                pass

    logger = logging.getLogger("spared")
    logger.addHandler(Slow())
    logger.propagate = False

    def work() -> str:
        logger.warning("a line")
        return "done"

    thread = threading.Thread(target=lambda: ends.append(raising.call(work, [], {})))
    thread.start()
    assert inside.wait(10)
    for _ in range(100):
        assert raising.fire(), "firing again later can do good"
    go_on.set()
    thread.join(10)
    assert ends == [("done", None)]
    assert not raising.fire(), "its code has ended"
    assert not token.observed


def test_a_shut_gate_waits_for_the_shot_that_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was about to fire when the handler ended: it must not land in the thread's next job."""
    token = CancelToken()
    token.trip(FACTS)
    raising = Raising(token)
    aiming, fire, fired, let_end = (threading.Event() for _ in range(4))
    really = module._raise_in

    def slowly(thread: int, exception: Any) -> None:
        if exception is not None:
            aiming.set()
            fire.wait(10)
            really(thread, exception)
            fired.set()
        else:
            really(thread, None)

    monkeypatch.setattr(module, "_raise_in", slowly)
    ends: list[Any] = []

    def prey() -> None:
        ends.append(raising.call(lambda: let_end.wait(10), [], {}))
        try:
            fired.wait(10)
            ends.append(sum(1 for _ in range(1000)))
        except busq.Cancelled:
            ends.append("astray")

    thread = threading.Thread(target=prey)
    shooter = threading.Thread(target=raising.fire)
    thread.start()
    shooter.start()
    assert aiming.wait(10)
    let_end.set()
    while not raising._shut:
        pass
    fire.set()
    thread.join(10)
    shooter.join(10)
    assert ends == [(True, None), 1000]


@pytest.mark.parametrize("strays", [1, 2])
def test_shots_that_land_on_the_steps_after_the_handler_change_nothing(
    monkeypatch: pytest.MonkeyPatch, strays: int
) -> None:
    """The most that can: one that was there before the gate was shut, and the one on its way."""
    shots = [busq.Cancelled(Cause.USER)] * strays
    really = Raising._disarm

    def hit(self: Raising) -> None:
        if shots:
            raise shots.pop()
        really(self)

    monkeypatch.setattr(Raising, "_disarm", hit)
    assert Raising(CancelToken()).call(lambda: "done", [], {}) == ("done", None)
    assert not shots


async def test_many_cancels_round_the_end_of_their_handler_leave_the_thread_whole(redis_url: str) -> None:
    """One slot, short jobs, force at once: each is cancelled or done, and none is hit by another's exception."""
    async with bench(redis_url, grace_s=0.0, force_s=1.0) as b:
        loop, begun = asyncio.get_running_loop(), [asyncio.Event() for _ in range(300)]

        @b.bus.job(raise_in_thread=True)
        def short(n: int) -> int:
            loop.call_soon_threadsafe(begun[n].set)
            until_s = time.perf_counter() + (n % 20) * 0.0005
            while time.perf_counter() < until_s:
                pass
            return n

        worker = await b.work(concurrency=1)
        handles = await b.bus.enqueue_many(short.spec(n) for n in range(300))

        async def harass(n: int) -> None:
            await begun[n].wait()
            await handles[n].cancel()

        async with asyncio.timeout(NEVER_SO_LONG_S), asyncio.TaskGroup() as group:
            for n in range(0, 300, 2):
                group.create_task(harass(n))
        jobs = [await handle.wait(timeout=30) for handle in handles]
        for n, job in enumerate(jobs):
            if n % 2:
                assert (job.state, job.result) == ("succeeded", n), "nobody asked this one to stop"
            else:
                assert job.state in ("succeeded", "cancelled")
        assert worker.leftovers == 0
