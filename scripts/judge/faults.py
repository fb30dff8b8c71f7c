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
KEEPS_FROM_REDIS = ("server", "redis", "watchdog", "proxy", "partition", "pause", "busy", "memory", "clock", "normal")


class Span(NamedTuple):
    name: str
    target: str
    began: int  # mono, ns
    ended: int
    began_ms: int  # by the server's clock
    ended_ms: int


class Faults:
    def __init__(self, history: History) -> None:
        self.counts: Counter[str] = Counter()
        self.spans: list[Span] = []
        self.kills: dict[int, int] = {}  # pid -> mono of its death
        self._steps: list[tuple[int, int]] = []  # mono, and by how much the server's clock is off from there on, in ms
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
                if name == "clock_of_server":
                    self._steps.append(
                        (event.mono, self._off(event.mono) + round(1000 * float(event.told("seconds") or 0)))
                    )
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

    def _off(self, mono: int) -> int:
        return next((off for at, off in reversed(self._steps) if at <= mono), 0)

    def _span(self, began: Event, healed: Event | None) -> None:
        after = round(AFTER_S * 1000)
        last = began if healed is None else healed
        self.spans.append(
            Span(
                str(began.told("fault")),
                str(began.told("target") or ""),
                began.mono,
                last.mono + after * 1_000_000,
                began.wall + self._off(began.mono - 1),
                last.wall + self._off(last.mono) + after,
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

    def out_of_reach_ms(self, first_ms: float, last_ms: float) -> float:
        """For how long, between two moments, Redis or the watchdogs may have been out of reach."""
        found = sorted(
            (max(span.began_ms, first_ms), min(span.ended_ms, last_ms))
            for span in self.spans
            if any(word in span.name for word in KEEPS_FROM_REDIS)
            and span.began_ms < last_ms
            and span.ended_ms > first_ms
        )
        total, upto = 0.0, first_ms
        for begin, end in found:
            total += max(0.0, end - max(begin, upto))
            upto = max(upto, end)
        return total
