"""
What workers and watchdogs measure alike, for Prometheus: one name, one help text and one set of buckets for both.

Nothing here is imported unless somebody serves metrics. Labels are bounded everywhere: kinds and queues that an
application has, words of ours, never a jid, a reason or a worker's name.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram

SIGNAL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets from a request to the token of its attempt: pub/sub takes milliseconds, the beat up to its second."""

FINAL_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Buckets from a request to the end: a grace and force take 6 s with the default settings."""

RUN_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21600.0)
"""Buckets of the time that an attempt runs: up to six hours."""


def signal_seconds(registry: CollectorRegistry) -> Histogram:
    return Histogram(
        "busq_cancel_signal_seconds",
        "From the request of a cancel until the attempt's token was tripped, by how its worker heard of it: "
        "pubsub, beat, or resync (after a reconnect).",
        ("path",),
        buckets=SIGNAL_S,
        registry=registry,
    )


def final_seconds(registry: CollectorRegistry) -> Histogram:
    return Histogram(
        "busq_cancel_final_seconds",
        "From the request of a cancel until a running job was cancelled, by who recorded that: worker or watchdog.",
        ("by",),
        buckets=FINAL_S,
        registry=registry,
    )
