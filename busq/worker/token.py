"""
The handler's side of a cancel: a token that is tripped and stays tripped.

Level-triggered: once tripped, every later check of that attempt says so, whatever the handler swallowed in between.
It is tripped from the control thread and asked from the handler's own thread or loop; `observed` records that
the handler has learned of it, which is what later tells `confirmed` from `completed`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from busq.errors import Cancelled
from busq.protocol.cancel import Cause, TripFacts

_first = threading.Lock()  # held for one assignment: two causes may arrive in two threads at once


class CancelToken:
    """
    One for each attempt.

    A cancel that comes after a shutdown, a timeout or a lost lease takes their place (`Cause.rank`) and counts anew:
    the handler has learned of it when it looks again, and not before.
    """

    __slots__ = ("_callbacks", "_event", "_seen", "facts")

    def __init__(self) -> None:
        self.facts: TripFacts | None = None
        self._seen: tuple[TripFacts | None, float] = (None, 0.0)  # what the handler learned of last, and when
        self._callbacks: list[Callable[[TripFacts], object]] = []
        self._event: threading.Event | None = None

    @property
    def tripped(self) -> bool:
        return self.facts is not None

    @property
    def observed_at(self) -> float | None:
        """When the handler learned of what the token shows (monotonic seconds); None when it has not."""
        seen, at = self._seen
        return at if seen is not None and seen is self.facts else None

    @property
    def observed(self) -> bool:
        """Whether the handler has learned of what the token shows."""
        return self.observed_at is not None

    @property
    def observed_cause(self) -> Cause | None:
        """What the handler has learned of, if it is what the token shows."""
        facts = self.facts
        return facts.cause if facts is not None and self._seen[0] is facts else None

    def observe(self, cause: Cause | None = None) -> TripFacts | None:
        """
        The handler looks, and learns of what the token shows; of nothing but `cause`, when that is given.

        Return what it is told, None when it is told nothing.
        """
        facts = self.facts
        if facts is None or (cause is not None and facts.cause is not cause):
            return None
        if self._seen[0] is not facts:
            self._seen = (facts, time.monotonic())
        return facts

    def trip(self, facts: TripFacts) -> bool:
        """
        Tell the handler to stop. Safe from any thread, and safe to repeat.

        The first cause is the one that the handler sees, until one of a higher rank comes. Return whether it sees this
        one from now on.
        """
        with _first:
            if self.facts is not None and self.facts.cause.rank >= facts.cause.rank:
                return False
            self.facts = facts
            event = self._event
        if event is not None:
            event.set()
        return True

    def check(self) -> None:
        """Raise `Cancelled` when tripped, every time; the handler has learned of it then."""
        facts = self.observe()
        if facts is not None:
            raise Cancelled(facts.cause, facts.reason)

    def wait(self, timeout_s: float | None) -> bool:
        """Block this thread until tripped or `timeout_s` has passed; return whether it is tripped."""
        with _first:
            if self._event is None:
                self._event = threading.Event()
                if self.facts is not None:
                    self._event.set()
            event = self._event
        tripped = event.wait(timeout_s)
        if tripped:
            self.observe()
        return tripped

    def on_trip(self, callback: Callable[[TripFacts], object]) -> bool:
        """Keep a callback for the moment of tripping; return False when that moment has passed already."""
        with _first:
            if self.facts is not None:
                return False
            self._callbacks.append(callback)
            return True

    def drop(self, callback: Callable[[TripFacts], object]) -> None:
        """Take a callback back; nothing happens when it is not kept."""
        with _first:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def take_callbacks(self) -> list[Callable[[TripFacts], object]]:
        """The callbacks, to be called once by whoever tripped the token."""
        with _first:
            taken, self._callbacks = self._callbacks, []
            return taken
