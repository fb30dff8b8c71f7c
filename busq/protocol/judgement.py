"""
Judgements that need no Redis: when to try again, and when a worker counts as lost.

    lease good                               it lives
    lease over, seen renewed a moment ago    it lives: the server's clock was moved, not the worker
    lease over, and silent for a while       it is lost

What then becomes of its jobs is decided job by job in the reclaim script, on the record.
"""

from __future__ import annotations

import random

import msgspec

# A live worker renews every beat. Silent for this many beats, in the judge's own monotonic time, is the second
# opinion that a lease needs: one clock step on the server makes every lease look over at once.
SILENT_BEATS = 3

# A kind that a worker does not know: ten refusals, from 1 s doubling to 30 s, span over three minutes, enough for a
# rollout to bring a worker that knows it.
REFUSALS = 10
REFUSAL_FIRST_S = 1.0
REFUSAL_MOST_S = 30.0


class Sighting(msgspec.Struct):
    """What one watchdog remembers of one worker: the lease it last saw, and since when (its own monotonic time)."""

    lease_ms: float
    since: float


def is_lost(sighting: Sighting, *, now: float, server_now_ms: float, beat_s: float) -> bool:
    """Whether the worker behind this sighting counts as dead."""
    return sighting.lease_ms <= server_now_ms and now - sighting.since >= SILENT_BEATS * beat_s


def retry_delay_s(failures: int, *, backoff_s: float, backoff_max_s: float, rng: random.Random) -> float:
    """
    How long a job waits after its `failures`-th failure (1 for the first), in seconds.

    Doubles from `backoff_s`, and up to a half of that is drawn at random on top, so that jobs which failed together do
    not come back together; never less than `backoff_s` and never more than `backoff_max_s`.
    """
    whole = backoff_s * 2.0 ** min(failures - 1, 60)
    if whole * 1.5 > backoff_max_s:
        whole = max(backoff_s, backoff_max_s / 1.5)
    return min(backoff_max_s, whole * (1 + rng.random() / 2))
