"""
`busq watchdog`: the sidecar that finalizes overdue cancels and looks after jobs whose worker died.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from busq.cli.health import NO_PAGE, Address, Answer, HealthPage
from busq.cli.place import HERE, Place

if TYPE_CHECKING:
    from busq.config import Settings
    from busq.store.figures import WorkerPool
    from busq.watchdog.watchdog import Watchdog


def watchdog(
    *,
    interval: float | None = None,
    pool: Annotated[list[str] | None, Parameter(negative="")] = None,
    log_level: Literal["debug", "info", "warning", "error"] | None = None,
    page: HealthPage = NO_PAGE,
    place: Place = HERE,
) -> None:
    """
    Finalize overdue cancels, look after jobs of dead workers.

    It needs no application code, and any number of them may run.

    Parameters
    ----------
    interval
        Seconds between two passes; left out: BUSQ_WATCHDOG_INTERVAL_S, else 0.5.
    pool
        NAME=CONCURRENCY:QUEUE[,QUEUE...]: say under /scale/NAME how much work there is for the pods that serve these
        queues, so many jobs at once in each; may be repeated.
    log_level
        Left out: BUSQ_LOG_LEVEL, else info.
    """
    from busq.cli import logs, loop
    from busq.errors import UsageError

    if pool and page.health_port is None:
        raise UsageError("--pool: what its pods are needed for is served on a page; give --health-port, too")
    logs.configure(log_level)
    loop.run(_watch(place.settings(watchdog_interval_s=interval), page.address(), pool or []))


async def _watch(settings: Settings, address: Address | None, pools: list[str]) -> None:
    from busq.cli import health, serving
    from busq.watchdog.watchdog import Watchdog

    watchdog, pages = (Watchdog(settings), {}) if address is None else _measured(settings, pools)

    async def run() -> None:
        await serving.require_fit(settings)
        await watchdog.run()

    async with health.served(address, watchdog.health, pages):
        await serving.until_stopped(run(), stop=watchdog.stop, started=lambda: watchdog.started)
    serving.leave_soon()


def _measured(settings: Settings, given: list[str]) -> tuple[Watchdog, dict[str, Callable[[], Awaitable[Answer]]]]:
    """A watchdog, and what it has to serve beside its health."""
    from functools import partial

    from prometheus_client import CollectorRegistry

    from busq import metrics as measures
    from busq.cli import metrics
    from busq.errors import BusUnavailable
    from busq.watchdog.watchdog import Watchdog

    pools = [metrics.worker_pool(each) for each in given]
    registry = CollectorRegistry()
    watchdog = Watchdog(settings, final=measures.final_seconds(registry).labels("watchdog").observe)

    async def figures() -> Answer:
        own = metrics.of_watchdog(watchdog.health())
        try:
            return metrics.answer(registry, more=[*own, *metrics.of_bus(await watchdog.figures(), pools)])
        except BusUnavailable:  # whoever watches the watchdog must hear just that, from its own figures
            return metrics.answer(registry, more=own)

    async def scale(pool: WorkerPool) -> Answer:
        return metrics.scale_answer(await watchdog.stats(), pool)

    return watchdog, {"/metrics": figures, **{f"/scale/{pool.name}": partial(scale, pool) for pool in pools}}
