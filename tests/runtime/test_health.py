"""What a worker and a watchdog say of themselves: no in each case in which they should, and yes again afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import busq
from busq.callables import Pool
from busq.clock import ManualClock
from busq.config import Settings
from busq.errors import BusUnavailable
from busq.watchdog.watchdog import Watchdog
from busq.worker import health as workers
from busq.worker.worker import Worker
from tests.roles import as_role
from tests.runtime.bench import PATIENT, Bench, Wait, bench, declare, until
from tests.servers import RedisServer


def wrong(checks: dict[str, str]) -> set[str]:
    """The names of the checks that say no."""
    return {name for name, words in checks.items() if words}


async def healthy(worker: Worker) -> None:
    await until(lambda: not wrong(worker.health().ready))
    assert not wrong(worker.health().live)


async def ready_with_handlers(b: Bench) -> tuple[Worker, Any]:
    gate = b.gate()

    def hold() -> Any:
        yield Wait(gate)

    held = declare(b.bus, "coroutine", hold)
    worker = await b.work()
    await healthy(worker)
    return worker, (gate, held)


async def test_a_worker_that_has_not_begun_is_alive_and_not_ready(redis_url: str) -> None:
    async with bench(redis_url) as b:
        health = Worker(b.settings_of("worker"), b.bus.handlers).health()
    assert not health.started
    assert not wrong(health.live)
    assert wrong(health.ready) == {"started"}
    assert health.slots["coroutine"].limit == 100


async def test_a_worker_tells_its_slots_and_what_runs_in_them(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        worker, (gate, held) = await ready_with_handlers(b)
        handle = await held.enqueue()
        await b.reaches(handle.jid, "running")
        health = worker.health()
        assert (health.started, health.running) == (True, 1)
        assert (health.slots["coroutine"].limit, health.slots["coroutine"].running) == (100, 1)
        assert health.slots["thread"].running == 0
        assert health.queues == ["default"]
        await until(lambda: worker.health().listener.subscriptions == 2)  # its own job, and rules
        gate.open()
        await b.reaches(handle.jid, "succeeded")
        assert worker.health().running == 0


async def test_redis_away_makes_a_worker_unready_and_never_dead(own_server: RedisServer) -> None:
    async with bench(own_server.url, command_timeout_s=0.5) as b:
        worker, _ = await ready_with_handlers(b)
        await b.watch()  # brings back what the server forgets: its scripts
        own_server.kill()
        await until(lambda: {"redis", "listener", "intake"} <= wrong(worker.health().ready))
        assert "no answer to the beat" in worker.health().ready["redis"]
        assert not wrong(worker.health().live)
        own_server.start()
        await healthy(worker)


async def test_a_deaf_listener_makes_a_worker_unready_while_commands_are_answered(redis_url: str) -> None:
    """A connection whose PING was never echoed; the listener's own tests show when it thinks so."""
    async with bench(redis_url) as b:
        worker, _ = await ready_with_handlers(b)
        listener: Any = worker._control._listener
        listener._caught_up = False
        assert wrong(worker.health().ready) == {"listener"}
        assert not wrong(worker.health().live)


async def test_a_draining_worker_is_not_ready_and_alive(redis_url: str) -> None:
    async with bench(redis_url, shutdown_timeout_s=30, **PATIENT) as b:
        worker, (gate, held) = await ready_with_handlers(b)
        handle = await held.enqueue()
        await b.reaches(handle.jid, "running")
        worker.stop()
        await until(lambda: worker.draining)
        assert wrong(worker.health().ready) == {"draining"}
        gate.open()
        await b.ended(worker)
        assert not wrong(worker.health().live)


async def test_code_that_was_given_up_is_listed_as_suspect_until_it_ends(redis_url: str) -> None:
    async with bench(redis_url, grace_s=0.05) as b:
        gate = b.gate()

        def deaf() -> Any:
            yield Wait(gate, checking=False)

        held = declare(b.bus, "thread", deaf)
        worker = await b.work()
        await b.watch()
        handle = await held.enqueue()
        await b.reaches(handle.jid, "running")
        await b.bus.cancel(handle.jid)
        await until(lambda: worker.health().suspects)
        [suspect] = worker.health().suspects
        assert (suspect.jid, suspect.kind, suspect.attempt) == (handle.jid, "deaf", 1)
        assert 0 <= suspect.since_s < 10
        assert not wrong(worker.health().ready)
        gate.open()
        await until(lambda: not worker.health().suspects)


async def test_a_worker_past_its_limit_of_suspects_is_unready_in_its_own_words(redis_url: str) -> None:
    async with bench(redis_url) as b:
        worker, _ = await ready_with_handlers(b)
        worker.unready = "11 suspects, the limit is 10"
        assert worker.health().ready["suspects"] == "11 suspects, the limit is 10"
        assert not wrong(worker.health().live)


async def test_a_worker_whose_loop_was_given_up_is_neither_alive_nor_ready(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_facts = workers.Facts

    def past_help(**facts: Any) -> workers.Facts:
        return of_facts(**{**facts, "lifeless": "blocked past the deadline of a cancel"})

    async with bench(redis_url) as b:
        worker, _ = await ready_with_handlers(b)
        monkeypatch.setattr(workers, "Facts", past_help)
        assert wrong(worker.health().live) == {"loop"}
        assert wrong(worker.health().ready) == {"loop"}


@pytest.mark.parametrize("part", ["intake", "outbox"])
async def test_a_service_that_ended_by_itself_makes_a_worker_dead(redis_url: str, part: str) -> None:
    async with bench(redis_url) as b:
        worker, _ = await ready_with_handlers(b)

        async def falls() -> None:
            raise ZeroDivisionError

        going_on = worker._services[part]
        worker._services[part] = fallen = asyncio.create_task(falls())
        await asyncio.wait({fallen})
        assert part in worker.health().live["services"]
        assert isinstance(fallen.exception(), ZeroDivisionError)
        worker._services[part] = going_on


@pytest.mark.parametrize("part", ["listener", "beat"])
async def test_a_part_of_the_control_thread_that_ended_makes_a_worker_dead(redis_url: str, part: str) -> None:
    async with bench(redis_url) as b:
        worker, _ = await ready_with_handlers(b)
        service = worker._control._services[part]
        worker._control._call(service.cancel)
        await until(lambda: part in worker.health().live["control"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_control_thread_that_ended_makes_a_worker_dead(redis_url: str) -> None:
    async with bench(redis_url) as b:
        worker, _ = await ready_with_handlers(b)
        control: Any = worker._control
        loop = control._loop
        loop.call_soon_threadsafe(loop.stop)
        await until(lambda: "control thread has ended" in worker.health().live["control"])


def test_a_pools_slots_are_told_for_every_pool(redis_url: str) -> None:
    async def look() -> Any:
        return Worker(
            busq.Bus(as_role(redis_url, "worker")).settings, busq.Bus(redis_url).handlers, concurrency=7
        ).health()

    assert {name: slots.limit for name, slots in asyncio.run(look()).slots.items()} == {str(pool): 7 for pool in Pool}


# The watchdog ------------------------------------------------------------------------------------------------


async def test_a_watchdog_tells_its_passes_and_what_it_did(redis_url: str) -> None:
    async with bench(redis_url) as b:
        dog = await b.watch()

        def brought_about() -> dict[str, int]:
            return {what: count for what, count in dog.health().done.items() if count}

        await until(lambda: not wrong(dog.health().ready))
        handle = await b.bus.options(delay=0.05).enqueue("nobody_runs_it")
        await b.reaches(handle.jid, "queued")
        await until(lambda: brought_about() == {"job.promoted": 1})
        assert (await (await b.bus.options(expires=0.05).enqueue("nobody_runs_it")).wait(timeout=10)).cause == "expired"
        await until(lambda: brought_about() == {"job.promoted": 1, "job.expired": 1})
        assert dog.health().passes > 1
        assert not wrong(dog.health().live)


async def test_redis_away_makes_a_watchdog_unready_and_never_dead(own_server: RedisServer) -> None:
    async with bench(own_server.url, command_timeout_s=0.5) as b:
        dog = await b.watch()
        own_server.kill()
        await until(lambda: "redis" in wrong(dog.health().ready))
        assert not wrong(dog.health().live)
        own_server.start()
        await until(lambda: not wrong(dog.health().ready))


def test_a_watchdog_without_a_pass_is_late_then_stuck_unless_redis_is_away() -> None:
    clock = ManualClock()
    dog = Watchdog(Settings(url="redis://nowhere"), clock=clock)
    assert wrong(dog.health().ready) == {"started"}
    dog._done_at["pass"] = clock.monotonic()
    assert wrong(dog.health().ready) == {"started"}
    dog._done_at |= {"finalizing": clock.monotonic(), "pass": clock.monotonic()}
    clock.advance(4.9)
    assert not wrong(dog.health().ready)
    clock.advance(0.2)
    assert wrong(dog.health().ready) == {"passes"}
    assert not wrong(dog.health().live)
    dog._done_at["pass"] = clock.monotonic()
    assert wrong(dog.health().ready) == {"passes"}, "passes alone, and cancels are not finalized any more"
    clock.advance(26)
    assert wrong(dog.health().live) == {"passes"}
    dog._outage.began("pass", BusUnavailable("gone"))
    assert not wrong(dog.health().live)
    assert wrong(dog.health().ready) == {"redis", "passes"}
