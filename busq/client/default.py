"""
`busq.cancel(jid)`, `busq.cancel_where(…)` and `busq.enqueue(kind, …)`: blocking calls on the bus that BUSQ_URL names.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, Unpack, overload

from busq.client.bus import Bus
from busq.client.handle import BlockingHandle
from busq.client.scope import BlockingScope
from busq.client.scope_calls import FilteredWish
from busq.protocol.cancel import CancelAnswer
from busq.protocol.durability import DurabilityWord
from busq.protocol.scope import Survey


@cache
def default_bus() -> Bus:
    """The process's bus without a URL of its own; BUSQ_URL is read at its first use."""
    return Bus()


def cancel(
    jid: str,
    *,
    reason: str = "",
    source: str = "",
    grace: float | None = None,
    tombstone: float | None = None,
    durability: DurabilityWord = None,
) -> CancelAnswer:
    """
    Ask a job to stop; see `Bus.cancel`. Blocks; usable from threads and after a fork.

    Inside a running event loop it raises `BlockingCallInLoop`: write `await bus.cancel(jid)` there.
    """
    return default_bus().blocking.cancel(
        jid, reason=reason, source=source, grace=grace, tombstone=tombstone, durability=durability
    )


@overload
def cancel_where(*, dry_run: Literal[True], **wish: Unpack[FilteredWish]) -> Survey: ...
@overload
def cancel_where(*, dry_run: Literal[False] = False, **wish: Unpack[FilteredWish]) -> BlockingScope: ...
@overload
def cancel_where(*, dry_run: bool, **wish: Unpack[FilteredWish]) -> BlockingScope | Survey: ...
def cancel_where(*, dry_run: bool = False, **wish: Unpack[FilteredWish]) -> BlockingScope | Survey:
    """Ask every job to stop that matches all of these conditions; see `Bus.cancel_where`. Blocks, as `cancel` does."""
    return default_bus().blocking.cancel_where(dry_run=dry_run, **wish)


def enqueue(kind: str, /, *args: Any, **kwargs: Any) -> BlockingHandle[Any]:
    """Put a job on its queue; see `Bus.enqueue`. Blocks, as `cancel` does."""
    return default_bus().blocking.enqueue(kind, *args, **kwargs)
