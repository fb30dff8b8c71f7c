"""
Processes that a benchmark talks to, and the place in Redis where it works.

Each side of a comparison runs in a fresh interpreter, on uvloop, and says what it measured through a pipe. Times
are `time.monotonic()`, which all processes of a machine share. A process whose pipe breaks ends.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import structlog
import uvloop
from redis import Redis

import busq
from busq import events
from busq.cli.loop import spare_collector
from busq.worker.worker import Worker

PATIENCE_S = 60.0

_spawn = multiprocessing.get_context("spawn")  # a fresh interpreter: nothing of ours is warm in it

Main = Callable[..., Coroutine[Any, Any, None]]


class Place(msgspec.Struct, frozen=True):
    """Where a benchmark works: a server, and names there that nobody else uses."""

    url: str
    namespace: str

    @property
    def stream(self) -> str:
        """The floor's stream."""
        return f"{self.namespace}:floor"

    def bus(self, application: busq.Bus | None = None) -> busq.Bus:
        """A bus here; with the handlers of this application, which was declared before anybody knew where."""
        bus = busq.Bus(self.url, namespace=self.namespace, shards=1)
        if application is not None:
            bus.handlers = application.handlers
        return bus


@contextmanager
def fresh_place(url: str) -> Iterator[Place]:
    """A place of its own for each round, so that all find the same; what was left there is removed."""
    place = Place(url, f"busq-bench-{secrets.token_hex(4)}")
    try:
        yield place
    finally:
        with Redis.from_url(url) as redis:
            batch: list[bytes] = []
            for key in redis.scan_iter(match=f"{place.namespace}:*", count=5000):
                batch.append(key)
                if len(batch) == 1000:
                    redis.unlink(*batch)
                    batch.clear()
            if batch:
                redis.unlink(*batch)


class Helper:
    """A process that runs `main(pipe, *args)`; `tell` and `hear` are this end of the pipe."""

    def __init__(self, main: Main, *args: Any) -> None:
        self._pipe, theirs = _spawn.Pipe()
        self._process = _spawn.Process(target=_run, args=(main, theirs, args), daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, message: Any) -> None:
        self._pipe.send(message)

    def hear(self) -> Any:
        """The next message. Raise `RuntimeError` when the process ends or keeps silent."""
        if not self._pipe.poll(PATIENCE_S):
            raise RuntimeError(f"a benchmark's process said nothing for {PATIENCE_S:g} s")
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a benchmark's process ended with {self._process.exitcode}") from None

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self._process.join()

    def freeze(self) -> None:
        os.kill(self._process.pid or 0, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._process.pid or 0, signal.SIGCONT)

    def overheard(self) -> list[Any]:
        """What it has said so far and nobody has heard yet; does not wait."""
        said: list[Any] = []
        while self._pipe.poll():
            said.append(self._pipe.recv())
        return said

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _run(main: Main, pipe: Connection, args: tuple[Any, ...]) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    events.be_quiet_below(logging.WARNING)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(pipe, *args))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        os._exit(0)  # the benchmark has ended, or was ended


async def work(pipe: Connection, bus: busq.Bus, *, concurrency: int | None = None) -> None:
    """Be a worker, as it comes, until the other end of the pipe closes. Says "ready" first."""
    spare_collector()
    worker = Worker(bus.settings, bus.handlers, concurrency=concurrency, loop_factory=uvloop.new_event_loop)
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(worker.run())
    while not worker.ready and not running.done():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.005)
    if not running.done():
        pipe.send("ready")

    def stop() -> None:
        loop.remove_reader(pipe.fileno())  # a closed pipe stays readable, and a second `stop` means hurry
        worker.stop()

    loop.add_reader(pipe.fileno(), stop)
    await running


async def until_closed(pipe: Connection, drain: Coroutine[Any, Any, None]) -> None:
    """Run what never returns until the other end of the pipe closes."""
    task = asyncio.create_task(drain)
    asyncio.get_running_loop().add_reader(pipe.fileno(), task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return
