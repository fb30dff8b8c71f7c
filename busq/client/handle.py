"""
Handles: what a producer keeps of a job that it has sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from busq.errors import JobCancelled, JobFailed
from busq.protocol.cancel import CancelAnswer
from busq.protocol.codec import fit
from busq.protocol.durability import Confirmed, DurabilityWord
from busq.protocol.job import Event, Job
from busq.protocol.states import State

if TYPE_CHECKING:
    from busq.client.blocking import BlockingBus
    from busq.client.bus import Bus

R_co = TypeVar("R_co", covariant=True)


class JobHandle(Generic[R_co]):
    """
    A job on its way. `state` is what the enqueue was told: queued, scheduled, or cancelled by a tombstone or a rule.
    `confirmed` says how far it has got, where `durability` was asked for.
    """

    def __init__(
        self, bus: Bus, jid: str, state: State, result_type: Any = Any, confirmed: Confirmed | None = None
    ) -> None:
        self.jid = jid
        self.state = state
        self.confirmed = confirmed
        self._bus = bus
        self._result_type = result_type

    async def result(self, timeout: float | None = None) -> R_co:
        """
        The handler's value, once the job has succeeded; waits `timeout` seconds at most (None: for ever).

        Raise `JobFailed`, `JobCancelled`, `JobNotFound`, or `TimeoutError`.
        """
        return value_of(await self._bus.wait(self.jid, timeout=timeout), self._result_type)  # type: ignore[no-any-return]

    async def wait(self, timeout: float | None = None) -> Job:
        """The terminal record, whatever the ending. See `Bus.wait`."""
        return await self._bus.wait(self.jid, timeout=timeout)

    async def get(self) -> Job:
        """The record as it is now."""
        return await self._bus.get(self.jid)

    async def history(self) -> list[Event]:
        return await self._bus.history(self.jid)

    async def cancel(
        self, *, reason: str = "", source: str = "", grace: float | None = None, durability: DurabilityWord = None
    ) -> CancelAnswer:
        """Ask the job to stop. See `Bus.cancel`."""
        return await self._bus.cancel(self.jid, reason=reason, source=source, grace=grace, durability=durability)

    def __repr__(self) -> str:
        return f"<JobHandle {self.jid}>"


class BlockingHandle(Generic[R_co]):
    """The same for blocking code."""

    def __init__(
        self, bus: BlockingBus, jid: str, state: State, result_type: Any = Any, confirmed: Confirmed | None = None
    ) -> None:
        self.jid = jid
        self.state = state
        self.confirmed = confirmed
        self._bus = bus
        self._result_type = result_type

    def result(self, timeout: float | None = None) -> R_co:
        """See `JobHandle.result`."""
        return value_of(self._bus.wait(self.jid, timeout=timeout), self._result_type)  # type: ignore[no-any-return]

    def wait(self, timeout: float | None = None) -> Job:
        return self._bus.wait(self.jid, timeout=timeout)

    def get(self) -> Job:
        return self._bus.get(self.jid)

    def history(self) -> list[Event]:
        return self._bus.history(self.jid)

    def cancel(
        self, *, reason: str = "", source: str = "", grace: float | None = None, durability: DurabilityWord = None
    ) -> CancelAnswer:
        return self._bus.cancel(self.jid, reason=reason, source=source, grace=grace, durability=durability)

    def __repr__(self) -> str:
        return f"<BlockingHandle {self.jid}>"


def value_of(job: Job, result_type: Any) -> Any:
    """The result of a terminal job as its handler's annotation says; raise `JobFailed` or `JobCancelled`."""
    if job.state is State.SUCCEEDED:
        return job.result if result_type in (Any, None) else fit(job.result, result_type)
    if job.state is State.CANCELLED:
        raise JobCancelled(job)
    raise JobFailed(job)
