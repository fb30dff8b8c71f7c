"""
How long jobs of each kind take in the process pool of late, and how many may therefore be started ahead of a child.

A short job that is at hand when the one before it ends spares its child a turn with the worker, and lets one script
call start and settle many. But a job that was started says `running`, so it must not wait for long: what is started
ahead of one child adds up to some 5 ms of its kind's work. Kinds that are unknown or take longer are never started
ahead: only a free child gets them.
"""

from __future__ import annotations

AT_THE_DOOR_S = 0.005  # of work, before each child
MOST_AHEAD = 64
RECENT = 64  # jobs; older ones fade


class Pace:
    """
    `children` is the number of those that are ready; `held_up` of them are busy with a job that should be short and is
    not. Belongs to the handlers' loop.
    """

    def __init__(self) -> None:
        self.children = 0
        self.held_up = 0
        self._took: dict[str, float] = {}
        self._heard: dict[str, int] = {}
        self._ahead: dict[str, int] = {}

    def heard(self, kind: str, took_s: float) -> None:
        """A job of this kind has ended and kept its child busy for so long."""
        heard = self._heard[kind] = min(RECENT, self._heard.get(kind, 0) + 1)
        known = self._took.get(kind, 0.0)
        took_s = self._took[kind] = known + (took_s - known) / heard
        self._ahead[kind] = min(MOST_AHEAD, int(AT_THE_DOOR_S / took_s)) if took_s > 0 else MOST_AHEAD

    def ahead(self, kind: str) -> int:
        """How many jobs of this kind may wait at the door of one child; 0 for kinds that are unknown or slow."""
        return self._ahead.get(kind, 0)
