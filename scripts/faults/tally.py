"""
Numbers that outlive the process that counts them: a small file that producers and cancellers map into memory.

Each number has one writer. A producer takes the numbers of its jids from here before it sends them, so that a successor
goes on where it was killed, and a canceller knows which jids there may be.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

PRODUCERS = 4
CANCELLERS = 3
COLUMNS = ("quick", "slow", "accepted", "cancelled", "scopes", "reads")


class Tally:
    def __init__(self, folder: Path) -> None:
        path = folder / "tally"
        if not path.exists():
            path.write_bytes(bytes(8 * len(COLUMNS) * (PRODUCERS + CANCELLERS)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def get(self, row: int, column: str) -> int:
        number: int = struct.unpack_from("q", self._map, self._at(row, column))[0]
        return number

    def add(self, row: int, column: str, more: int = 1) -> int:
        """Count so many more; return the number before."""
        before = self.get(row, column)
        struct.pack_into("q", self._map, self._at(row, column), before + more)
        return before

    def total(self, column: str) -> int:
        return sum(self.get(row, column) for row in range(PRODUCERS + CANCELLERS))

    def _at(self, row: int, column: str) -> int:
        return 8 * (row * len(COLUMNS) + COLUMNS.index(column))
