"""
The blocking face of the calls by filter: each does what its namesake of `ScopeCalls` does.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast, overload

from busq.client.scope import BlockingScope, Scope
from busq.client.scope_calls import FilteredWish, Wish
from busq.protocol.scope import Rule, Survey

if TYPE_CHECKING:
    from busq.client.blocking import BlockingBus
    from busq.client.bus import Bus

T = TypeVar("T")


class BlockingScopeCalls(abc.ABC):
    """What `BlockingBus` can do by filter."""

    _bus: Bus

    @abc.abstractmethod
    def _call(self, name: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T: ...

    @overload
    def cancel_where(self, *, dry_run: Literal[True], **wish: Unpack[FilteredWish]) -> Survey: ...
    @overload
    def cancel_where(self, *, dry_run: Literal[False] = False, **wish: Unpack[FilteredWish]) -> BlockingScope: ...
    @overload
    def cancel_where(self, *, dry_run: bool, **wish: Unpack[FilteredWish]) -> BlockingScope | Survey: ...
    def cancel_where(self, *, dry_run: bool = False, **wish: Unpack[FilteredWish]) -> BlockingScope | Survey:
        return self._wide("cancel_where", lambda: self._bus.cancel_where(dry_run=dry_run, **wish))

    @overload
    def cancel_group(self, group: str, /, *, dry_run: Literal[True], **wish: Unpack[Wish]) -> Survey: ...
    @overload
    def cancel_group(
        self, group: str, /, *, dry_run: Literal[False] = False, **wish: Unpack[Wish]
    ) -> BlockingScope: ...
    def cancel_group(self, group: str, /, *, dry_run: bool = False, **wish: Unpack[Wish]) -> BlockingScope | Survey:
        return self._wide("cancel_group", lambda: self._bus.cancel_where(group=group, dry_run=dry_run, **wish))

    @overload
    def cancel_kind(self, kind: str, /, *, dry_run: Literal[True], **wish: Unpack[Wish]) -> Survey: ...
    @overload
    def cancel_kind(self, kind: str, /, *, dry_run: Literal[False] = False, **wish: Unpack[Wish]) -> BlockingScope: ...
    def cancel_kind(self, kind: str, /, *, dry_run: bool = False, **wish: Unpack[Wish]) -> BlockingScope | Survey:
        return self._wide("cancel_kind", lambda: self._bus.cancel_where(kind=kind, dry_run=dry_run, **wish))

    @overload
    def cancel_descendants(self, jid: str, /, *, dry_run: Literal[True], **wish: Unpack[Wish]) -> Survey: ...
    @overload
    def cancel_descendants(
        self, jid: str, /, *, dry_run: Literal[False] = False, **wish: Unpack[Wish]
    ) -> BlockingScope: ...
    def cancel_descendants(self, jid: str, /, *, dry_run: bool = False, **wish: Unpack[Wish]) -> BlockingScope | Survey:
        return self._wide(
            "cancel_descendants", lambda: self._bus.cancel_where(descendants_of=jid, dry_run=dry_run, **wish)
        )

    def scope(self, id: str) -> BlockingScope:
        return self._face(self._bus.scope(id))

    def rules(self) -> list[Rule]:
        return self._call("rules", self._bus.rules)

    def revoke(self, rule_id: str) -> bool:
        return self._call("revoke", lambda: self._bus.revoke(rule_id))

    def _wide(self, name: str, make: Callable[[], Coroutine[Any, Any, Scope | Survey]]) -> BlockingScope | Survey:
        answer = self._call(name, make)
        return self._face(answer) if isinstance(answer, Scope) else answer

    def _face(self, scope: Scope) -> BlockingScope:
        return BlockingScope(cast("BlockingBus", self), scope)
