"""
What the audience sees: one plain object that the story fills and a view draws.

Every number in it was measured or read from the bus; nothing here makes one up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from busq.cli.demo.tree import Tree


class Line(NamedTuple):
    """One thing that happened, `at` seconds after the curtain rose."""

    at: float
    text: str
    style: str


class Player(NamedTuple):
    """One process as it stands now."""

    name: str
    pid: int
    running: int | None
    suspects: int
    note: str


class Scene:
    def __init__(self, tree: Tree, server: str) -> None:
        self.tree = tree
        self.server = server
        self.batches = len(tree.batches())
        self.done = 0
        self.files = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.players: list[Player] = []
        self.queued = 0
        self.lines: list[Line] = []
        self.heard: Callable[[Line], None] = lambda line: None
        self.first_done: float | None = None
        self.last_done: float | None = None
        self._began = time.monotonic()

    @property
    def clock(self) -> float:
        """Seconds since the curtain rose."""
        return time.monotonic() - self._began

    def say(self, text: str, style: str = "") -> None:
        line = Line(self.clock, text, style)
        self.lines.append(line)
        self.heard(line)

    def batch_done(self, files: int, bytes_in: int, bytes_out: int) -> None:
        self.first_done = self.clock if self.first_done is None else self.first_done
        self.last_done = self.clock
        self.done += 1
        self.files += files
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out

    @property
    def rate(self) -> float | None:
        """Bytes compressed in a second, between the first batch that was done and the last; None before two were."""
        if self.first_done is None or self.last_done is None or self.last_done <= self.first_done:
            return None
        return self.bytes_in / (self.last_done - self.first_done)
