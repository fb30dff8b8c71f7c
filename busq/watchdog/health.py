"""
What a watchdog says of itself: its state as facts, and what is wrong with it in words.

`live` says no only when passes have stopped although Redis answers: a server that is away must not get watchdogs
restarted. `ready` says no when there was no good pass lately, whatever the reason.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from busq.store.outage import Outage

FINALIZING, PASS, MENDING = "finalizing", "pass", "mending"
BOUNDED = (FINALIZING, PASS)  # duties that are late, or stuck, when they have not been done for a while
STUCK_AFTER_S = 30.0  # without a pass, while Redis answers: the longest flood of overdue jobs takes seconds
LATE_AFTER_S = 3.0
INTERVALS = 10  # with a long interval a pass is late, and stuck, after as many of them at the earliest


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """
    One moment of a watchdog. Times end in `_s` and are seconds; `done` counts what it did since it began.

    `trouble` names why Redis does not serve it now ("" where it does), `outages` counts such times,
    `history_changes` how often the data of the server turned out to be of another history, `data_losses` how
    often acknowledged writes were lost with that for certain.
    """

    name: str
    role: str = "watchdog"
    pid: int
    uptime_s: float
    started: bool
    reachable: bool
    trouble: str
    outages: int
    history_changes: int
    data_losses: int
    interval_s: float
    last_pass_s_ago: float | None
    passes: int
    done: dict[str, int]
    live: dict[str, str]
    ready: dict[str, str]


def examine(
    *,
    name: str,
    uptime_s: float,
    outage: Outage,
    history_changes: int,
    data_losses: int,
    started: bool,
    stopping: bool,
    interval_s: float,
    last_pass_s_ago: float | None,
    passes: int,
    done: Mapping[str, int],
) -> Health:
    """The health of a watchdog with these facts."""
    reachable = not outage.words(*BOUNDED)
    idle_s = uptime_s if last_pass_s_ago is None else last_pass_s_ago
    stuck = reachable and not stopping and idle_s > max(STUCK_AFTER_S, INTERVALS * interval_s)
    late = last_pass_s_ago is not None and idle_s > max(LATE_AFTER_S, INTERVALS * interval_s)
    return Health(
        name=name,
        pid=os.getpid(),
        uptime_s=round(uptime_s, 1),
        started=started,
        reachable=reachable,
        trouble=outage.trouble,
        outages=outage.count,
        history_changes=history_changes,
        data_losses=data_losses,
        interval_s=interval_s,
        last_pass_s_ago=None if last_pass_s_ago is None else round(last_pass_s_ago, 1),
        passes=passes,
        done=dict(done),
        live={"passes": f"no pass for {idle_s:.1f} s" if stuck else ""},
        ready={
            "started": "" if last_pass_s_ago is not None else "not yet",
            "stopping": "stopping" if stopping else "",
            "redis": outage.words(),
            "passes": f"no pass for {idle_s:.1f} s" if late else "",
        },
    )
