"""
A start that took effect and whose reply was lost: the record says that the worker runs it, and nothing of it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import busq
from busq.errors import BusUnavailable
from busq.store import scripts
from busq.store.store import Store
from busq.worker.intake import Intake
from tests.fault.proxy import Proxy
from tests.roles import as_role, elsewhere
from tests.runtime.bench import Bench, bench, until
from tests.servers import RedisServer

LONG: dict[str, Any] = {"lease_s": 60.0, "grace_s": 60.0}  # nothing is reclaimed or finalized while a story lasts
SHORT = {**LONG, "grace_s": 0.05}  # but cancels are finalized


def lose_starts(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> None:
    """Every start takes effect, and no reply arrives."""
    real = Store.start

    async def start(self: Store, *args: Any, **kwargs: Any) -> Any:
        await real(self, *args, **kwargs)
        then()
        raise BusUnavailable("the answer was lost")

    monkeypatch.setattr(Store, "start", start)


def counting(b: Bench) -> list[int]:
    ran: list[int] = []

    @b.bus.job
    async def short() -> None:
        ran.append(busq.current_job().attempt)

    return ran


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_start_that_was_not_heard_of_before_sigterm_is_handed_back_without_a_loss(
    redis_url: str, cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, **LONG) as b:
        ran = counting(b)
        cancelling = asyncio.Event()
        leave = Intake.leave

        async def leave_later(self: Intake) -> None:
            if cancelled:
                assert (await b.bus.cancel("one")).verdict == "signalled"
            cancelling.set()
            await leave(self)

        monkeypatch.setattr(Intake, "leave", leave_later)
        worker = await b.work()
        with monkeypatch.context() as patched:
            lose_starts(patched, worker.stop)
            handle = await b.bus.options(jid="one").enqueue("short")
            await b.ended(worker)
        job = await handle.get()
        assert cancelling.is_set()
        assert (job.failures, job.losses, ran) == (0, 0, [])
        assert (await b.bus.stats()).suspects == 0
        assert list(await b.bus.workers()) == [], "it holds nothing, so it has left the roster"
        if cancelled:
            assert (job.state, job.ended) == ("cancelled", "before_start")
        else:
            assert job.state == "queued"
            assert (await b.names(handle.jid))[-1] == "handed_back"
            await b.work()
            assert (await handle.wait(timeout=10)).losses == 0
            assert ran == [2]


async def test_a_start_that_was_not_heard_of_is_given_back_when_its_slot_is_taken_meanwhile(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else may have room for it; it costs nothing."""
    async with bench(redis_url, **LONG) as b:
        ran = counting(b)
        worker = await b.work(concurrency=1)
        short = b.bus.handlers.get("short")
        assert short is not None
        with monkeypatch.context() as patched:
            slot: list[bool] = []

            def take_it() -> None:
                asyncio.get_running_loop().call_soon(lambda: slot.append(worker._slots.take(short)))

            lose_starts(patched, take_it)
            handle = await b.bus.enqueue("short")
            await until(lambda: _handed_back(b, handle.jid))
            await b.reaches(handle.jid, "queued")
        assert slot == [True]
        worker._slots.give_back(short)
        job = await handle.wait(timeout=10)
        assert (job.state, job.attempt, job.losses, ran) == ("succeeded", 2, 0, [2])
        assert (await b.names(handle.jid)).count("handed_back") == 1


async def _handed_back(b: Bench, jid: str) -> bool:
    return "handed_back" in await b.names(jid)


async def test_a_start_that_was_not_heard_of_and_then_cancelled_ends_before_start(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker finds it among its own entries; nobody is a suspect, and nobody waits for a deadline."""
    async with bench(redis_url, **LONG) as b:
        ran = counting(b)
        started, cancelled = asyncio.Event(), asyncio.Event()
        reconcile = Intake.reconcile

        async def reconcile_later(self: Intake) -> None:
            if started.is_set():
                await cancelled.wait()
            await reconcile(self)

        monkeypatch.setattr(Intake, "reconcile", reconcile_later)
        worker = await b.work()
        await b.watch()
        with monkeypatch.context() as patched:
            lose_starts(patched, started.set)
            handle = await b.bus.enqueue("short")
            await started.wait()
        assert (await handle.cancel()).verdict == "signalled"
        cancelled.set()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended, job.cause, ran) == ("cancelled", "before_start", "user", [])
        assert (await b.bus.stats()).suspects == 0
        await until(lambda: (worker.leftovers, worker._slots.used) == (0, 0))


@pytest.mark.parametrize("lost", [1, 4])
async def test_a_start_whose_replies_are_cut_off_while_it_is_cancelled_ends_before_start(
    own_server: RedisServer, lost: int
) -> None:
    """
    Over a real connection, which is cut after the effect and before the reply.

    A start is sent four times before it is given up, so with one lost reply it is heard when it is sent again.
    """
    start = scripts.load("start").sha.encode()
    async with bench(own_server.url, **LONG) as b, Proxy(own_server.port) as proxy:
        ran: list[int] = []
        far = busq.Bus(as_role(elsewhere(b.url, proxy.place), "worker"), **b.given)

        @far.job
        async def short() -> None:
            ran.append(1)

        worker = await b.work(far)
        await b.watch()

        def lose(reply: bytes, asked: bytes) -> bool:
            if start not in asked or proxy.lost >= lost or reply.startswith(b"-NOSCRIPT"):
                return False
            if proxy.lost == lost - 1:  # in the very moment in which the worker cannot know of it
                proxy.stall()
            return True

        proxy.lose = lose
        handle = await b.bus.enqueue("short")
        await until(lambda: proxy.lost == lost)
        assert (await handle.cancel()).verdict == "signalled"
        proxy.go_on()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended, ran) == ("cancelled", "before_start", [])
        assert (await b.bus.stats()).suspects == 0
        await until(lambda: worker._slots.used == 0)


async def test_a_start_that_was_not_heard_of_until_its_cancel_was_finalized_leaves_no_suspect(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Whoever finalized it could not know that nothing runs; the worker can, though its entry is gone.

    What does run on is listed beside it, and stays so.
    """
    async with bench(redis_url, **SHORT) as b:
        ran, gate = counting(b), b.gate()

        @b.bus.job
        def deaf() -> None:
            gate.block()

        started, finalized = asyncio.Event(), asyncio.Event()
        reconcile = Intake.reconcile

        async def reconcile_later(self: Intake) -> None:
            if started.is_set():
                await finalized.wait()
            await reconcile(self)

        monkeypatch.setattr(Intake, "reconcile", reconcile_later)
        worker = await b.work()
        await b.watch()
        stays = await b.bus.enqueue("deaf")
        await b.reaches(stays.jid, "running")
        await stays.cancel()
        assert (await stays.wait(timeout=20)).ended == "abandoned"
        await until(lambda: worker._runner.suspects)
        with monkeypatch.context() as patched:
            lose_starts(patched, started.set)
            handle = await b.bus.enqueue("short")
            await started.wait()
        await handle.cancel()
        assert (await handle.wait(timeout=20)).ended == "abandoned"
        assert (await b.bus.stats()).suspects == 2
        finalized.set()
        await until(lambda: _suspects(b, 1))
        assert ran == []
        gate.open()
        await until(lambda: _suspects(b, 0))


async def test_a_start_that_is_sent_again_after_its_cancel_was_finalized_leaves_no_suspect(
    own_server: RedisServer,
) -> None:
    """The worker never learns that a reply was lost: the connection has sent the call again."""
    start = scripts.load("start").sha.encode()
    async with bench(own_server.url, **SHORT) as b, Proxy(own_server.port) as proxy:
        ran: list[int] = []
        far = busq.Bus(as_role(elsewhere(b.url, proxy.place), "worker"), **b.given)

        @far.job
        async def short() -> None:
            ran.append(1)

        await b.work(far)
        await b.watch()

        def lose(reply: bytes, asked: bytes) -> bool:
            if start not in asked or proxy.lost or reply.startswith(b"-NOSCRIPT"):
                return False
            proxy.stall()
            return True

        proxy.lose = lose
        handle = await b.bus.enqueue("short")
        await until(lambda: proxy.lost == 1)
        await handle.cancel()
        assert (await handle.wait(timeout=20)).ended == "abandoned"
        assert (await b.bus.stats()).suspects == 1
        proxy.go_on()
        await until(lambda: _suspects(b, 0))
        assert ran == []


async def _suspects(b: Bench, count: int) -> bool:
    return (await b.bus.stats()).suspects == count


async def test_an_entry_of_an_attempt_that_was_given_up_is_not_taken_for_one_that_never_ran(redis_url: str) -> None:
    """Its code runs on, so it must end as abandoned, also when the worker looks through its own entries."""
    async with bench(redis_url, **SHORT) as b:
        gate = b.gate()

        @b.bus.job
        def deaf() -> None:
            gate.block()

        worker = await b.work()
        handle = await b.bus.enqueue("deaf")
        await until(lambda: handle.jid in worker.running)
        attempt = worker.running[handle.jid]
        await handle.cancel()
        await until(lambda: attempt.forced)
        worker._runner._abandon(attempt, "the story wants it")  # before anybody has finalized the job
        await worker._intake.reconcile()
        assert (await handle.get()).state == "cancelling"
        await b.watch()
        assert (await handle.wait(timeout=10)).ended == "abandoned"
