"""Keeping one process alive: what is started again and when, what is replaced, what is killed. With stand-ins."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from busq.cli import keeper as keepers
from busq.cli import line
from busq.cli.keeper import Keeper
from busq.cli.worker import Work
from tests.runtime.bench import until


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Stand-ins instead of workers, little patience, and what the keeper says."""
    monkeypatch.setattr(line, "SERVE", "from tests.interface.stand_in import serve; serve()")
    monkeypatch.setattr(keepers, "PAUSE_S", (0.01, 0.02))
    monkeypatch.setattr(keepers, "ASK_EVERY_S", 0.02)
    monkeypatch.setattr(keepers, "SLOW_S", 0.05)
    with capture_logs() as said:
        yield said


@pytest.fixture
def kills_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """For who does not end; who does must be given its time, for a busy machine may keep it from its turn."""
    monkeypatch.setattr(keepers, "MARGIN_S", 0.1)


def of(said: list[Any], event: str) -> list[dict[str, Any]]:
    return [each for each in said if each["event"] == event]


def pid_of(keeper: Keeper) -> int:
    pid = keeper.health.pid
    assert pid is not None
    return pid


@asynccontextmanager
async def kept(how: str, **more: Any) -> AsyncIterator[tuple[Keeper, asyncio.Task[None]]]:
    """A keeper at work, stopped at the end."""
    keeper = Keeper(1, Work(app=how), drains_within_s=0.1, **more)
    running = asyncio.create_task(keeper.run())
    try:
        yield keeper, running
    finally:
        keeper.stop()
        await running


async def running(keeper: Keeper, *, lives: int = 1) -> None:
    await until(lambda: keeper.health.state == "running" and keeper.health.lives >= lives, 30)


async def test_what_was_killed_is_started_again_and_how_it_ended_is_said(said: list[Any]) -> None:
    async with kept("works") as (keeper, _):
        await running(keeper)
        pid = pid_of(keeper)
        os.kill(pid, signal.SIGKILL)
        await running(keeper, lives=2)
        assert pid_of(keeper) != pid
        killed = keeper.health.last_end
        assert killed == "ended by SIGKILL of somebody else: out of memory?"
    [first, last] = of(said, "process.ended")
    assert (first["how"], first["pid"], first["log_level"]) == (killed, pid, "warning")
    assert (last["how"], last["log_level"]) == ("exit code 0", "info")


@pytest.mark.parametrize("code", [0, 1, 2, 3, 70])
async def test_what_ends_after_it_had_started_is_started_again_whatever_its_exit_code(code: int) -> None:
    """Zero too: a worker with too many suspects drains itself and wants a successor."""
    async with kept(f"ends {code}") as (keeper, _):
        await until(lambda: keeper.health.lives >= 4, 30)
        assert keeper.health.last_end == f"exit code {code}"
        assert keeper.first_end is None


@pytest.mark.parametrize("code", [0, 2, 3, 70])
async def test_a_leading_process_that_ends_before_it_has_started_is_not_started_again(code: int) -> None:
    async with kept(f"fails {code}", leads=True) as (keeper, keeping):
        await keeping
        assert (keeper.first_end, keeper.health.lives) == (code, 1)


async def test_one_that_does_not_lead_is_started_again_also_when_it_never_started() -> None:
    async with kept("fails 70") as (keeper, _):
        await until(lambda: keeper.health.lives >= 3, 30)
        assert keeper.first_end is None


async def test_a_keeper_that_was_stopped_itself_does_not_take_that_for_silence(said: list[Any]) -> None:
    """As by Ctrl-Z: when it goes on, its timers are long due, and what was answered meanwhile is not read yet."""
    async with kept("works") as (keeper, _):
        await running(keeper)
        keeper._looked_at -= 1000.0
        keeper._hear_nothing("has not answered")
        assert keeper._silent_s == keepers.LOOK_S
    assert not of(said, "process.unhealthy")


async def test_the_pauses_double_up_to_the_longest_and_begin_anew_after_a_good_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    keeper = Keeper(1, Work(app="ends 1"), drains_within_s=0.1)
    good_lives = iter([False] * 8 + [True] + [False] * 2)

    async def rest(seconds: float) -> None:
        pauses.append(seconds)

    async def live() -> int:
        keeper._lives += 1
        keeper.started.set()
        try:
            monkeypatch.setattr(keepers, "GOOD_LIFE_S", 0.0 if next(good_lives) else 1000.0)
        except StopIteration:
            keeper.stop()
        return 1

    monkeypatch.setattr(keepers, "PAUSE_S", (0.5, 30.0))
    monkeypatch.setattr(keepers.random, "uniform", lambda least, most: most)
    keeper._rest, keeper._live = rest, live  # type: ignore[method-assign]
    await keeper.run()
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 0.5, 1, 2]
    assert keeper.bad_lives == 3


async def test_one_that_ends_badly_again_and_again_is_given_up_but_not_for_want_of_redis() -> None:
    async with kept("ends 70") as (keeper, _):
        await until(lambda: keeper.given_up, 30)
        await until(lambda: keeper.health.lives > keepers.GIVEN_UP_AFTER + 1, 30)
    async with kept("ends 3") as (keeper, _):
        await until(lambda: keeper.health.lives > keepers.GIVEN_UP_AFTER + 1, 30)
        assert not keeper.given_up


@pytest.mark.parametrize("how", ["no", "late", "lifeless", "silent"])
async def test_one_that_is_past_help_is_replaced(said: list[Any], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how in ("late", "silent"):
        monkeypatch.setattr(keepers, "SILENT_S", 0.05)
    async with kept(how) as (keeper, _):
        await until(lambda: keeper.health.lives >= 2, 30)
    why = of(said, "process.unhealthy")[0]["why"]
    assert "given up" in why or "not answered" in why
    assert of(said, "process.ended")[0]["how"] == "exit code 0"


@pytest.mark.usefixtures("kills_soon")
async def test_a_frozen_process_whose_leases_hold_is_killed_after_its_time_to_drain(
    said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept("works on leases") as (keeper, _):
        await running(keeper)
        os.kill(pid_of(keeper), signal.SIGSTOP)
        monkeypatch.setattr(keepers, "SILENT_S", 0.05)
        await until(lambda: keeper.health.lives >= 2, 30)
    killed = of(said, "process.killed")[0]  # and perhaps its successor, at the end
    assert killed["why"] == "did not end within 0.2 s"
    assert of(said, "process.ended")[0]["how"] == "ended by SIGKILL"


@pytest.mark.usefixtures("kills_soon")
async def test_a_process_that_stays_mute_past_its_leases_is_killed_before_its_time_to_drain_is_over(
    said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept("works for long") as (keeper, _):
        await running(keeper)
        os.kill(pid_of(keeper), signal.SIGSTOP)
        monkeypatch.setattr(keepers, "SILENT_S", 0.05)
        await until(lambda: keeper.health.lives >= 2, 30)
    killed = of(said, "process.killed")[0]  # and perhaps its successor, at the end
    assert killed["why"].startswith("has not answered for")


async def test_one_that_answers_late_keeps_its_time_to_drain_however_long_it_was_silent(said: list[Any]) -> None:
    async with kept("works for long") as (keeper, _):
        await running(keeper)
        keeper._state = "ending"
        for _ in range(100):  # a hundred late answers, and then one that does not come in its second
            keeper._looked_at -= keepers.LOOK_S
            keeper._hear(line.Answer(late=True))
        keeper._looked_at -= keepers.LOOK_S
        keeper._hear_nothing("has not answered")
        keeper._end_mute()
        assert keeper._silent_s >= 200
        keeper._state = "running"
    assert not of(said, "process.killed")


async def test_a_silence_shorter_than_the_limit_replaces_nobody(said: list[Any]) -> None:
    async with kept("works") as (keeper, _):
        await running(keeper)
        pid = pid_of(keeper)
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: "has not answered" in keeper.trouble)
        os.kill(pid, signal.SIGCONT)
        await until(lambda: not keeper.trouble)
        assert (pid_of(keeper), keeper.health.lives) == (pid, 1)
    assert not of(said, "process.unhealthy")


async def test_one_that_ignores_its_drain_is_killed_and_that_is_not_forgotten(
    said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept("deaf") as (keeper, keeping):
        await running(keeper)
        with monkeypatch.context() as soon:
            soon.setattr(keepers, "MARGIN_S", 0.1)
            keeper.stop()
        await keeping
        assert keeper.forced
    assert of(said, "process.killed")
    async with kept("works") as (keeper, keeping):
        await running(keeper)
        keeper.stop()
        await keeping
        assert not keeper.forced


async def test_a_stop_during_a_pause_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepers, "PAUSE_S", (1000.0, 1000.0))
    async with kept("ends 1") as (keeper, keeping):
        await until(lambda: keeper.health.state == "resting", 30)
        assert keeper.trouble == "resting after exit code 1"
        keeper.stop()
        async with asyncio.timeout(30):
            await keeping


async def test_a_process_that_cannot_be_started_is_tried_again(
    said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refusals = keepers.start_busq, iter([False, True, True])

    def refusing(*words: Any, **how: Any) -> Any:
        if next(refusals, False):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return start(*words, **how)

    monkeypatch.setattr(keepers, "start_busq", refusing)
    async with kept("works") as (keeper, _):
        await running(keeper)
        os.kill(pid_of(keeper), signal.SIGKILL)
        await running(keeper, lives=4)
    assert "could not be started" in of(said, "process.ended")[1]["how"]
