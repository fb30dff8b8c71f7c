"""
What the judge says: violations, figures, and whether the run can be judged at all.

A violation names the check, the job, the place in the server's log and what is wrong. `Unusable` is raised where
nothing can be said: then the run is void, which is neither valid nor a violation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

NAMES = {
    "C1": "accepted jobs that were lost or never ended",
    "C2": "jobs that nobody enqueued",
    "C4": "duplicates of one job",
    "C5": "writes after the end",
    "C6": "moves that the contract does not know",
    "C7": "conservation, at every step of the log",
    "C8": "fences",
    "C9": "the order of cancels",
    "C10": "cancels that a running handler did not hear in time",
    "C11": "bounds of cancels",
    "C12": "cancels without a durable reason",
    "C13": "attempts side by side",
    "C14": "effects after death",
    "C15": "residue",
    "C16": "reads that go backwards",
    "C17": "stale reads",
}
"""The checks that can be violated. C3, C18 and C19 are figures; C20 is scripts/sabotage.py."""

LISTED = 1000  # violations of one check that are kept with their words; the others are counted


class Unusable(Exception):
    """The run cannot be judged: the message says why."""


@dataclass(frozen=True)
class Violation:
    check: str
    jid: str
    position: int | None
    words: str
    place: str = ""


@dataclass
class Verdict:
    """Filled by the checks, one after the other."""

    violations: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    void: list[str] = field(default_factory=list)

    def wrong(self, check: str, jid: str, position: int | None, words: str, place: str = "") -> None:
        assert check in NAMES
        self.counts[check] += 1
        if self.counts[check] <= LISTED:
            self.violations.append(Violation(check, jid, position, words, place))

    @property
    def exit_code(self) -> int:
        """0 valid, 1 violations, 2 void. A violation stands, whatever else could not be judged."""
        return 1 if self.counts else 2 if self.void else 0

    @property
    def word(self) -> str:
        return ("valid", "violations", "void")[self.exit_code]

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.word,
            "counts": dict(self.counts),
            "violations": [vars(each) for each in self.violations],
            "void": self.void,
            "remarks": self.remarks,
            "figures": self.figures,
        }
