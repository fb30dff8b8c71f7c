"""
The application of the process pool's tests: child processes import it by name, so it holds handlers and nothing else.

A handler says that it has come to a point by making a file in the folder that it is given, and waits for files there.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import structlog

import busq

bus = busq.Bus()
process = bus.job(pool="process")

# One pool for each queue: where pools share one, the intake reads ahead for the one that has room.
QUEUES = {"beside": "others", "runs_a_program_and_awaits": "others", "runs_a_program_in_a_thread": "others"}

SLEEPER = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


def mark(folder: str, name: str, text: str = "") -> None:
    """Make a file that is whole from the moment it is there."""
    made = Path(folder) / f".{name}-{os.getpid()}"
    made.write_text(text)
    made.rename(Path(folder) / name)


def wait_for(folder: str, name: str) -> None:
    while not (Path(folder) / name).exists():
        time.sleep(0.002)


def hold_the_lock() -> None:
    """A call into C that keeps the interpreter lock for far longer than any test lasts."""
    re.match(r"(a+)+$", "a" * 64 + "b")


@process
def doubled(n: int) -> int:
    return n * 2


@process
def pid_of(n: int = 0) -> int:
    return os.getpid()


@process
def echo(*args: Any, **named: Any) -> list[Any]:
    return [list(args), named]


@process
def typed(where: Path, size: int = 1) -> str:
    return f"{type(where).__mro__[-3].__name__} {size}"


@process
def broken() -> None:
    raise ValueError("no such film")


@process
def leaves(how: str) -> None:
    if how == "SystemExit":
        sys.exit(3)
    if how == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if how == "SIGSEGV":
        ctypes.string_at(0)
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(7)


@process
def odd() -> Any:
    return object()


@process
def large(n: int) -> str:
    return "x" * n


@process
def checks(folder: str) -> int:
    """Runs until it is told to stop."""
    job = busq.current_job()
    mark(folder, "running", str(os.getpid()))
    try:
        while True:
            job.check_cancelled()
            time.sleep(0.002)
    except busq.Cancelled:
        mark(folder, "heard", repr(time.monotonic()))
        mark(folder, "why", f"{job.cause} {job.reason} {job.cancelled}")
        raise


@process
def tidies(folder: str, looks: str) -> None:
    """Told to stop, it tidies up until it is let go, and says what it then knows of why, when it `looks`."""
    job = busq.current_job()
    mark(folder, "running", str(os.getpid()))
    try:
        while True:
            job.check_cancelled()
            time.sleep(0.002)
    except busq.Cancelled as error:
        mark(folder, "told", str(error.cause))
        wait_for(folder, "go on")
        if looks:
            while looks != "once" and job.cause is busq.Cause.SHUTDOWN:  # what the worker has heard is on its way to us
                time.sleep(0.002)
            mark(folder, "knows", f"{job.cause} {job.reason}")
        raise


@process
def swallows(folder: str, times: int) -> str:
    """Swallows so many cancels and then returns."""
    mark(folder, "running", str(os.getpid()))
    swallowed = 0
    while swallowed < times:
        try:
            busq.current_job().check_cancelled()
            time.sleep(0.001)
        except busq.Cancelled:
            swallowed += 1
    return "done all the same"


@process
def deaf(folder: str, how: str = "python") -> None:
    """Never listens; `how` says to what it is deaf."""
    if how == "to SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mark(folder, "running", str(os.getpid()))
    if how == "in C":
        hold_the_lock()
    while True:
        time.sleep(0.01)


@process
def waits(folder: str, name: str) -> int:
    mark(folder, f"running-{name}")
    wait_for(folder, name)
    return os.getpid()


@process
def grows_a_tree(folder: str, how: str) -> None:
    """Three levels of processes below us, each deaf to SIGTERM."""
    program = SLEEPER
    for level in (3, 2):
        program = (
            f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {DEAF + program!r}]); "
            f"open({folder + '/.' + str(level)!r}, 'w').write('x'); os.rename({folder + '/.' + str(level)!r}, "
            f"{folder + '/level-' + str(level)!r}); {SLEEPER}"
        )
    subprocess.Popen([sys.executable, "-c", DEAF + program])
    wait_for(folder, "level-2")
    wait_for(folder, "level-3")
    mark(folder, "running", str(os.getpid()))
    if how == "in C":
        hold_the_lock()
    while True:
        time.sleep(0.01)


@process
def looks_round() -> dict[str, Any]:
    """What a child has of the worker's: variables, sockets, threads."""
    targets = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _readable(fd)]
    inodes = {target[8:-1] for target in targets if target.startswith("socket:[")}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        "environ": dict(os.environ),
        "tcp": [line[2] for line in lines if line[9] in inodes],
        "main": threading.current_thread() is threading.main_thread(),
        "group": os.getpgrp() == os.getpid(),
        "program": sys.modules["__main__"].__name__,
    }


def _readable(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


@process
def tells() -> list[Any]:
    job = busq.current_job()
    return [job.jid, job.kind, job.attempt, job.cancelled, job.cause, job.reason, job.saved]


@process
def reports(folder: str) -> None:
    job = busq.current_job()
    for n in range(1000):
        job.progress(n / 2000, f"frame {n}")
    job.progress(0.75, "the newest")
    mark(folder, "running")
    wait_for(folder, "go on")


@process
def reports_when_cancelled(folder: str) -> None:
    mark(folder, "running")
    while True:
        busq.current_job().progress(0.5)
        time.sleep(0.002)


@bus.job(pool="process", retries=2)
def resumes() -> Any:
    job = busq.current_job()
    found = job.saved
    job.save({"cursor": job.attempt, "found": found})
    if job.attempt < 3:
        raise ValueError
    return found


@process
def saves_too_much() -> str:
    job = busq.current_job()
    try:
        job.save("x" * 2_000_000)
    except busq.TooLarge:
        return "refused"
    return "kept"


@process
def saves_late(folder: str) -> None:
    job = busq.current_job()
    mark(folder, "running")
    wait_for(folder, "go on")
    try:
        job.save({"late": True})
    except busq.Cancelled as error:
        mark(folder, "lost", str(error.cause))
        raise


@process
def shields(folder: str, limit: float | None = None) -> None:
    job = busq.current_job()
    try:
        with job.shield(limit=limit):
            mark(folder, "running")
            while not (Path(folder) / "go on").exists():
                job.check_cancelled()
                time.sleep(0.002)
            mark(folder, "published")
        mark(folder, "never")
    finally:
        mark(folder, "left")


@process
def listens(folder: str) -> bool:
    job = busq.current_job()
    job.on_trip(lambda facts: mark(folder, "called", f"{facts.cause} {facts.reason}"))
    first = job.wait_cancelled(timeout=0.001)
    mark(folder, "running")
    job.wait_cancelled()
    wait_for(folder, "called")
    assert first.__await__  # an answer that need not be awaited
    return job.cancelled


@bus.job(pool="process", timeout=0.1, grace=0.05)
def runs_too_long(folder: str) -> None:
    with open(Path(folder) / "attempts", "a") as attempts:
        attempts.write("x")
    while True:
        time.sleep(0.01)


@process
def spawns(n: int) -> str:
    """The jid of a child that doubles `n`."""
    return str(busq.current_job().spawn(doubled, n).jid)


@bus.job(queue="others")
async def spawns_and_awaits(n: int) -> str:
    return str((await busq.current_job().spawn(doubled, n)).jid)


@process
def logs(word: str) -> None:
    structlog.get_logger("shop").info("said", word=word)


@process
def outlives(folder: str) -> None:
    """Leaves a thread behind that goes on reporting what is no longer its job."""
    job = busq.current_job()

    def go_on() -> None:
        n = 0
        while not (Path(folder) / "go on").exists():
            n += 1
            try:
                job.progress(0.9, "a ghost's")
                job.save({"ghost": n})
            except (busq.UsageError, busq.Cancelled):
                pass
            if n == 50:
                mark(folder, "haunted")
            time.sleep(0.001)

    threading.Thread(target=go_on, daemon=True).start()


@process
def runs_a_program(folder: str, how: str) -> Any:
    """`job.subprocess` in a child."""
    program = (DEAF if how == "deaf" else "") + f"open({folder + '/up'!r}, 'w').close(); {SLEEPER}"
    with busq.current_job().subprocess(sys.executable, "-c", program) as running:
        mark(folder, "pid", str(running.pid))
        return running.wait()


@bus.job(queue="others")
async def beside(n: int) -> int:
    await asyncio.sleep(0)
    return n


@bus.job(queue="others")
async def runs_a_program_and_awaits(folder: str, how: str) -> Any:
    program = (DEAF if how == "deaf" else "") + f"open({folder + '/up'!r}, 'w').close(); {SLEEPER}"
    async with busq.current_job().subprocess(sys.executable, "-c", program) as running:
        mark(folder, "pid", str(running.pid))
        return await running.wait()


@bus.job(queue="others")
def runs_a_program_in_a_thread(folder: str, how: str) -> Any:
    program = (DEAF if how == "deaf" else "") + f"open({folder + '/up'!r}, 'w').close(); {SLEEPER}"
    with busq.current_job().subprocess(sys.executable, "-c", program) as running:
        mark(folder, "pid", str(running.pid))
        return running.wait()
