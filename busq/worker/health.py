"""
What a worker says of itself: its state as facts, and what is wrong with it in words.

    live    what only a new process can mend: a part that has ended, a loop that was given up
    ready   what keeps it from taking jobs now: Redis away, a deaf listener, a drain, too many suspects

The thing to hold in mind: `live` never looks at Redis, for a server that is away must not get a whole fleet of
workers restarted. Every check has a name and words: "" where all is well.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

import msgspec

from busq.callables import Pool
from busq.store.outage import Outage
from busq.worker.control import Control
from busq.worker.runner import Runner
from busq.worker.slots import Slots

MOST_LISTED = 100  # suspects, the oldest first


class PoolSlots(msgspec.Struct, frozen=True, kw_only=True):
    """The slots of one pool: how many there are, and how many have a job in them."""

    limit: int
    running: int


class SuspectCode(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that was given up and whose code may still run here; `since_s` ago."""

    jid: str
    kind: str
    attempt: int
    since_s: float


class BeatHealth(msgspec.Struct, frozen=True, kw_only=True):
    """`reachable`: Redis has answered a beat within the last 3 s."""

    reachable: bool
    answered_s_ago: float


class ListenerHealth(msgspec.Struct, frozen=True, kw_only=True):
    """
    `hearing`: a notice sent now would be heard, for the server has echoed a PING on that very connection lately.

    `silent_for_s` is None without a connection, `subscriptions` are those that the server has confirmed.
    """

    hearing: bool
    silent_for_s: float | None
    subscriptions: int
    reconnects: int
    last_error: str | None


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """
    One moment of a worker. Times end in `_s` and are seconds.

    `drains_within_s` is the longest that its shutdown takes by its own settings. `lifeless`, `unready` and `unfit` are
    its own words for a loop that is past help, for too many suspects, and for data of a bus that it cannot work with;
    each "" when all is well. `trouble` names why Redis does not serve it now, "" where it does; `outages` counts such
    times, `history_changes` how often the data of the server turned out to be of another history, `data_losses` how
    often acknowledged writes were lost with that for certain.
    """

    name: str
    role: str = "worker"
    pid: int
    uptime_s: float
    queues: list[str]
    slots: dict[str, PoolSlots]
    running: int = 0
    suspects: list[SuspectCode] = []
    started: bool
    draining: bool
    drains_within_s: float
    lease_s: float
    beat: BeatHealth | None = None
    listener: ListenerHealth | None = None
    trouble: str = ""
    outages: int = 0
    history_changes: int = 0
    data_losses: int = 0
    loop_lag_s: float
    lifeless: str
    unready: str
    unfit: str
    live: dict[str, str]
    ready: dict[str, str]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker knows of itself at any moment of its life, also before it is opened."""

    name: str
    queues: list[str]
    uptime_s: float
    started: bool
    draining: bool
    drains_within_s: float
    lease_s: float
    loop_lag_s: float
    lifeless: str
    unready: str
    unfit: str

    @property
    def shared(self) -> dict[str, Any]:
        return {**msgspec.structs.asdict(self), "pid": os.getpid()}


def before_opening(facts: Facts, limits: Mapping[Pool, int]) -> Health:
    """The health of a worker that has not begun to work."""
    return Health(
        **facts.shared,
        slots={str(pool): PoolSlots(limit=limit, running=0) for pool, limit in limits.items()},
        live=_live(facts, {}, ""),
        ready={"started": "not yet"},
    )


def examine(
    facts: Facts,
    *,
    slots: Slots,
    runner: Runner,
    control: Control,
    outage: Outage,
    services: Mapping[str, asyncio.Task[None]],
    now: float,
) -> Health:
    """The health of a worker that has been opened. Call it in the handlers' loop; `now` is that loop's time."""
    return Health(
        **facts.shared,
        slots={str(pool): PoolSlots(limit=limit, running=slots.taken(pool)) for pool, limit in slots.limits.items()},
        running=len(runner.running),
        suspects=[
            SuspectCode(
                jid=attempt.jid,
                kind=attempt.handler.kind,
                attempt=attempt.number,
                since_s=round(now - attempt.abandoned_at, 1),
            )
            for attempt in sorted(runner.suspects, key=lambda attempt: attempt.abandoned_at)[:MOST_LISTED]
        ],
        beat=BeatHealth(reachable=control.reachable, answered_s_ago=round(control.answered_s_ago, 1)),
        listener=ListenerHealth(
            hearing=control.hearing,
            silent_for_s=_rounded(control.silent_for_s),
            subscriptions=control.subscriptions,
            reconnects=control.reconnects,
            last_error=control.last_error,
        ),
        live=_live(facts, services, control.fallen),
        trouble=outage.trouble,
        outages=outage.count,
        history_changes=control.history_changes,
        data_losses=control.data_losses,
        ready=_ready(facts, control, outage),
    )


def _live(facts: Facts, services: Mapping[str, asyncio.Task[None]], fallen: str) -> dict[str, str]:
    # A service that was ended on purpose was cancelled; one that ended by itself has found a mistake of ours.
    ended = [name for name, task in services.items() if task.done() and not task.cancelled()]
    return {
        "loop": facts.lifeless,
        "services": f"ended unasked: {', '.join(ended)}" if ended else "",
        "control": fallen,
    }


def _ready(facts: Facts, control: Control, outage: Outage) -> dict[str, str]:
    redis = deaf = ""
    if not control.reachable:
        redis = f"no answer to the beat for {control.answered_s_ago:.1f} s"
        if why := outage.words("beat"):
            redis += f": {why}"
    if not control.hearing:
        silent = control.silent_for_s
        deaf = "no connection" if silent is None else f"deaf for {silent:.1f} s"
    return {
        "started": "" if facts.started else "not yet",
        "draining": "draining" if facts.draining else "",
        "redis": redis,
        "listener": deaf,
        "intake": outage.words("intake"),
        "outbox": outage.words("outbox"),
        "suspects": facts.unready,
        "data": facts.unfit,
        "loop": facts.lifeless,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
