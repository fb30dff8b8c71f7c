"""
Two kinds of time, handed in wherever it is needed.

Lengths of time are measured here, monotonic. Moments that are written down are the server's: scripts read its
clock, unless a test hands them a moment of its own (`stamp_ms`, 0 means "the server's").
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What busq asks of a clock."""

    def monotonic(self) -> float:
        """Seconds from some start, never going back; for lengths of time."""
        ...

    def stamp_ms(self) -> int:
        """The moment that scripts shall take for now, in ms since the epoch; 0 for the server's own clock."""
        ...


class SystemClock:
    """Real time: monotonic here, the server's clock for what is written down."""

    def monotonic(self) -> float:
        return time.monotonic()

    def stamp_ms(self) -> int:
        return 0


class ManualClock:
    """A clock that stands still until it is moved by hand; scripts that get it obey it too."""

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = start_ms

    def monotonic(self) -> float:
        return self.now_ms / 1000

    def stamp_ms(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        """Move both times forward by `seconds`."""
        self.now_ms += round(seconds * 1000)
