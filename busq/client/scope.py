"""
What is kept of a cancel that named no jids: a handle to look at it, wait for it, take back the rest.

The cancel itself is decided before there is a handle. A handle only reads, so any number may be made of one id, in any
process: `bus.scope(id)`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from busq.client.link import rung
from busq.errors import ScopeNotFound
from busq.protocol.cancel import Verdict
from busq.protocol.durability import Confirmed
from busq.protocol.scope import ScopeLook, ScopeState

if TYPE_CHECKING:
    from busq.client.blocking import BlockingBus
    from busq.client.link import Link
    from busq.client.scope_calls import ScopeCalls


class Scope:
    """
    A cancel of every job that matched a filter.

    `counts` says how many of them were `cancelled` and how many `signalled`, `endings` how their execution ended: as of
    the last `look` or `wait`, and zero before it.
    """

    def __init__(self, bus: ScopeCalls, id: str) -> None:
        self.id = id
        self.counts: dict[str, int] = _counts({})
        self.endings: dict[str, int] = {}
        self.confirmed: Confirmed | None = None
        """How far the decision had got when the call returned, where `durability` was asked for."""
        self._bus = bus

    async def look(self) -> ScopeLook:
        """How far it is, now. Raise `ScopeNotFound` or `BusUnavailable`."""
        return await self._look(await self._bus._link())

    async def wait(self, timeout: float | None = None) -> ScopeLook:
        """
        Until every job that it hit has ended; waits `timeout` seconds at most (None: for ever).

        A standing rule is waited for until it has settled what was there; it goes on to hit later jobs. Woken by an
        announcement; it does not poll. Raise `ScopeNotFound`, `BusUnavailable`, or a `TimeoutError` that names what is
        unfinished.
        """
        link = await self._bus._link()
        seen = await self._look(link)
        if seen.done:
            return seen
        try:
            async with asyncio.timeout(timeout):
                return await self._until_done(link)
        except TimeoutError:
            seen = await self._look(link)
            if seen.done:
                return seen
            raise TimeoutError(f"scope {self.id} was not done after {timeout} s: {unfinished(seen)}") from None

    async def revoke(self) -> bool:
        """
        Take back what is not settled yet: no further job is hit. What was hit stays cancelled.

        False when it had been settled: nothing was left. Raise `ScopeNotFound` or `BusUnavailable`.
        """
        state = await (await self._bus._link()).scopes.revoke(self.id)
        if state is None:
            raise ScopeNotFound(self.id)
        return state is ScopeState.REVOKED

    async def _until_done(self, link: Link) -> ScopeLook:
        async with link.bell(self.id) as bell:
            while True:
                await rung(bell)
                seen = await self._look(link)
                if seen.done:
                    return seen

    async def _look(self, link: Link) -> ScopeLook:
        seen = await link.scopes.look(self.id)
        if seen is None:
            raise ScopeNotFound(self.id)
        self.counts = _counts(seen.counts)
        self.endings = dict(seen.endings)
        return msgspec.structs.replace(seen, counts=self.counts)

    def __repr__(self) -> str:
        return f"<Scope {self.id}>"


class BlockingScope:
    """The same for blocking code."""

    def __init__(self, bus: BlockingBus, scope: Scope) -> None:
        self._bus = bus
        self._scope = scope

    @property
    def id(self) -> str:
        return self._scope.id

    @property
    def confirmed(self) -> Confirmed | None:
        return self._scope.confirmed

    @property
    def counts(self) -> dict[str, int]:
        return self._scope.counts

    @property
    def endings(self) -> dict[str, int]:
        return self._scope.endings

    def look(self) -> ScopeLook:
        """See `Scope.look`."""
        return self._bus._call(f"scope({self.id!r}).look", self._scope.look)

    def wait(self, timeout: float | None = None) -> ScopeLook:
        """See `Scope.wait`."""
        return self._bus._call(f"scope({self.id!r}).wait", lambda: self._scope.wait(timeout))

    def revoke(self) -> bool:
        """See `Scope.revoke`."""
        return self._bus._call(f"scope({self.id!r}).revoke", self._scope.revoke)

    def __repr__(self) -> str:
        return f"<BlockingScope {self.id}>"


def progress(seen: ScopeLook) -> str:
    """How much of the records a watchdog has looked at, in words."""
    if not seen.total:  # it counts them when it begins
        return "no watchdog has begun with it yet"
    return f"{seen.examined} of {seen.total} records looked at"


def unfinished(seen: ScopeLook) -> str:
    """What a scope that is not done still waits for, in words."""
    running = f"{seen.unfinished} of {seen.counts[Verdict.SIGNALLED]} signalled jobs have not ended"
    if seen.state is ScopeState.SETTLING:
        settling = f"still settling, {progress(seen)}"
        return f"{settling}; {running}" if seen.unfinished else settling
    return running


def _counts(seen: dict[str, int]) -> dict[str, int]:
    return {str(Verdict.CANCELLED): 0, str(Verdict.SIGNALLED): 0, **seen}
