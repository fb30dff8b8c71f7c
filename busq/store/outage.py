"""
Times in which Redis does not serve us: said once when one begins and once when it is over, and waited out politely.

Several parts of a process speak to Redis, each for itself, and each of them finds out for itself. What people read is
one story: an outage begins with the first part that fails and is over when none does any more. A part that fails
again shortly after is still in the same outage, so that a server that comes and goes does not flood the log.

    intake ──┐  began(part, error)      log: bus.lost   once for each trouble of an outage
    beat   ──┼────────────────────>
    outbox ──┘  fine(part)              log: bus.back   after_s=…
"""

from __future__ import annotations

import random
import threading
from typing import Any

from busq import events
from busq.clock import Clock, SystemClock
from busq.errors import BusUnavailable
from busq.protocol.trouble import Trouble

CALM_S = 2.5  # without a failure until an outage counts as over: longer than the longest pause between two tries


class Outage:
    """
    What a process knows of the present outage, if there is one. Safe from any thread.

    Each part calls `began` when Redis fails it, as often as it does, and `fine` whenever Redis has served it.
    """

    def __init__(self, log: events.Log, *, clock: Clock | None = None) -> None:
        self._log = log
        self._now = (clock or SystemClock()).monotonic
        self._lock = threading.Lock()
        self._failing: dict[str, tuple[Trouble | None, str]] = {}  # what each said last; the latest of all comes last
        self._said: set[Trouble | None] = set()
        self._since: float | None = None
        self._failed_at = self._fine_at = 0.0
        self.count = 0
        """How many outages there have been."""

    def began(self, part: str, error: Exception, *, since: float | None = None, **facts: Any) -> None:
        """`part` could not do its work, for this reason; `since`: on the monotonic clock, when it last could."""
        trouble = error.trouble if isinstance(error, BusUnavailable) else None
        words = str(error) if isinstance(error, BusUnavailable) else repr(error)
        with self._lock:
            self._failed_at = self._now()
            # Replaced as a whole: who reads it without the lock must not find this part missing.
            others = {each: said for each, said in self._failing.items() if each != part}
            self._failing = {**others, part: (trouble, words)}
            if self._since is None:
                self._since = self._failed_at if since is None else since
                self.count += 1
            if trouble in self._said:
                return
            self._said.add(trouble)
        named = "" if trouble is None else str(trouble)
        events.tell(self._log, events.BUS_LOST, part=part, trouble=named, error=words, **facts)

    def fine(self, part: str) -> None:
        """Redis has served this part."""
        if self._since is None:
            return
        with self._lock:
            if self._failing.pop(part, None):
                self._fine_at = self._now()
            if self._since is None or self._failing or self._now() - self._failed_at < CALM_S:
                return
            after_s = self._fine_at - self._since
            self._since = None
            self._said.clear()
        events.tell(self._log, events.BUS_BACK, after_s=round(after_s, 1))

    @property
    def trouble(self) -> str:
        """The present trouble in a word, as the part says that met it last; "" for none, or none that has a name."""
        for trouble, _ in reversed(list(self._failing.values())):
            if trouble is not None:
                return str(trouble)
        return ""

    def words(self, *parts: str) -> str:
        """
        Why these parts (left out: any) cannot do their work, as the last of them says, the trouble's name in front; ""
        when they can.
        """
        for part, (trouble, words) in reversed(list(self._failing.items())):
            if not parts or part in parts:
                return words if trouble is None else f"{trouble}: {words}"
        return ""


class Backoff:
    """Pauses between tries that grow from the first to the longest, each somewhat shortened by chance."""

    FIRST_S, LONGEST_S = 0.05, 2.0

    def __init__(self, longest_s: float | None = None) -> None:
        self._longest_s = self.LONGEST_S if longest_s is None else longest_s
        self._next_s = self.FIRST_S

    def pause_s(self) -> float:
        """How long to wait now; the next time longer."""
        now_s = self._next_s
        self._next_s = min(self._longest_s, now_s * 2)
        return now_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It went well: the next pause is a short one."""
        self._next_s = self.FIRST_S
