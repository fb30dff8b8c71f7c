"""
Stories that do not end by themselves, and what force does about them: `differences.py` is the table that is tested.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import busq
from busq.store import roster
from tests.executors import stage
from tests.executors.differences import FORCE, LINGERING, ONE_LOCK
from tests.executors.house import House, house
from tests.executors.test_stopping import ASKED
from tests.runtime.bench import UNHURRIED, until
from tests.runtime.test_process_pool import alive

HURRIED: dict[str, Any] = {"grace": 0.1}


def time_for(ended: str, *, told: bool = True) -> dict[str, Any]:
    """
    What force can end shall be ended, and what is `told` of the others be written, before a watchdog ends the job; what
    is neither waits for its deadline.
    """
    return UNHURRIED if told or ended != "abandoned" else {}


async def seen_to_be(h: House, handle: busq.JobHandle[Any], *, heard: bool, observed: bool) -> busq.Job:
    """A cancelled story that force had to deal with: its record is what the table says."""
    job = await handle.wait(timeout=20)
    force = FORCE[h.executor]
    assert (job.state, job.ended, job.cause, job.attempt, job.result) == ("cancelled", force.ended, "user", 1, None)
    assert (job.failures, job.losses) == (0, 0)
    evidence = job.evidence and job.evidence.error and job.evidence.error.type
    assert evidence == force.evidence
    told = [("tripped", 1)] * heard + [("observed", 1)] * observed + [("stopped", 1)] * force.stopped
    assert await h.events(handle.jid) == [*ASKED[:3], *told, ("finalized", 1)]
    if force.suspects:  # nothing claims that the code has stopped, so the record does not come before the deadline
        assert job.finished_at is not None
        assert job.deadline is not None
        assert job.finished_at >= job.deadline
    assert await h.suspects() == force.suspects
    return job


async def no_suspects(h: House) -> bool:
    return await h.suspects() == 0


async def test_a_handler_that_swallows_every_cancel_is_beyond_words(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    async with house(redis_url, executor, tmp_path, **time_for(FORCE[executor].ended)) as h:
        await h.work(concurrency=1)
        await h.watch()
        handle = await h.running("swallows_for_ever", **HURRIED)
        await handle.cancel()
        await seen_to_be(h, handle, heard=True, observed=True)
        # Its slot is free, with the code in it counted or ended; and whatever it does later changes nothing.
        assert await (await h.bus.enqueue("doubled", 2)).result(timeout=20) == 4
        h.go_on()
        await until(lambda: no_suspects(h))
        assert (await handle.get()).ended == FORCE[executor].ended


async def test_a_handler_that_observes_late_and_never_stops_is_said_to_have_observed(
    redis_url: str, executor: str, tmp_path: Path
) -> None:
    """After the moment at which a worker usually tells what a tripped handler has heard."""
    async with house(redis_url, executor, tmp_path, **time_for(FORCE[executor].ended)) as h:
        worker = await h.work(concurrency=1)
        await h.watch()
        handle = await h.running("swallows_late", grace=1.0)
        attempt = worker.worker.running[handle.jid]
        await handle.cancel()
        await until(lambda: h.has(handle.jid, "tripped"))  # told, and what is observed now is not told with it
        h.go_on("look")
        await until(lambda: attempt.token.observed)
        await seen_to_be(h, handle, heard=True, observed=True)


async def test_an_endless_loop_is_ended_or_given_up(redis_url: str, executor: str, tmp_path: Path) -> None:
    """A coroutine's loop stands still with it: the watchdog records what has become of the job."""
    async with house(
        redis_url, executor, tmp_path, **time_for(FORCE[executor].ended, told=executor != "coroutine")
    ) as h:
        await h.work(concurrency=1)
        await h.watch()
        handle = await h.running("spins", **HURRIED)
        await handle.cancel()
        await seen_to_be(h, handle, heard=executor != "coroutine", observed=False)
        h.go_on()
        await until(lambda: no_suspects(h))
        assert await (await h.bus.enqueue("doubled", 2)).result(timeout=20) == 4


async def test_a_child_that_spins_is_replaced_and_its_sibling_works_on(redis_url: str, tmp_path: Path) -> None:
    async with house(redis_url, "process", tmp_path) as h:
        await h.work(concurrency=2)
        spins = await h.running("spins", **HURRIED)
        victim = int(await h.at("running"))
        (tmp_path / "running").unlink()
        sibling = await h.running("waits", "sibling")
        pid = int(await h.at("running"))
        await spins.cancel()
        assert (await spins.wait(timeout=20)).ended == "killed"
        assert not alive(victim)
        replacement = await (await h.bus.enqueue("place")).result(timeout=20)
        assert replacement not in (victim, pid)
        h.go_on("sibling")
        assert await sibling.result(timeout=20) == 1
        assert alive(pid)
        assert alive(replacement)


async def test_a_handler_that_tidies_up_for_ever_is_forced(redis_url: str, executor: str, tmp_path: Path) -> None:
    """It has heard the cancel. A coroutine is interrupted in its clean-up, the others cannot be."""
    async with house(redis_url, executor, tmp_path, **time_for(LINGERING[executor])) as h:
        await h.work()
        await h.watch()
        handle = await h.running("lingers", **HURRIED)
        await handle.cancel()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended) == ("cancelled", LINGERING[executor])
        assert ("observed", 1) in await h.events(handle.jid)
        assert await h.suspects() == (LINGERING[executor] == "abandoned")


def letters(seconds: float) -> int:
    """How many letters keep the regular expression busy for at least so long, reckoned in time on the processor."""
    length = 16
    while True:
        began = time.thread_time()
        stage.match_in_c(length)
        if (took := time.thread_time() - began) > 0.02:
            break
        length += 1
    while took < seconds:
        length, took = length + 1, took * 2
    return length


@pytest.mark.parametrize("how", ["read", "match"])
async def test_a_call_that_holds_the_interpreter_lock_is_ended_or_given_up(
    redis_url: str, executor: str, tmp_path: Path, how: str
) -> None:
    """
    The worker of a coroutine or a thread can do nothing until the call returns: the watchdog does it.

    A read ends when the test says so, a match of a regular expression when it has lasted for some seconds.
    """
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    async with house(redis_url, executor, tmp_path, **time_for(FORCE[executor].ended, told=False)) as h:
        apart = h.apart()
        await h.watch()
        handle = await h.play("holds_the_lock", how, letters(2.0) if how == "match" else 0, **HURRIED)
        pid = int(await h.at("running"))
        await until(lambda: how == "match" or reads(pid, tmp_path / "pipe"))
        await handle.cancel()
        await seen_to_be(h, handle, heard=not ONE_LOCK[executor], observed=False)
        os.write(writer, b"x")
        os.close(writer)
        await until(lambda: no_suspects(h))
        assert await (await h.bus.enqueue("doubled", 2)).result(timeout=20) == 4, apart.log.read_text()


def reads(pid: int, path: Path) -> bool:
    """Whether some thread of this process is in a system call on this file."""
    fds = {hex(int(fd.name)) for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink() and same(fd, path)}
    calls = (task / "syscall" for task in Path(f"/proc/{pid}/task").iterdir())
    return any(words[1] in fds for call in calls if len(words := call.read_text().split()) > 2)


def same(fd: Path, path: Path) -> bool:
    try:
        return os.readlink(fd) == str(path)
    except OSError:
        return False  # closed meanwhile


async def test_a_call_that_holds_the_lock_past_the_lease(redis_url: str, executor: str, tmp_path: Path) -> None:
    """The stated limit: it looks like a dead worker and the job runs twice. A child's lock is not its worker's."""
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    async with house(redis_url, executor, tmp_path) as h:
        h.apart(lease_s=0.6 if ONE_LOCK[executor] else 2.0)
        await h.watch()
        handle = await h.play("holds_the_lock", "read")
        await h.at("running")
        if ONE_LOCK[executor]:
            await until(lambda: h.has(handle.jid, "reclaimed"))
            (tmp_path / "running").unlink()
            h.apart()
            await h.at("running")
        else:
            await beats(h, 25)  # and more leases than one
        os.write(writer, b"xx")
        assert await handle.result(timeout=20) == "at last"
        job = await handle.get()
        assert (job.attempt, job.losses, job.failures) == ((2, 1, 0) if ONE_LOCK[executor] else (1, 0, 0))
        if ONE_LOCK[executor]:
            await until(lambda: h.has(handle.jid, "late_result"))
        os.close(writer)


async def beats(h: House, count: int) -> None:
    """So many times the lease of some worker has been seen to move."""
    store = (await h.bus._link()).store
    seen = set()

    async def moved() -> bool:
        seen.update(member.lease_ms for member in await roster.members(store, 0))
        return len(seen) > count

    await until(moved)


@pytest.mark.parametrize("how", ["for ever"])
async def test_a_timeout_that_is_ignored_fails_the_attempt_all_the_same(
    redis_url: str, executor: str, tmp_path: Path, how: str
) -> None:
    async with house(redis_url, executor, tmp_path) as h:
        await h.work(concurrency=1)
        await h.watch()
        await (await h.bus.enqueue("doubled", 1)).result(timeout=20)
        handle = await h.play("runs_too_long", how, **HURRIED)
        job = await handle.wait(timeout=20)
        assert (job.state, job.cause, job.failures, job.ended) == ("failed", "timed_out", 2, None)
        left = 2 * FORCE[executor].suspects  # one for each attempt
        await until(lambda: so_many_suspects(h, left))
        h.go_on()
        await until(lambda: no_suspects(h))


async def so_many_suspects(h: House, count: int) -> bool:
    return await h.suspects() == count
