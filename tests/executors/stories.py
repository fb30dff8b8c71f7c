"""
The stories: handlers that behave well, badly and worse, each written once for all executors.

`folder` is where a story meets its test; see `stage.py`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import structlog

import busq
from tests.executors import stage
from tests.executors.stage import CANCELLATIONS, mark, note, pause, story, wait

# Running -------------------------------------------------------------------------------------------------


@story()
async def doubled(n: int) -> int:
    return n * 2


@story(retries=5)
async def adds(a: int, b: int = 1) -> int:
    return a + b


@story()
async def broken(folder: str) -> None:
    note(folder, "attempts", busq.current_job().attempt)
    raise ValueError("no such film")


@story(retries=1)
async def second_time_lucky() -> str:
    if busq.current_job().attempt == 1:
        raise ValueError("not yet")
    return "done"


@story(retries=5)
async def large(n: int) -> str:
    return "x" * n


@story(retries=5)
async def odd() -> Any:
    return object()


@story()
async def facts() -> list[Any]:
    job = busq.current_job()
    return [job.jid, job.kind, job.attempt, job.cancelled, job.cause, job.reason, job.saved]


@story()
async def reports(folder: str) -> None:
    job = busq.current_job()
    job.progress(0.25, "reading")
    job.progress(0.5, "encoding")
    await wait(folder, "go on")


@story(retries=2)
async def resumes() -> Any:
    job = busq.current_job()
    found = job.saved
    await stage.answer(job.save({"cursor": job.attempt, "found": found}))
    if job.attempt < 3:
        raise ValueError("not yet")
    return found


@story()
async def says() -> None:
    structlog.get_logger("shop").info("said", word="hello")


@story()
async def place() -> int:
    return os.getpid()


LEVEL = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
folder, level, program = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if level < 3:
    subprocess.Popen([sys.executable, "-c", program, folder, str(level + 1), program])
open(f"{folder}/.level-{level}", "w").write(str(os.getpid()))
os.rename(f"{folder}/.level-{level}", f"{folder}/level-{level}")
time.sleep(600)
"""


@story()
async def runs_a_tree(folder: str) -> None:
    """A program that starts a program that starts a program, each deaf to SIGTERM."""
    running = busq.current_job().subprocess(sys.executable, "-c", LEVEL, folder, "1", LEVEL)
    async with stage.entered(running):
        await stage.linger(folder, "level-3")
        mark(folder, "running", str(os.getpid()))
        await stage.linger(folder, "go on")


@story()
async def waits(folder: str, name: str = "go on") -> int:
    """Runs until it is told to go on, or to stop."""
    job = busq.current_job()
    mark(folder, "running", str(os.getpid()))
    try:
        await wait(folder, name)
    except CANCELLATIONS:
        note(folder, "causes", f"{job.cause} {job.reason}".strip())
        raise
    return job.attempt


# Being cancelled -----------------------------------------------------------------------------------------


@story(retries=5)
async def hears(folder: str, how: str) -> None:
    """Learns of the cancel in one of the ways that there are, and stops."""
    job = busq.current_job()
    if how == "wait":
        assert not await stage.answer(job.wait_cancelled(timeout=0.001))
    mark(folder, "running", str(os.getpid()))
    if how == "check":
        while True:
            job.check_cancelled()
            await pause()
    async with stage.shield():  # where a coroutine is not interrupted before it has looked
        if how == "wait":
            assert await stage.answer(job.wait_cancelled(timeout=30))
        while not job.cancelled:
            await pause()


@story()
async def listens(folder: str) -> None:
    job = busq.current_job()

    def fails(facts: Any) -> None:
        note(folder, "called", "fails")
        raise ValueError

    job.on_trip(fails)
    job.on_trip(lambda facts: note(folder, "called", f"{facts.cause} {facts.reason}"))
    mark(folder, "running", str(os.getpid()))
    try:
        await wait(folder, "go on")
    finally:
        job.on_trip(lambda facts: note(folder, "called", "late"))


@story()
async def shields(folder: str, limit: float | None = None) -> None:
    job = busq.current_job()
    try:
        async with stage.shield(limit=limit):
            mark(folder, "running", str(os.getpid()))
            while not stage.there(folder, "go on"):
                await pause()
            job.check_cancelled()
            note(folder, "story", "published")
        await pause()
        note(folder, "story", "never")
    except CANCELLATIONS:
        note(folder, "story", "cancelled")
        raise


@story(retries=5)
async def ends_after_the_cancel(folder: str, how: str) -> str:
    """Hears the cancel, and then returns or raises something else."""
    mark(folder, "running", str(os.getpid()))
    try:
        await wait(folder, "go on")
    except CANCELLATIONS:
        if how == "raises":
            raise ValueError("while tidying up") from None
    return "finished all the same"


@story(late_success="keep")
async def keeps_its_result(folder: str) -> str:
    mark(folder, "running", str(os.getpid()))
    try:
        await wait(folder, "go on")
    except CANCELLATIONS:
        return "kept"
    return "undisturbed"


@story(retries=5)
async def never_looks(folder: str) -> str:
    """Ends without having looked at its token, and without an await."""
    mark(folder, "running", str(os.getpid()))
    stage.block(folder, "go on")
    return "my work"


@story(retries=5)
async def swallows(folder: str, times: int) -> str:
    """Swallows the cancel so many times, and then gives in."""
    mark(folder, "running", str(os.getpid()))
    while True:
        try:
            await wait(folder, "go on")
            return "let go"
        except CANCELLATIONS:
            note(folder, "swallowed", times)
            times -= 1
            if times < 0:
                raise


# Not stopping --------------------------------------------------------------------------------------------


@story(retries=5)
async def swallows_for_ever(folder: str) -> str:
    mark(folder, "running", str(os.getpid()))
    while True:
        try:
            await wait(folder, "go on")
            return "at last"
        except CANCELLATIONS:
            stage.there(folder, "go on")


@story(retries=5)
async def swallows_late(folder: str) -> None:
    """Is told at once, looks when the test says so, and does not care."""
    mark(folder, "running", str(os.getpid()))
    async with stage.shield():
        while not stage.there(folder, "look"):
            await pause()
        while not busq.current_job().cancelled:
            await pause()
        await swallow_all(folder)


@story(retries=5)
async def lingers(folder: str) -> None:
    """Hears its cancel, and then tidies up without end."""
    mark(folder, "running", str(os.getpid()))
    try:
        await wait(folder, "go on")
    except CANCELLATIONS:
        await stage.linger(folder, "tidied")
        raise


@story(retries=5)
async def spins(folder: str) -> str:
    mark(folder, "running", str(os.getpid()))
    stage.spin(folder, "go on")
    return "at last"


@story(retries=5)
async def holds_the_lock(folder: str, how: str, length: int = 0) -> str:
    """A C call that keeps the interpreter lock: a read that somebody ends, or a match that ends by itself."""
    if how == "read":
        stage.read_in_c(folder, "pipe")
    else:
        mark(folder, "running", str(os.getpid()))
        stage.match_in_c(length)
    return "at last"


# Running out of time, and leaving ------------------------------------------------------------------------


@story(retries=1, timeout=0.1)
async def runs_too_long(folder: str, how: str) -> None:
    """Past its timeout, with clean-up or without, or without a stop."""
    job = busq.current_job()
    try:
        if how == "for ever":
            await swallow_all(folder)
        await wait(folder, "go on")
    except CANCELLATIONS:
        note(folder, "causes", job.cause)
        if how == "cleans up":
            await stage.answer(job.save({"tidied": job.attempt}))
        raise


async def swallow_all(folder: str) -> None:
    while not stage.there(folder, "go on"):
        try:
            await wait(folder, "go on")
        except CANCELLATIONS:
            stage.there(folder, "go on")


@story()
async def leaves(folder: str, how: str) -> Any:
    """Told to stop with its worker: tidies up in time, or does not care. The next attempt returns."""
    job = busq.current_job()
    if job.attempt > 1:
        return [job.attempt, job.saved]
    mark(folder, "running", str(os.getpid()))
    try:
        await wait(folder, "go on")
    except CANCELLATIONS:
        note(folder, "causes", job.cause)
        if how == "tidies up":
            await stage.answer(job.save("tidied"))
            raise
        await swallow_all(folder)
    return [job.attempt, job.saved]


@story(retries=1)
async def short(folder: str, seconds: float, how: str) -> str:
    """A short job that tells what it did: for cancels round its end."""
    job = busq.current_job()
    who = f"{job.jid} {job.attempt}"
    note(folder, "effects", f"{who} began")
    try:
        await stage.doze(seconds)
    except CANCELLATIONS:
        note(folder, "effects", f"{who} heard")
        raise
    if how == "raises":
        note(folder, "effects", f"{who} raised")
        raise ValueError("as it was told")
    note(folder, "effects", f"{who} returned")
    return job.jid
