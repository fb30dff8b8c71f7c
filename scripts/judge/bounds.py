"""
A cancelled job is terminal by its deadline + the watchdog's interval (C11), by the server's own clock.

The promise is for as long as Redis and one watchdog live, so the time in which they may have been out of reach is
added; a cancel during which the server's clock was stepped is counted and not judged.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from judge import schema as s
from judge.aof import Command
from judge.faults import Faults
from judge.lives import Life
from judge.verdict import Verdict

# Two stamps of the log this far apart, or in the wrong order: a step of the clock, or a server that was away.
STEP_S = 20
BACK_MS = 5000  # a worker's lease runs so much shorter than it did: the clock was set back, and no stamp says so


class Clock:
    """
    The stamps of one server's log, the leases that its workers have renewed, and where its clock was stepped.

    Redis writes no stamp below the last one, so a step back is seen in the leases: each renewal is later than the one
    before.
    """

    def __init__(self) -> None:
        self._last = 0
        self._leases: dict[tuple[bytes, bytes], float] = {}
        self.steps: list[int] = []

    def stamped(self, position: int, at: int) -> None:
        if self._last and not 0 <= at - self._last <= STEP_S:
            self.steps.append(position)
        self._last = at

    def leased(self, position: int, command: Command) -> None:
        """A `ZADD` to the roster of a shard."""
        for score, worker in zip(command[2::2], command[3::2], strict=True):
            until = float(score)
            if until < self._leases.get((command[1], worker), until) - BACK_MS:
                self.steps.append(position)
            self._leases[command[1], worker] = until

    def stepped(self, first: int, last: int) -> bool:
        at = bisect_left(self.steps, first)
        return at < len(self.steps) and self.steps[at] <= last


def judge_bounds(
    lives: Sequence[Life], clock: Clock, faults: Faults, verdict: Verdict, *, server: str, interval_s: float,
    slack_s: float,
) -> dict[str, float]:  # fmt: skip
    """Those of one server. Returns what was seen: how many were signalled and judged, and how late the latest was."""
    judged = excused = 0
    latest = -float("inf")
    for life in lives:
        deadline, finished = s.number_of(life.record, s.DEADLINE), s.number_of(life.record, s.FINISHED)
        if not deadline or not finished or life.requested is None or life.terminal is None:
            continue
        if life.excused or clock.stepped(life.requested, life.terminal):
            excused += 1
            continue
        judged += 1
        late = finished - deadline
        latest = max(latest, late)
        most = (interval_s + slack_s) * 1000
        if late > most:
            away = faults.out_of_reach_ms(server, life.requested_ms, finished)
            if late > most + away:
                verdict.wrong(
                    "C11",
                    life.jid,
                    life.terminal,
                    f"ended {late:.0f} ms after its deadline; allowed were {most:.0f} ms and {away:.0f} ms of outage",
                )
    return {"signalled": judged + excused, "judged": judged, "latest_after_deadline_ms": round(latest) if judged else 0}
