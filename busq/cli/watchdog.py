"""
`busq watchdog`: the sidecar that finalizes overdue cancels and looks after jobs whose worker died.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from busq.cli.health import NO_PAGE, Address, HealthPage
from busq.cli.place import HERE, Place

if TYPE_CHECKING:
    from busq.config import Settings


def watchdog(
    *,
    interval: float | None = None,
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
    log_level
        Left out: BUSQ_LOG_LEVEL, else info.
    """
    from busq.cli import logs, loop

    logs.configure(log_level)
    loop.run(_watch(place.settings(watchdog_interval_s=interval), page.address()))


async def _watch(settings: Settings, address: Address | None) -> None:
    from busq.cli import health, serving
    from busq.watchdog.watchdog import Watchdog

    watchdog = Watchdog(settings)

    async def run() -> None:
        await serving.require_fit(settings)
        await watchdog.run()

    async with health.served(address, watchdog.health):
        await serving.until_stopped(run(), stop=watchdog.stop, started=lambda: watchdog.started)
    serving.leave_soon()
