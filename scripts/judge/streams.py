"""
A stream as the judge plays it: its entries, and of each group what was delivered and is pending.

An entry that is in the stream is undelivered, pending, or lost to its group: delivered, and pending no more.
"""

from __future__ import annotations

from enum import Enum


class Whereabouts(Enum):
    MISSING = "not in the stream"
    UNDELIVERED = "undelivered"
    PENDING = "pending"
    LOST = "delivered, and neither pending nor removed"


class Group:
    def __init__(self) -> None:
        self._last = (0, 0)
        self.pending: dict[bytes, bytes] = {}  # entry -> consumer

    def read_up_to(self, entry: bytes) -> None:
        if entry != b"$":
            self._last = max(self._last, number(entry))

    def has_read(self, entry: bytes) -> bool:
        return number(entry) <= self._last

    def drop(self, consumer: bytes) -> list[bytes]:
        """Forget a consumer, and what is pending for it. Returns that."""
        held = [entry for entry, owner in self.pending.items() if owner == consumer]
        for entry in held:
            del self.pending[entry]
        return held


class Stream:
    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}  # id -> key of the job, b"" for something else
        self.groups: dict[bytes, Group] = {}

    def add(self, entry: bytes, job: bytes) -> None:
        self.entries[entry] = job

    def trim(self, most: int) -> None:
        while len(self.entries) > most:
            del self.entries[next(iter(self.entries))]

    def group(self, name: bytes) -> Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group()
        return group

    def whereabouts(self, group_name: bytes, entry: bytes) -> Whereabouts:
        if entry not in self.entries:
            return Whereabouts.MISSING
        group = self.groups.get(group_name)
        if group is None:
            return Whereabouts.UNDELIVERED
        if entry in group.pending:
            return Whereabouts.PENDING
        return Whereabouts.LOST if group.has_read(entry) else Whereabouts.UNDELIVERED

    def consumer(self, group_name: bytes, entry: bytes) -> bytes | None:
        group = self.groups.get(group_name)
        return group.pending.get(entry) if group else None


def number(entry: bytes) -> tuple[int, int]:
    ms, _, count = entry.partition(b"-")
    return int(ms), int(count or 0)
