"""
`busq.cancel(jid)` and `busq.enqueue(kind, …)`: blocking calls on the bus that BUSQ_URL names.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from busq.client.bus import Bus
from busq.client.handle import BlockingHandle
from busq.protocol.cancel import CancelAnswer


@cache
def default_bus() -> Bus:
    """The process's bus without a URL of its own; BUSQ_URL is read at its first use."""
    return Bus()


def cancel(
    jid: str, *, reason: str = "", source: str = "", grace: float | None = None, tombstone: float | None = None
) -> CancelAnswer:
    """
    Ask a job to stop; see `Bus.cancel`. Blocks; usable from threads and after a fork.

    Inside a running event loop it raises `BlockingCallInLoop`: write `await bus.cancel(jid)` there.
    """
    return default_bus().blocking.cancel(jid, reason=reason, source=source, grace=grace, tombstone=tombstone)


def enqueue(kind: str, /, *args: Any, **kwargs: Any) -> BlockingHandle[Any]:
    """Put a job on its queue; see `Bus.enqueue`. Blocks, as `cancel` does."""
    return default_bus().blocking.enqueue(kind, *args, **kwargs)
