"""
When a worker stops taking jobs of its own accord: the beat does not arrive, or too much abandoned code runs in it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

import busq
from busq.errors import BusUnavailable
from busq.worker import control, suspects
from busq.worker.worker import Worker
from tests.runtime.bench import Bench, bench, until


class Cut:
    """The control thread's way to Redis, which a test closes and opens; everybody else's works."""

    def __init__(self, worker: Worker) -> None:
        store = worker._control._store
        self._renew = store.renew
        self.closed = False
        store.renew = self._or_not  # type: ignore[method-assign]

    async def _or_not(self, *args: Any, **kwargs: Any) -> Any:
        if self.closed:
            raise BusUnavailable("cut")
        return await self._renew(*args, **kwargs)


async def pending(b: Bench, worker: Worker) -> int:
    return len(await worker._streams.pending())


async def test_nothing_is_started_while_the_beat_does_not_arrive_and_all_is_once_it_does(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader's own connection works all the time. What it reads waits under the worker's name, and is found."""
    async with bench(redis_url, lease_s=60.0) as b:
        ran: list[int] = []

        @b.bus.job
        async def counted(n: int) -> int:
            ran.append(n)
            return n

        worker = await b.work()
        assert await (await counted.enqueue(1)).result(timeout=10) == 1
        monkeypatch.setattr(control, "UNREACHABLE_AFTER_S", 0.5)
        cut = Cut(worker)
        cut.closed = True
        await until(lambda: not worker._control.reachable)
        second = await counted.enqueue(2)  # given to the read that is on

        async def read() -> bool:
            return await pending(b, worker) == 1

        await until(read)
        third = await counted.enqueue(3)
        for _ in range(3):  # turns of the reader that find the beat still away
            await _turn_of_the_reader(worker)
        assert (await second.get()).state == (await third.get()).state == "queued"
        assert ran == [1]
        assert not worker.running
        cut.closed = False
        assert [await handle.result(timeout=10) for handle in (second, third)] == [2, 3]
        assert ran == [1, 2, 3]
        assert (await second.get()).attempt == 1, "adopted, not taken over"


async def test_a_worker_reconciles_once_the_beat_arrives_again(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing was read meanwhile: what it held may have been taken from it."""
    async with bench(redis_url, lease_s=60.0) as b:
        worker = await b.work()
        monkeypatch.setattr(control, "UNREACHABLE_AFTER_S", 0.5)
        cut = Cut(worker)
        cut.closed = True
        await until(lambda: not worker._control.reachable)
        await _turn_of_the_reader(worker)
        await _turn_of_the_reader(worker)
        reconciled, really = asyncio.Event(), worker._intake.reconcile

        async def reconcile() -> bool:
            reconciled.set()
            return await really()

        worker._intake.reconcile = reconcile  # type: ignore[method-assign]
        cut.closed = False
        async with asyncio.timeout(10):
            await reconciled.wait()


async def _turn_of_the_reader(worker: Worker) -> None:
    asked = asyncio.Event()
    really = worker._intake._beats

    def beats() -> bool:
        asked.set()
        return really()

    worker._intake._beats = beats
    await asked.wait()
    worker._intake._beats = really


# Suspects ------------------------------------------------------------------------------------------------------


async def abandon(b: Bench, kind: Any) -> None:
    handle = await kind.enqueue()
    await b.reaches(handle.jid, "running")
    await handle.cancel()
    assert (await handle.wait(timeout=10)).ended == "abandoned"


async def test_past_a_limit_of_suspects_a_worker_says_so_and_drains_itself(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What still runs may end; what is queued is left to others."""
    monkeypatch.setattr(suspects, "PATIENCE_S", 0.01)
    with capture_logs() as lines:
        async with bench(redis_url, suspects_limit=2, shutdown_timeout_s=20.0) as b:
            gate, last = b.gate(), b.gate()

            @b.bus.job
            def deaf() -> None:
                gate.block()

            @b.bus.job
            async def waits() -> str:
                await last.wait()
                return "done"

            await b.watch()
            worker = await b.work()
            running = await waits.enqueue()
            await b.reaches(running.jid, "running")
            for count in (1, 2):
                await abandon(b, deaf)
                await until(lambda count=count: len(worker._runner.suspects) == count)
            assert worker.unready == "", "as many as the limit are borne"
            assert not worker.draining
            await abandon(b, deaf)
            await until(lambda: worker.draining)
            assert worker.unready.startswith("3 abandoned handlers run on in this process, with a limit of 2")
            left = await waits.enqueue()
            last.open()
            assert await running.result(timeout=10) == "done"
            await b.ended(worker)
            assert (await left.get()).state == "queued"
    [line] = [line for line in lines if line["event"] == "suspects.too_many"]
    assert (line["suspects"], line["limit"], line["log_level"]) == (3, 2, "error")


async def test_code_that_ends_soon_after_it_was_given_up_does_not_count(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspects, "PATIENCE_S", 3.0)
    async with bench(redis_url, suspects_limit=0) as b:
        gate = b.gate()

        @b.bus.job
        def deaf() -> None:
            gate.block()

        await b.watch()
        worker = await b.work()
        weighed = _count_weighings(worker)
        await abandon(b, deaf)
        await until(lambda: worker._runner.suspects)
        gate.open()
        await until(lambda: worker.leftovers == 0)
        await until(lambda: weighed)
        assert (worker.draining, worker.unready) == (False, "")


def _count_weighings(worker: Worker) -> list[int]:
    weighed: list[int] = []
    really = worker._runner.suspects._weigh

    def weigh() -> None:
        really()
        weighed.append(1)

    worker._runner.suspects._weigh = weigh  # type: ignore[method-assign]
    return weighed


async def test_the_limit_is_a_setting() -> None:
    assert busq.Bus("redis://h/0").settings.suspects_limit == 10
    with pytest.raises(busq.ConfigError, match="suspects_limit"):
        busq.Bus("redis://h/0", suspects_limit=-1)
