"""
What a run shall do, all of it drawn from its seed: how much work, which faults, when and for how long.

What the processes make of it is another matter: they are real, so two runs of one seed do the same things to a bus that
is each time somewhere else.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import msgspec

SETTINGS: dict[str, float | int | str] = {
    "beat_s": 0.3,
    "lease_s": 2.5,
    "grace_s": 0.4,
    "force_s": 0.2,
    "watchdog_interval_s": 0.2,
    "backoff_s": 0.05,
    "backoff_max_s": 0.4,
    "max_losses": 1000,
    "hook_limit_s": 3.0,
    "shutdown_timeout_s": 1.0,
    "cleanup_s": 0.5,
    "connect_timeout_s": 1.0,
    "command_timeout_s": 1.5,
    # A clock that is stepped by hours must not take the evidence away.
    "keep_succeeded_s": 30 * 86_400.0,
    "keep_ended_s": 30 * 86_400.0,
    "result_bytes": 4096,
    "event_log_entries": 2_000_000,
}
"""Short leases, so that what was killed is soon run again. The rest is a user's."""

A_MINUTE: dict[str, float] = {
    "kill_worker": 11, "kill_watchdog": 10, "kill_producer": 8, "kill_canceller": 8, "kill_child": 10,
    "stop_worker": 13, "stop_watchdog": 13, "stop_producer": 9, "stop_canceller": 9, "stop_child": 11,
    "term_worker": 3, "term_watchdog": 2,
    "kill_server": 9.6, "stop_server": 2, "client_pause": 3, "busy_script": 1, "script_flush": 8, "kill_pubsub": 34,
    "kill_normal": 2, "memory_full": 2,
    "proxy_delay": 2, "proxy_cut_reply": 8, "proxy_cut_request": 4, "proxy_half_open": 3, "proxy_dribble": 1,
    "proxy_reset": 3,
    "clock_of_server": 1, "clock_of_process": 2,
    "poison": 3, "forged_notice": 4,
}  # fmt: skip
"""How often each fault comes in a minute of a run."""

ON_CABLES: dict[str, float] = {"partition": 9}
"""The same, of a run whose workers and watchdogs have networks of their own."""

KILLS = ("kill_worker", "kill_watchdog", "kill_producer", "kill_canceller", "kill_child")
STOPS = ("stop_worker", "stop_watchdog", "stop_producer", "stop_canceller", "stop_child")


class Step(msgspec.Struct, frozen=True):
    """One fault: `at` seconds from the start, and a seed for whatever it has to choose."""

    at: float
    fault: str
    seed: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """
    A run as it is wanted. `steps` in the order of their moments; `nodes` of a cluster, 0: one server, and none.

    `cables`: workers and watchdogs each have a network of their own.
    """

    seed: int
    minutes: float
    jobs: int
    cancels: int
    steps: Sequence[Step]
    shards: int = 1
    nodes: int = 0
    cables: bool = False
    drain_s: float = 120.0

    @property
    def settings(self) -> dict[str, float | int | str]:
        """Those of every process of the run."""
        return SETTINGS | {"shards": self.shards}


def draw(
    seed: int, minutes: float, *, jobs: int, cancels: int, faults: Sequence[str] = (), scale: Mapping[str, float] = {},
    shards: int = 1, nodes: int = 0, cables: bool = False,
) -> Plan:  # fmt: skip
    """
    A plan from a seed: each fault as often as `A_MINUTE` says, spread evenly with some jitter, in a shuffled order.

    `faults`: only these. `scale`: so often in a minute instead. Raise `ValueError` for a fault that there is not.
    """
    rates = A_MINUTE | (ON_CABLES if cables else {}) | dict(scale)
    unknown = [name for name in faults if name not in rates]
    if unknown:
        raise ValueError(f"no fault {unknown[0]!r}; there are: {', '.join(sorted(rates))}")
    chance = random.Random(seed)
    drawn = [
        name for name in sorted(rates) if not faults or name in faults for _ in range(round(rates[name] * minutes))
    ]
    chance.shuffle(drawn)
    gap = minutes * 60 / max(1, len(drawn))
    steps = [Step((i + chance.random()) * gap, name, chance.getrandbits(32)) for i, name in enumerate(drawn)]
    return Plan(
        seed=seed, minutes=minutes, jobs=jobs, cancels=cancels, steps=steps, shards=shards, nodes=nodes, cables=cables
    )
