"""
`busq worker --processes N`: a small parent that keeps N workers alive and drains them together.

It runs no handler and does not load the application; the first worker does, and only when that has started do the
others follow. So an application that cannot be run, or a server that is not there, is told once, by that worker, and
its exit code is ours. From then on whatever ends is started again (`keeper.py`).

The workers have process groups of their own: Ctrl-C in a terminal reaches us alone, and is passed on. They are tied to
us: the kernel ends them when we are killed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterable
from http import HTTPStatus

import msgspec

from busq import events, redaction, tasks
from busq.cli import exits, health, logs, loop, serving
from busq.cli.children import how_it_ended
from busq.cli.health import METRICS, Address, Answer
from busq.cli.keeper import Keeper, ProcessHealth
from busq.cli.worker import Work
from busq.config import Settings

log = events.logger("busq.cli")


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """
    One moment of a supervisor and of the workers that it keeps.

    `live` says no once every process has ended badly again and again: what is left to try then is a new machine or a
    new image. One that does so beside others that work is no reason to end those. `ready` says no unless all of them
    are ready, so that a rollout stops at an application of which one process cannot start.
    """

    name: str
    role: str = "supervisor"
    pid: int
    uptime_s: float
    started: bool
    draining: bool
    processes: list[ProcessHealth]
    live: dict[str, str]
    ready: dict[str, str]


class Supervisor:
    def __init__(self, work: Work, processes: int) -> None:
        settings = Settings.load(shutdown_timeout_s=work.shutdown_timeout, cleanup_s=work.cleanup_timeout)
        within_s = settings.shutdown_timeout_s + settings.cleanup_s + settings.force_s
        self.exit_code = exits.DONE
        self._keepers = [
            Keeper(number, work, drains_within_s=within_s, leads=number == 1) for number in range(1, processes + 1)
        ]
        self._began = time.monotonic()
        self._started = False
        self._draining = False

    async def run(self) -> None:
        """Keep the workers until `stop`; returns when all have ended, or when the first one could not start."""
        first, *others = self._keepers
        running = [asyncio.create_task(first.run())]
        started = asyncio.create_task(first.started.wait())
        try:
            await asyncio.wait({running[0], started}, return_when=asyncio.FIRST_COMPLETED)
            if first.first_end is not None:
                self.exit_code = self._code_of(first.first_end)
                return
            if not self._draining:
                self._started = True
                events.tell(log, events.SUPERVISOR_STARTED, supervisor=os.getpid(), processes=len(self._keepers))
                running += [asyncio.create_task(keeper.run()) for keeper in others]
            emptied = [asyncio.create_task(self._drain_with(keeper)) for keeper in self._keepers]
            try:
                await asyncio.gather(*running)
            finally:
                await tasks.end(*emptied)
        finally:
            started.cancel()
            for task in running:
                task.cancel()
            for keeper in self._keepers:
                keeper.kill("the supervisor ends")
        forced = any(keeper.forced for keeper in self._keepers)
        self.exit_code = exits.NO if forced else exits.DONE
        events.tell(log, events.SUPERVISOR_STOPPED, supervisor=os.getpid(), all_drained=not forced)

    def stop(self) -> None:
        """Drain all and end. Called again: hurry. Safe in a signal handler of the loop."""
        if not self._draining:
            events.tell(log, events.SUPERVISOR_DRAINING, supervisor=os.getpid())
        self._draining = True
        for keeper in self._keepers:
            keeper.stop()

    async def _drain_with(self, keeper: Keeper) -> None:
        """Drain all of them once the worker of one was told, through the bus, that this host shall be empty."""
        await keeper.pod_emptied.wait()
        if not self._draining:
            self._draining = True
            events.tell(log, events.SUPERVISOR_DRAINING, supervisor=os.getpid())
            for each in self._keepers:
                each.drain()

    def health(self) -> Health:
        return Health(
            name=f"{socket.gethostname()}-{os.getpid()}",
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._began, 1),
            started=self._started,
            draining=self._draining,
            processes=[keeper.health for keeper in self._keepers],
            live={"processes": self._given_up(self._keepers)},
            ready={
                "draining": "draining" if self._draining else "",
                **{f"process {keeper.number}": keeper.trouble for keeper in self._keepers},
            },
        )

    async def metrics(self) -> Answer:
        """The figures of all of them in one page; of one that does not answer now there are none."""
        from busq.cli import metrics

        pages = await asyncio.gather(*(keeper.figures() for keeper in self._keepers))
        told = {keeper.number: page for keeper, page in zip(self._keepers, pages, strict=True) if page}
        return HTTPStatus.OK, METRICS, metrics.merged(told, [keeper.health for keeper in self._keepers])

    @staticmethod
    def _given_up(keepers: Iterable[Keeper]) -> str:
        if not all(keeper.given_up for keeper in keepers):
            return ""
        fewest = min(keeper.bad_lives for keeper in keepers)
        return f"every one of them has ended at least {fewest} times in a row within a minute"

    @staticmethod
    def _code_of(status: int) -> int:
        """Ours, when the first worker ended with this before it had started. It has said why, unless it was killed."""
        if status > 0:
            return status
        exits.tell(f"the first worker ended before it had started ({how_it_ended(status)})")
        return exits.NO


def run(work: Work, processes: int, address: Address | None) -> int:
    """Keep so many processes at this work until asked to stop. Answers with the exit code."""
    logs.configure(work.log_level)
    redaction.guard(work.url)
    supervisor = Supervisor(work, processes)

    async def supervise() -> None:
        async with health.served(address, supervisor.health, {"/metrics": supervisor.metrics}):
            await serving.until_stopped(supervisor.run(), stop=supervisor.stop, started=lambda: True)

    loop.run(supervise())
    return supervisor.exit_code
