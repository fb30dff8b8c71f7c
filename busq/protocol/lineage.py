"""
Whether the data behind a bus is still what it was, judged from two looks at it.

What Redis has acknowledged may be gone afterwards: a replica is promoted that had not heard of it, a server comes back
with what it had last saved, or with nothing. Nobody is told; the next command is answered as if all were well. So each
shard carries a birth mark that no second one has, and every server says which run of it this is and which history of
writes it follows.

    birth mark another                     other data: everything that was known of the bus is in doubt
    run and history as before              the same
    run another, history or its past ours  promoted: goes on from a past that we share, up to an offset
    run another, history unknown           restarted: goes on from what it had saved
    run as before, history unknown         resynced: it has taken over another server's data
    the same, but a primary without a past the same: it began to count anew

The last row is a primary's first replica, or the hour after its last one: Redis then gives a new name to the same data.
A server that takes over another's data is its replica first, and has that one's history as its past afterwards.

Where a server does not say (INFO refused), the birth mark alone decides.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Change(StrEnum):
    OTHER_DATA = "other_data"
    PROMOTED = "promoted"
    RESTARTED = "restarted"
    RESYNCED = "resynced"


class Glimpse(msgspec.Struct, frozen=True, kw_only=True):
    """What a server said of one shard's history at one moment; "" and 0 for what it did not say."""

    birth: str = ""
    run_id: str = ""
    replid: str = ""
    offset: int = 0
    """How many bytes of writes there are in this history."""
    past_replid: str = ""
    past_offset: int = 0
    """The history before this one, and how many bytes of it this server had when it turned away from it."""
    is_replica: bool = False


class Shift(msgspec.Struct, frozen=True, kw_only=True):
    """A change of history. `lost_bytes`: of writes that are certainly gone; None where nobody can tell."""

    change: Change
    lost_bytes: int | None = None

    @property
    def lost(self) -> bool:
        """Whether something that Redis had acknowledged is certainly gone; else it may be."""
        return self.change in (Change.OTHER_DATA, Change.RESYNCED) or bool(self.lost_bytes)


def judge(before: Glimpse, now: Glimpse) -> Shift | None:
    """What became of the history between two looks; None for nothing that matters."""
    if before.birth and now.birth and before.birth != now.birth:
        return Shift(change=Change.OTHER_DATA)
    if not (before.run_id and now.run_id):
        return None
    same_run, same_history = now.run_id == before.run_id, now.replid == before.replid
    if same_run and same_history:
        return None
    if same_history:
        return Shift(change=Change.PROMOTED, lost_bytes=max(0, before.offset - now.offset))
    if now.past_replid == before.replid:
        return Shift(change=Change.PROMOTED, lost_bytes=max(0, before.offset - now.past_offset))
    if not same_run:
        return Shift(change=Change.RESTARTED)
    return Shift(change=Change.RESYNCED) if now.is_replica or now.past_replid else None
