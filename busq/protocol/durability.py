"""
How far a write has got when its call returns, on request.

Without a request it is in the memory of one server. `replicated`: a replica has taken it too, so that a failover to
that one keeps it. `fsynced`: it is on that server's disk. A shortfall is said and is no error: the write has been made,
and may yet get there.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Literal

import msgspec

from busq.errors import UsageError

DurabilityWord = Literal["replicated", "fsynced"] | None


class Durability(StrEnum):
    REPLICATED = "replicated"
    FSYNCED = "fsynced"


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a server confirmed of a write.

    `ok`: what was asked for is so. `replicas`: how many have taken it, of the `wanted` ones, None when that was not
    asked; where one call is several batches, the fewest. `fsynced`: whether it is on the disk, None when not asked.
    """

    asked: Durability
    ok: bool
    wanted: int | None = None
    replicas: int | None = None
    fsynced: bool | None = None

    @property
    def words(self) -> str:
        """The same for people."""
        if self.asked is Durability.FSYNCED:
            return "on the server's disk" if self.ok else "not known to be on the server's disk"
        return f"taken by {self.replicas} of {self.wanted} replicas"


def checked_durability(value: str | None) -> Durability | None:
    """The durability that a caller named. Raise `UsageError` for a word that is none."""
    if value is None:
        return None
    try:
        return Durability(value)
    except ValueError:
        raise UsageError(
            f"durability: {value!r} will not do; it takes {' or '.join(map(repr, map(str, Durability)))}, or None"
        ) from None


def together(all_asked: Iterable[Durability | None]) -> frozenset[Durability]:
    """What several jobs of one call ask for."""
    return frozenset(each for each in all_asked if each is not None)
