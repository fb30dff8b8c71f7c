"""
The application of a chaos run: handlers that behave, handlers that do not, and one witness in all of them.

A handler says itself, from inside its code, that it began, goes on, has seen a cancel, has done its effect and
ended; nothing of busq writes these lines. Queues: `co` for coroutines, `th` for threads, `pr` for child processes, so
that each sort of worker can be killed by itself. Children of the process pool import this module by its name.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import busq
from faults.history import RUN, History

bus = busq.Bus()
history = History("handler", "handler")
spawned = History("handler", "client")

GRANDCHILD = "CHAOS_GRANDCHILD"


class Witness:
    """Writes down what the code of one attempt does and sees, under a nonce of its own."""

    def __init__(self) -> None:
        job = busq.current_job()
        self.job = job
        self._who = {"jid": job.jid, "fence": job.attempt, "attempt": secrets.token_hex(6)}
        self._tell("h_start", {"kind": job.kind, "pid": os.getpid(), "ppid": os.getppid()})

    def tick(self) -> None:
        self._tell("h_tick", None)

    def effect(self) -> None:
        self._tell("h_effect", {"pid": os.getpid()})

    def cancel_seen(self) -> None:
        cause = self.job.cause
        self._tell("h_cancel_seen", {"cause": None if cause is None else str(cause)})

    def end(self, how: str) -> None:
        self._tell("h_end", {"how": how})

    def _tell(self, ev: str, val: dict[str, Any] | None) -> None:
        history.tell(ev, "info", val=val, **self._who)


@contextmanager
def witnessed(own: bool = False) -> Iterator[Witness]:
    """
    The body of a handler, with its beginning, the cancel that it sees and its end written down.

    `own`: it raises a cancellation itself, which is nobody's cancel then.
    """
    witness = Witness()
    try:
        yield witness
    except (asyncio.CancelledError, busq.Cancelled):
        if not own:
            witness.cancel_seen()
        witness.end("cancelled")
        raise
    except BaseException as error:
        witness.end(f"raised {type(error).__name__}")
        raise
    else:
        witness.end("returned")


# Coroutines ----------------------------------------------------------------------------------------------


@bus.job(queue="co")
async def quick(n: int) -> int:
    with witnessed() as witness:
        witness.effect()
        return n


@bus.job(queue="co")
async def steps(ms: int) -> int:
    with witnessed() as witness:
        for _ in range(max(1, ms // 100)):
            await asyncio.sleep(min(ms, 100) / 1000)
            busq.current_job().check_cancelled()
            witness.tick()
        witness.effect()
        return ms


@bus.job(queue="co", late_success="keep")
async def keeps(ms: int) -> str:
    with witnessed() as witness:
        try:
            await asyncio.sleep(ms / 1000)
        except asyncio.CancelledError:
            witness.cancel_seen()
            if busq.current_job().cause not in ("user", "scope", "deadline"):
                raise
        witness.effect()
        return "kept"


@bus.job(queue="co", retries=3)
async def fails(times: int) -> int:
    with witnessed() as witness:
        if busq.current_job().attempt <= times:
            raise RuntimeError("as it was told")
        witness.effect()
        return busq.current_job().attempt


@bus.job(queue="co")
async def swallows(ms: int) -> str:
    """Takes every cancel for noise and goes on."""
    with witnessed() as witness:
        end = time.monotonic() + ms / 1000
        while time.monotonic() < end:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                witness.cancel_seen()
        return "went on"


@bus.job(queue="co")
async def blocks(ms: int) -> None:
    """Holds the loop, and with it every other coroutine of the worker."""
    with witnessed() as witness:
        time.sleep(ms / 1000)  # noqa: ASYNC251 - that is what it is for
        witness.effect()


@bus.job(queue="co", retries=1)
async def raises(what: str) -> None:
    with witnessed(own=True):
        errors: dict[str, BaseException] = {
            "exit": SystemExit(3),
            "interrupt": KeyboardInterrupt(),
            "generator": GeneratorExit(),
            "group": BaseExceptionGroup("several", [ValueError("one"), KeyboardInterrupt()]),
            "cancelled": asyncio.CancelledError(),
            "base": BaseException("the root of them"),
        }
        raise errors[what]


@bus.job(queue="co")
async def answers(what: str) -> Any:
    """Gives back what cannot be kept."""
    with witnessed() as witness:
        witness.effect()
        return {"huge": b"x" * 100_000, "object": object(), "deep": _deep(2000), "odd": {"\ud800": 1}}[what]


def _deep(levels: int) -> Any:
    made: Any = None
    for _ in range(levels):
        made = [made]
    return made


@bus.job(queue="co")
async def saves(times: int) -> int:
    with witnessed() as witness:
        job = busq.current_job()
        done = (job.saved or {}).get("done", 0)
        while done < times:
            await asyncio.sleep(0.02)
            done += 1
            await job.save({"done": done})
            witness.tick()
        witness.effect()
        return done


@bus.job(queue="co")
async def cleans(ms: int) -> None:
    with witnessed() as witness:
        await asyncio.sleep(ms / 1000)
        witness.effect()


@cleans.on_cancel(timeout=2, retries=1)
async def clean_up(job: busq.CancelledJob) -> str:
    with witnessed() as witness:
        witness.effect()
        if random.random() < 0.1:
            raise RuntimeError("a clean-up that fails")
        return str(job.ended)


@bus.job(queue="co", retries=1)
async def tree(width: int, depth: int) -> int:
    with witnessed() as witness:
        job = busq.current_job()
        for n in range((job.saved or {}).get("spawned", 0), width):
            child = tree.options(on_parent_cancel=random.choice(["cancel", "wait", "abandon"])) if depth else quick
            await _spawn(job, child, *((width, depth - 1) if depth else (n,)))
            await job.save({"spawned": n + 1})
        witness.effect()
        return width


@tree.finalize(timeout=5, retries=2)
async def gathered(job: busq.FinishedJob) -> int:
    with witnessed() as witness:
        witness.effect()
        return job.children


async def _spawn(job: busq.CurrentJob, child: Any, *args: Any) -> None:
    handle = await job.spawn(child, *args)
    spawned.tell("enqueue", "ok", op=secrets.token_hex(6), jid=handle.jid, val={"parent": job.jid, "kind": child.kind})


# Threads -------------------------------------------------------------------------------------------------


def _steps(ms: int) -> int:
    """What threads and child processes do alike: work that looks up every 50 ms."""
    with witnessed() as witness:
        job = busq.current_job()
        for _ in range(max(1, ms // 50)):
            job.wait_cancelled(min(ms, 50) / 1000)
            job.check_cancelled()
            witness.tick()
        witness.effect()
        return ms


@bus.job(queue="th", kind="t_steps")
def thread_steps(ms: int) -> int:
    return _steps(ms)


@bus.job(queue="th", kind="t_deaf")
def thread_deaf(ms: int) -> int:
    with witnessed() as witness:
        time.sleep(ms / 1000)
        witness.effect()
        return ms


# Child processes -----------------------------------------------------------------------------------------


@bus.job(queue="pr", pool="process", kind="p_steps", retries=1)
def process_steps(ms: int) -> int:
    return _steps(ms)


@bus.job(queue="pr", pool="process", kind="p_dies", retries=1)
def process_dies(how: str) -> None:
    with witnessed() as witness:
        witness.effect()
        if how == "exit":
            os._exit(0)
        if how == "segfault":
            ctypes.string_at(0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os.closerange(0, 1000)


@bus.job(queue="pr", pool="process", kind="p_deaf")
def process_deaf(ms: int) -> int:
    """Hears nothing, SIGTERM neither."""
    with witnessed() as witness:
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end = time.monotonic() + ms / 1000
        while time.monotonic() < end:
            time.sleep(0.05)
            witness.tick()
        signal.signal(signal.SIGTERM, before)
        return ms


@bus.job(queue="pr", pool="process", kind="p_family")
def process_family(ms: int) -> int:
    """Starts a program that would outlive it by an hour, and ends it itself, unless it is ended by force."""
    with witnessed() as witness:
        grandchild = subprocess.Popen(
            [sys.executable, "-S", "-c", "import time; time.sleep(3600)"],
            env={**os.environ, GRANDCHILD: os.environ[RUN]},
        )
        try:
            busq.current_job().wait_cancelled(ms / 1000)
            busq.current_job().check_cancelled()
            witness.effect()
        finally:
            grandchild.kill()
            grandchild.wait()
        return ms
