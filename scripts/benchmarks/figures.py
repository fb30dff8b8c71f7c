"""
What a benchmark has to say: a number, the requirement beside it, and how far the rounds lay apart.

Figures are reported and never asserted: a machine that others use too must not turn a run red.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """Several measurements of one thing."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values))


class Requirement(msgspec.Struct, frozen=True):
    """`bound` is the last value that will do."""

    sense: Literal["at least", "at most", "under"]
    bound: float
    aim: float | None = None

    def met_by(self, value: float) -> bool:
        if self.sense == "at least":
            return value >= self.bound
        return value <= self.bound if self.sense == "at most" else value < self.bound

    def __str__(self) -> str:
        aim = "" if self.aim is None else f", aim {self.aim:g}"
        return f"{self.sense} {self.bound:g}{aim}"


class Figure(msgspec.Struct, frozen=True):
    """One line of the table. Without a requirement it stands there to be compared with."""

    benchmark: str
    what: str
    unit: str
    spread: Spread
    requirement: Requirement | None = None
    ok: bool | None = None

    @classmethod
    def of(
        cls, benchmark: str, what: str, unit: str, values: Sequence[float], requirement: Requirement | None = None
    ) -> Figure:
        """The median is held against the requirement."""
        spread = Spread.of(values)
        ok = None if requirement is None else requirement.met_by(spread.median)
        return cls(benchmark, what, unit, spread, requirement, ok)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    at = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(0, int(at) - 1)]


def latencies(
    benchmark: str,
    ours: Sequence[Sequence[float]],
    floor: Sequence[Sequence[float]],
    required: dict[float, Requirement],
    *,
    floor_name: str,
) -> list[Figure]:
    """
    Percentiles of two latencies, and their ratios. Each holds a list of seconds for every round.

    Percentiles are taken over all rounds together: one round is too short for a p99. Their spread is that of the
    rounds.
    """
    figures: list[Figure] = []
    for percent in (50.0, 99.0):
        mine, its = over(ours, percent), over(floor, percent)
        pairs = [percentile(a, percent) / percentile(b, percent) for a, b in zip(ours, floor, strict=True)]
        ratio = mine.median / its.median
        requirement = required.get(percent)
        ok = None if requirement is None else requirement.met_by(ratio)
        spread = Spread(min(pairs), ratio, max(pairs))
        figures += [
            Figure(benchmark, f"p{percent:g}: busq", "ms", mine),
            Figure(benchmark, f"p{percent:g}: {floor_name}", "ms", its),
            Figure(benchmark, f"p{percent:g}: ratio", "x", spread, requirement, ok),
        ]
    return figures


def over(rounds: Sequence[Sequence[float]], percent: float) -> Spread:
    """A percentile in milliseconds, taken over all rounds together; its spread is that of the rounds."""
    each = [percentile(values, percent) * 1000 for values in rounds]
    together = percentile([value for values in rounds for value in values], percent) * 1000
    return Spread(min(each), together, max(each))
