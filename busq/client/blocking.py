"""
The blocking face: the same calls for code without an event loop.

One loop in one thread for the whole process carries them all out, so scripts, codecs and errors are the same as
for awaiting code. Threads may call at once. After a fork the child starts a thread of its own at the first call.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from busq.client.blocking_scopes import BlockingScopeCalls
from busq.client.handle import BlockingHandle
from busq.client.spec import JobSpec
from busq.errors import BlockingCallInLoop
from busq.protocol.cancel import CancelAnswer
from busq.protocol.durability import DurabilityWord
from busq.protocol.job import Event, Job
from busq.protocol.states import State

if TYPE_CHECKING:
    from busq.client.bus import Bus
    from busq.store.counts import Stats
    from busq.store.roster import Member

T = TypeVar("T")


class BlockingBus(BlockingScopeCalls):
    """`bus.blocking`. Every method does what its namesake of `Bus` does, and raises the same errors."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def enqueue(self, kind: str, /, *args: Any, **kwargs: Any) -> BlockingHandle[Any]:
        return self._enqueue([self._bus.spec(kind, *args, **kwargs)], "enqueue")[0]

    def enqueue_many(self, specs: Iterable[JobSpec[T]]) -> Sequence[BlockingHandle[T]]:
        return self._enqueue(list(specs), "enqueue_many")

    def cancel(
        self,
        jid: str,
        *,
        reason: str = "",
        source: str = "",
        grace: float | None = None,
        tombstone: float | None = None,
        durability: DurabilityWord = None,
    ) -> CancelAnswer:
        return self._call(
            "cancel",
            lambda: self._bus.cancel(
                jid, reason=reason, source=source, grace=grace, tombstone=tombstone, durability=durability
            ),
        )

    def cancel_many(
        self,
        jids: Iterable[str],
        *,
        reason: str = "",
        source: str = "",
        grace: float | None = None,
        tombstone: float | None = None,
        durability: DurabilityWord = None,
    ) -> list[CancelAnswer]:
        return self._call(
            "cancel_many",
            lambda: self._bus.cancel_many(
                jids, reason=reason, source=source, grace=grace, tombstone=tombstone, durability=durability
            ),
        )

    def wait(self, jid: str, *, timeout: float | None = None) -> Job:
        return self._call("wait", lambda: self._bus.wait(jid, timeout=timeout))

    def result(self, jid: str, *, timeout: float | None = None) -> Any:
        return self._call("result", lambda: self._bus.result(jid, timeout=timeout))

    def get(self, jid: str) -> Job:
        return self._call("get", lambda: self._bus.get(jid))

    def history(self, jid: str) -> list[Event]:
        return self._call("history", lambda: self._bus.history(jid))

    def stats(self) -> Stats:
        return self._call("stats", self._bus.stats)

    def workers(self) -> Sequence[Member]:
        return self._call("workers", self._bus.workers)

    def list(
        self,
        *,
        state: State | str | Iterable[State | str] | None = None,
        kind: str | None = None,
        queue: str | None = None,
        group: str | None = None,
        limit: int = 100,
    ) -> Sequence[Job]:
        return self._call("list", lambda: self._bus.list(state=state, kind=kind, queue=queue, group=group, limit=limit))

    def close(self) -> None:
        """Close the connections of the blocking calls; the next one opens them again."""
        self._call("close", self._bus.close)

    def _enqueue(self, specs: Sequence[JobSpec[T]], name: str) -> Sequence[BlockingHandle[T]]:
        sent = self._call(name, lambda: self._bus.send(specs))
        return [BlockingHandle(self, spec.jid, state, spec.result_type, confirmed) for spec, state, confirmed in sent]

    def _call(self, name: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return _portal().call(make)
        raise BlockingCallInLoop(
            f"{name}() of the blocking bus was called inside a running event loop, which it would stop. "
            f"Write `await bus.{name}(...)` there."
        )


class _Portal:
    """The process's loop for blocking calls."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="busq-blocking", daemon=True).start()

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        future = asyncio.run_coroutine_threadsafe(make(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the caller: nobody waits for the answer any more
            raise


_lock = threading.Lock()
_present: _Portal | None = None
_inherited: list[_Portal | None] = []


def _portal() -> _Portal:
    global _present
    with _lock:
        if _present is None:
            _present = _Portal()
        return _present


def _after_fork() -> None:
    """The parent's thread did not come along, and its sockets are the parent's: keep them, untouched."""
    global _lock, _present
    _lock = threading.Lock()
    _inherited.append(_present)
    _present = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
