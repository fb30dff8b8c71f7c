"""
When which fault was on, by the nemesis's own lines.

A fault lasts from its `fault` line to the `heal` line of the same operation (or of the same fault and target). One that
nobody healed was over in a moment: a kill, a flush. Its consequences are felt for a while, `AFTER_S`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import NamedTuple

from judge.history import Event, History

AFTER_S = 3.0
STEPPING_NS = 1_000_000_000  # between a line about a step and the step itself
# While one of these is on, Redis, or every watchdog, may be out of reach: bounds of time are not asked for then.
KEEPS_FROM_REDIS = ("server", "redis", "watchdog", "proxy", "partition", "pause", "busy", "memory", "clock", "normal")


class Span(NamedTuple):
    """`began` and `ended` in ns of the machine's monotonic clock; the others in ms of its wall clock, unstepped."""

    name: str
    target: str
    began: int
    ended: int
    began_wall: int
    ended_wall: int


class Faults:
    """`servers`: their names. What is told of one of them concerns no other."""

    def __init__(self, history: History, servers: Sequence[str]) -> None:
        self._servers = frozenset(servers)
        self.counts: Counter[str] = Counter()
        self.spans: list[Span] = []
        self.kills: dict[int, int] = {}  # pid -> mono of its death
        self._steps: list[tuple[int, str, int]] = []  # mono, whose clock was stepped, and by how many ms
        self._wall: float | None = None  # what the nemesis's wall clock is ahead of the monotonic one, in ms
        open_faults: dict[tuple[str, str], Event] = {}
        for event in history.events:
            if event.role != "nemesis" or event.ev not in ("fault", "heal"):
                continue
            self._wall = event.wall - event.mono / 1e6
            name, target = str(event.told("fault")), str(event.told("target") or "")
            key = (event.op or name, "" if event.op else target)
            if event.ev == "fault" and event.type != "invoke":
                self.counts[name] += 1
                open_faults[key] = event
                self._killed(event, name)
                if name == "clock_of_server":
                    self._steps.append((event.mono, target, round(1000 * float(event.told("seconds") or 0))))
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

    def _concerns(self, target: str, server: str) -> bool:
        return target == server or target not in self._servers

    def _off(self, server: str, mono: int) -> int:
        """By how many ms a server's clock was off."""
        return sum(ms for at, target, ms in self._steps if at <= mono and self._concerns(target, server))

    def latest_mono(self, server: str, ms: float) -> float | None:
        """
        The monotonic moment at which a server's clock showed this; the latest where it did more than once. None where
        it never did, or without a nemesis.
        """
        if self._wall is None:
            return None
        begins = [-inf, *(float(at) for at, target, _ in self._steps if self._concerns(target, server)), inf]
        found = -inf
        for begin, end in pairwise(begins):
            off = self._off(server, round(begin)) if begin > -inf else 0
            mono = (ms - self._wall - off) * 1e6
            if begin - STEPPING_NS <= mono <= end + STEPPING_NS:
                found = max(found, mono)
        return found if found > -inf else None

    def _span(self, began: Event, healed: Event | None) -> None:
        after = round(AFTER_S * 1e9)
        last = began if healed is None else healed
        self.spans.append(
            Span(
                str(began.told("fault")),
                str(began.told("target") or ""),
                began.mono,
                last.mono + after,
                began.wall,
                last.wall + after // 1_000_000,
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

    def out_of_reach_ms(self, server: str, first_ms: float, last_ms: float) -> float:
        """For how long, between two moments by a server's clock, it or the watchdogs may have been out of reach."""
        found = []
        for span in self.spans:
            if any(word in span.name for word in KEEPS_FROM_REDIS) and self._concerns(span.target, server):
                began = span.began_wall + self._off(server, span.began - 1)
                found.append((began, span.ended_wall + self._off(server, span.ended)))
        total, upto = 0.0, first_ms
        for begin, end in sorted(found):
            total += max(0.0, min(end, last_ms) - max(begin, upto))
            upto = max(upto, end)
        return total
