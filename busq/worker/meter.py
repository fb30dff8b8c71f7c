"""
What of a worker's doings is counted, and the counting of it for Prometheus.

A worker is given a `Meter` that counts nothing unless somebody serves metrics: then it is a `Counting` one. The
handlers' loop and the control thread both count, which prometheus-client allows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from busq.worker.attempt import Attempt


class Meter:
    """Counts nothing."""

    def started(self, attempts: Iterable[Attempt]) -> None:
        """Attempts that begin."""

    def stopped(self, attempt: Attempt, seconds: float) -> None:
        """The code of an attempt has ended after so long, or was given up."""

    def settled(self, attempt: Attempt, outcome: str, now: float) -> None:
        """Redis was told how it ended; `outcome` is the job's state since, or `stale`. `now`: monotonic seconds."""

    def signalled(self, heard_by: str, seconds: float) -> None:
        """The token of an attempt was tripped for a cancel, so long after it was asked for."""


UNMETERED = Meter()


class Counting(Meter):
    """Counts into a registry of its own, to be served together with the worker's health."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        from busq import metrics

        self.registry = CollectorRegistry()
        of_handler = ("queue", "kind")
        self._started = Counter("busq_jobs_started", "Attempts that began.", of_handler, registry=self.registry)
        self._settled = Counter(
            "busq_jobs_settled",
            "Attempts whose end was recorded, by their job's state since; stale: it had been ended elsewhere.",
            (*of_handler, "outcome"),
            registry=self.registry,
        )
        self._run = Histogram(
            "busq_job_run_seconds",
            "From the start of an attempt until its code ended or was given up.",
            of_handler,
            buckets=metrics.RUN_S,
            registry=self.registry,
        )
        self._signal = metrics.signal_seconds(self.registry)
        self._final = metrics.final_seconds(self.registry)

    def started(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            self._started.labels(attempt.queue, attempt.handler.kind).inc()

    def stopped(self, attempt: Attempt, seconds: float) -> None:
        self._run.labels(attempt.queue, attempt.handler.kind).observe(seconds)

    def settled(self, attempt: Attempt, outcome: str, now: float) -> None:
        self._settled.labels(attempt.queue, attempt.handler.kind, outcome).inc()
        if outcome == "cancelled" and attempt.asked_at is not None:
            self._final.labels("worker").observe(max(0.0, now - attempt.asked_at))

    def signalled(self, heard_by: str, seconds: float) -> None:
        self._signal.labels(heard_by).observe(max(0.0, seconds))
