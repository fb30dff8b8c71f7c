"""
The handler's side of a cancel: a token that is tripped once and stays tripped.

Level-triggered: once tripped, every later check of that attempt says so, whatever the handler swallowed in between.
It is tripped from the control thread and asked from the handler's own thread or loop; `observed` records that
the handler has learned of it, which is what later tells `confirmed` from `completed`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from busq.errors import Cancelled
from busq.protocol.cancel import TripFacts

_first = threading.Lock()  # held for one assignment: two causes may arrive in two threads at once


class CancelToken:
    """One for each attempt."""

    __slots__ = ("_callbacks", "_event", "facts", "observed_at")

    def __init__(self) -> None:
        self.facts: TripFacts | None = None
        self.observed_at: float | None = None  # monotonic seconds
        self._callbacks: list[Callable[[TripFacts], object]] = []
        self._event: threading.Event | None = None

    @property
    def tripped(self) -> bool:
        return self.facts is not None

    @property
    def observed(self) -> bool:
        """Whether the handler has learned of it."""
        return self.observed_at is not None

    def observe(self) -> None:
        """The handler learns of it now, if it has not before."""
        if self.observed_at is None:
            self.observed_at = time.monotonic()

    def trip(self, facts: TripFacts) -> bool:
        """
        Tell the handler to stop. Safe from any thread, and safe to repeat.

        The first cause wins and is the one that the handler sees. Return whether this was the first.
        """
        with _first:
            if self.facts is not None:
                return False
            self.facts = facts
            event = self._event
        if event is not None:
            event.set()
        return True

    def check(self) -> None:
        """Raise `Cancelled` when tripped, every time; the handler has learned of it then."""
        if self.facts is not None:
            self.observe()
            raise Cancelled(self.facts.cause, self.facts.reason)

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
