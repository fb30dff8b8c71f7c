"""
When which fault was on, by the nemesis's own lines.

A fault lasts from its `fault` line to the `heal` line of the same operation (or of the same fault and target). One that
nobody healed was over in a moment: a kill, a flush. Its consequences are felt for a while, `AFTER_S`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from typing import NamedTuple

from judge.history import Event, History

AFTER_S = 3.0
# While one of these is on, Redis, or every watchdog, may be out of reach: bounds of time are not asked for then.
KEEPS_FROM_REDIS = (
    "server",
    "redis",
    "watchdog",
    "proxy",
    "partition",
    "pause",
    "busy",
    "memory",
    "clock",
    "normal",
    "stop_",
)


class Span(NamedTuple):
    name: str
    target: str
    began: int  # mono, ns
    ended: int
    began_wall: int  # ms
    ended_wall: int


class Faults:
    def __init__(self, history: History) -> None:
        self.counts: Counter[str] = Counter()
        self.spans: list[Span] = []
        self.kills: dict[int, int] = {}  # pid -> mono of its death
        open_faults: dict[tuple[str, str], Event] = {}
        for event in history.events:
            if event.role != "nemesis" or event.ev not in ("fault", "heal"):
                continue
            name, target = str(event.told("fault")), str(event.told("target") or "")
            key = (event.op or name, "" if event.op else target)
            if event.ev == "fault" and event.type != "invoke":
                self.counts[name] += 1
                open_faults[key] = event
                self._killed(event, name)
            elif event.ev == "heal" and event.type != "invoke" and key in open_faults:
                self._span(open_faults.pop(key), event)
        for event in open_faults.values():
            self._span(event, None)
        self.spans.sort(key=lambda span: span.began)
        self._begins = [span.began for span in self.spans]
        self._longest = max((span.ended - span.began for span in self.spans), default=0)

    def _killed(self, event: Event, name: str) -> None:
        if not name.startswith("kill"):
            return
        pid = event.told("pid")
        if pid is None and (found := str(event.told("target") or "").rpartition(":")[2]).isdigit():
            pid = found
        if pid is not None:
            self.kills.setdefault(int(pid), event.mono)

    def _span(self, began: Event, healed: Event | None) -> None:
        after = round(AFTER_S * 1000)
        ended, wall = (began.mono, began.wall) if healed is None else (healed.mono, healed.wall)
        self.spans.append(
            Span(
                str(began.told("fault")),
                str(began.told("target") or ""),
                began.mono,
                ended + after * 1_000_000,
                began.wall,
                wall + after,
            )
        )

    def on_at(self, mono: int) -> set[str]:
        """The faults that were on, or felt, at a moment."""
        found = set()
        at = bisect_right(self._begins, mono)
        while at and self._begins[at - 1] >= mono - self._longest:
            at -= 1
            if self.spans[at].ended >= mono:
                found.add(self.spans[at].name)
        return found

    def out_of_reach_ms(self, first_wall: float, last_wall: float) -> float:
        """For how long, between two moments, Redis or the watchdogs may have been out of reach."""
        found = sorted(
            (max(span.began_wall, first_wall), min(span.ended_wall, last_wall))
            for span in self.spans
            if any(word in span.name for word in KEEPS_FROM_REDIS)
            and span.began_wall < last_wall
            and span.ended_wall > first_wall
        )
        total, upto = 0.0, first_wall
        for begin, end in found:
            total += max(0.0, end - max(begin, upto))
            upto = max(upto, end)
        return total
