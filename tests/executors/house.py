"""
The test's side of a story: the bus, the folder, and workers that a story can neither hold up nor take along.

A worker runs in a thread of its own with a loop of its own, so that a handler which blocks its loop does not block
the test; or in a process of its own (`apart`), where a handler may hold the interpreter lock, be frozen and be killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import busq
from busq.cli.tied import end_process, tied_process
from busq.config import Settings
from busq.handlers import Handlers
from busq.worker.worker import Worker
from tests.executors import stories  # noqa: F401 - fills the applications
from tests.executors.stage import APPLICATIONS, CURTAIN
from tests.roles import as_role
from tests.runtime.bench import QUICK, Bench, bench, until

ROOT = Path(__file__).parents[2]

CALM: dict[str, Any] = {"lease_s": 15.0, "grace_s": 10.0, "force_s": 0.2}
"""No lease and no grace runs out by itself, however slow the machine is; a test that wants one over shortens it."""

Line = tuple[str, int]


class Backstage:
    """A worker in a thread of its own."""

    def __init__(self, settings: Settings, handlers: Handlers, loop_factory: Callable[[], Any], **how: Any) -> None:
        self.worker = Worker(settings, handlers, **how)
        self._loop_factory = loop_factory
        self._failed: BaseException | None = None
        self._left = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main, name="backstage", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                self._loop = runner.get_loop()
                runner.run(self._run())
        except BaseException as error:
            self._failed = error
        finally:
            self._left.set()
            self._ended.set()

    async def _run(self) -> None:
        try:
            await self.worker.run()
        finally:
            self._left.set()

    async def ready(self) -> None:
        await until(lambda: self.worker.ready or self._ended.is_set())
        if self._failed is not None:
            raise self._failed

    def stop(self) -> None:
        if not self._left.is_set():
            self._loop.call_soon_threadsafe(self.worker.stop)

    async def left(self) -> None:
        """The worker has left; what it gave up may run on in this thread."""
        await until(self._left.is_set, timeout=20)

    async def ended(self) -> None:
        await until(self._ended.is_set, timeout=20)
        if self._failed is not None:
            raise self._failed


class Apart:
    """A worker in a process of its own; `log` is what it said."""

    def __init__(self, url: str, executor: str, folder: Path, settings: dict[str, Any]) -> None:
        told = json.dumps({"url": url, "executor": executor, "settings": settings})
        self.log = folder / f"worker-{os.urandom(3).hex()}.log"
        with self.log.open("wb") as log:
            self._process: subprocess.Popen[bytes] = tied_process(
                [sys.executable, "-m", "tests.executors.apart", told],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), "STORY": str(folder)},  # a mark of all that it starts
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        end_process(self._process)


class House:
    """One bus, one folder, one executor."""

    def __init__(self, b: Bench, executor: str, folder: Path, given: dict[str, Any]) -> None:
        self.b = b
        self.bus = b.bus
        self.executor = executor
        self.folder = str(folder)
        self._folder = folder
        self._given = given
        self._backstages: list[Backstage] = []
        self._aparts: list[Apart] = []

    # Workers

    async def work(self, **how: Any) -> Backstage:
        """A worker of this executor's application, ready."""
        loop_factory: Callable[[], Any] = type(asyncio.get_running_loop())
        backstage = Backstage(self.b.settings_of("worker"), APPLICATIONS[self.executor].handlers, loop_factory, **how)
        self._backstages.append(backstage)
        await backstage.ready()
        return backstage

    async def watch(self) -> None:
        await self.b.watch()

    def apart(self, **settings: Any) -> Apart:
        """A worker in a process of its own; `settings` are its alone."""
        url = as_role(self.b.url, "worker")
        self._aparts.append(Apart(url, self.executor, self._folder, {**self._given, **settings}))
        return self._aparts[-1]

    async def close(self) -> None:
        (self._folder / CURTAIN).touch()
        for apart in self._aparts:
            apart.kill()
        for backstage in self._backstages:
            backstage.stop()
            backstage.stop()  # hurry
        for backstage in self._backstages:
            await backstage.ended()

    # Stories

    async def play(self, kind: str, *args: Any, **options: Any) -> busq.JobHandle[Any]:
        """Enqueue a story that meets us in the folder."""
        return await self.bus.options(**options).enqueue(kind, self.folder, *args)

    async def running(self, kind: str, *args: Any, **options: Any) -> busq.JobHandle[Any]:
        """A story that has said it runs."""
        handle = await self.play(kind, *args, **options)
        await self.at("running")
        await self.b.reaches(handle.jid, "running")
        return handle

    async def at(self, name: str) -> str:
        """What a story said when it came to this point."""
        await until(lambda: (self._folder / name).exists(), timeout=20)
        return (self._folder / name).read_text()

    def lines(self, name: str) -> list[str]:
        path = self._folder / name
        return path.read_text().splitlines() if path.exists() else []

    def go_on(self, name: str = "go on") -> None:
        (self._folder / name).touch()

    # What is known of a job

    async def events(self, jid: str) -> list[Line]:
        """Names and attempts of a job's history, in order."""
        return [(event.name, event.attempt) for event in await self.bus.history(jid)]

    async def has(self, jid: str, name: str) -> bool:
        return name in await self.b.names(jid)

    async def suspects(self) -> int:
        return (await self.bus.stats()).suspects


@asynccontextmanager
async def house(url: str, executor: str, folder: Path, **settings: Any) -> AsyncIterator[House]:
    """Quick beats, calm leases and graces; `settings` on top."""
    given = {**QUICK, **CALM, **settings}
    async with bench(url, **given) as b:
        made = House(b, executor, folder, given)
        try:
            yield made
        finally:
            await made.close()
