"""
`busq worker`: run the jobs of an application until asked to stop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from busq.cli.place import HERE, NO_URL, Place

if TYPE_CHECKING:
    from busq.client.bus import Bus
    from busq.config import Settings


def worker(
    app: Annotated[str, Parameter(name="APP")],
    /,
    *,
    queue: Annotated[list[str] | None, Parameter(negative="")] = None,
    concurrency: int | None = None,
    shutdown_timeout: float | None = None,
    cleanup_timeout: float | None = None,
    log_level: Literal["debug", "info", "warning", "error"] | None = None,
    place: Place = HERE,
) -> None:
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
        Jobs at once. Left out: 100 coroutines, and as many threads as there are CPUs.
    shutdown_timeout
        Seconds that running jobs get to end when the worker stops; left out: BUSQ_SHUTDOWN_TIMEOUT_S, else 30.
    cleanup_timeout
        Seconds that they get after that, to clean up, once they were told to stop; left out: BUSQ_CLEANUP_S, else 3.
    log_level
        Left out: BUSQ_LOG_LEVEL, else info.
    """
    from busq.cli import application, logs, loop
    from busq.errors import ConfigError

    if concurrency is not None and concurrency < 1:
        raise ConfigError(f"--concurrency: {concurrency} will not do; it takes 1 or more")
    logs.configure(log_level)
    bus = application.load(app)
    settings = application.settle(
        bus,
        url=place.url,
        namespace=place.namespace,
        shutdown_timeout_s=shutdown_timeout,
        cleanup_s=cleanup_timeout,
    )
    application.check_runnable(app, bus)
    if not settings.url:
        raise ConfigError(NO_URL)
    loop.spare_collector()
    loop.run(_work(bus, settings, queue or [], concurrency))


async def _work(bus: Bus, settings: Settings, queues: list[str], concurrency: int | None) -> None:
    from busq.cli import logs, loop, serving
    from busq.worker.worker import Worker

    worker = Worker(
        settings,
        bus.handlers,
        queues=queues,
        concurrency=concurrency,
        child_setup=logs.IN_CHILDREN,
        loop_factory=loop.factory(),
    )

    async def run() -> None:
        await serving.require_fit(settings)
        await worker.run()

    await serving.until_stopped(
        run(),
        stop=worker.stop,
        started=lambda: worker.ready or worker.draining,
        for_certain=lambda: worker.stop_for_certain(serving.leave_now),
    )
    if worker.draining and worker.leftovers:
        serving.leave_now()
    serving.leave_soon()
    await bus.close()
