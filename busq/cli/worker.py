"""
`busq worker`: run the jobs of an application until asked to stop, in this process or in several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from cyclopts import Parameter

from busq.cli.health import NO_PAGE, Address, HealthPage
from busq.cli.place import HERE, NO_URL, Place

if TYPE_CHECKING:
    from socket import socket

    from busq.client.bus import Bus
    from busq.config import Settings


class Work(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one worker process is to do, as the command line says it."""

    app: str
    queues: list[str] = []
    concurrency: int | None = None
    shutdown_timeout: float | None = None
    cleanup_timeout: float | None = None
    log_level: Literal["debug", "info", "warning", "error"] | None = None
    measured: bool = False
    url: str | None = None
    namespace: str | None = None


def worker(
    app: Annotated[str, Parameter(name="APP")],
    /,
    *,
    queue: Annotated[list[str] | None, Parameter(negative="")] = None,
    concurrency: int | None = None,
    processes: int = 1,
    shutdown_timeout: float | None = None,
    cleanup_timeout: float | None = None,
    log_level: Literal["debug", "info", "warning", "error"] | None = None,
    page: HealthPage = NO_PAGE,
    place: Place = HERE,
) -> int | None:
    """
    Run the jobs of an application.

    On SIGTERM or Ctrl-C it takes no new jobs, lets those that run end, and hands back what has not ended in time. A
    second signal hurries it through the wait that is on. Log lines go to stderr: JSON unless that is a terminal.

    Parameters
    ----------
    app
        module:bus, found from the current directory too.
    queue
        A queue to serve; may be repeated. Left out: default, and every queue that a handler names.
    concurrency
        Jobs at once in each process. Left out: 100 coroutines, and as many threads and child processes as there are
        CPUs.
    processes
        Worker processes to keep alive: one that ends or no longer answers is replaced, all of them drain together.
    shutdown_timeout
        Seconds that running jobs get to end when the worker stops; left out: BUSQ_SHUTDOWN_TIMEOUT_S, else 30.
    cleanup_timeout
        Seconds that they get after that, to clean up, once they were told to stop; left out: BUSQ_CLEANUP_S, else 3.
    log_level
        Left out: BUSQ_LOG_LEVEL, else info.
    """
    from busq.errors import ConfigError
    from busq.handlers import check_queue
    from busq.protocol.hook import without_hook

    if concurrency is not None and concurrency < 1:
        raise ConfigError(f"--concurrency: {concurrency} will not do; it takes 1 or more")
    if processes < 1:
        raise ConfigError(f"--processes: {processes} will not do; it takes 1 or more")
    for each in queue or []:
        check_queue(without_hook(each), "--queue")
    work = Work(
        app=app,
        queues=queue or [],
        concurrency=concurrency,
        shutdown_timeout=shutdown_timeout,
        cleanup_timeout=cleanup_timeout,
        log_level=log_level,
        measured=page.health_port is not None,
        url=place.url,
        namespace=place.namespace,
    )
    if processes == 1:
        return run(work, page.address())
    from busq.cli import supervisor

    return supervisor.run(work, processes, page.address())


def run(work: Work, address: Address | None = None, *, line: socket | None = None) -> int:
    """
    Do this work in this process until asked to stop. `line`: to the supervisor that keeps us.

    Answers with the exit code.
    """
    from busq.cli import application, logs, loop
    from busq.errors import ConfigError

    logs.configure(work.log_level)
    bus = application.load(work.app)
    settings = application.settle(
        bus,
        url=work.url,
        namespace=work.namespace,
        shutdown_timeout_s=work.shutdown_timeout,
        cleanup_s=work.cleanup_timeout,
    )
    application.check_runnable(work.app, bus)
    if not settings.url:
        raise ConfigError(NO_URL)
    loop.spare_collector()
    return loop.run(_work(bus, settings, work, address, line))


async def _work(bus: Bus, settings: Settings, work: Work, address: Address | None, line: socket | None) -> int:
    from busq.cli import exits, health, logs, loop, serving
    from busq.cli import line as supervised
    from busq.worker.meter import UNMETERED, Counting
    from busq.worker.worker import Worker

    worker: Worker

    def told_to_drain() -> None:
        worker.stop_for_certain(serving.leave_now, by_wish=True)

    meter = Counting() if work.measured else UNMETERED
    worker = Worker(
        settings,
        bus.handlers,
        queues=work.queues,
        concurrency=work.concurrency,
        child_setup=logs.IN_CHILDREN,
        told_to_drain=told_to_drain,
        meter=meter,
        loop_factory=loop.factory(),
    )

    def figures() -> str:
        from busq.cli import metrics

        registries = [meter.registry] if isinstance(meter, Counting) else []
        return metrics.text(*registries, more=metrics.of_worker(worker.health()))

    if line is not None:
        logs.name_lines(worker.name)
        supervised.answer(line, worker, figures)

    async def run() -> None:
        await serving.require_fit(settings)
        await worker.run()

    async with health.served(address, worker.health, health.metrics_page(figures)):
        await serving.until_stopped(
            run(),
            stop=worker.stop,
            started=lambda: worker.ready or worker.draining,
            for_certain=lambda: worker.stop_for_certain(serving.leave_now),
        )
    code = supervised.POD_EMPTIED if line is not None and worker.empties_pod else exits.DONE
    if worker.draining and worker.leftovers:
        serving.leave_now(code)
    serving.leave_soon(code)
    await bus.close()
    return code
