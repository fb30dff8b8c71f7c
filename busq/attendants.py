"""
Attendants: handlers of jobs that are about another job, and that busq makes by itself.

An attendant is the handler of a kind of its own, so intake, executors and child processes know nothing special of it.
It takes one argument and runs where the handler that it belongs to does: an `async def` as a coroutine, a `def` in a
thread, or in a child process when that handler does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgspec

from busq.callables import Pool, pool_of, refuse_unfit
from busq.errors import ConfigError, UsageError
from busq.handlers import Handler, HandlerOptions


class Attendant(Handler):
    """
    What stands beside the handler `of`.

    Raise `ConfigError` for a function that does not take one argument, or when the handler has one of this role.
    """

    ROLE: ClassVar[str]
    """What it is called in messages."""
    TOLD: ClassVar[str]
    """The public name of what it is called with."""
    OCCASION: ClassVar[str]
    """When it runs, in words."""

    of: Final[Handler]

    def __init__(
        self, function: Callable[..., Any], of: Handler, *, kind: str, earlier: Handler | None, options: HandlerOptions
    ) -> None:
        refuse_unfit(function)
        pool = _pool(kind, function, of)
        super().__init__(function, kind=kind, options=msgspec.structs.replace(options, pool=pool))
        self.of = of
        if earlier is not None:
            raise ConfigError(f"handler {of.kind!r} has {self.ROLE} already, {earlier.where}; it takes one")
        try:
            self.signature.bind(of)
        except TypeError as error:
            raise ConfigError(
                f"{self.ROLE} of {of.kind!r} is called with one argument, a {self.TOLD}, and {self.where} "
                f"does not take that: {error}"
            ) from None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        raise UsageError(f"{self.kind!r} is {self.ROLE}: it runs by itself {self.OCCASION}, and cannot be enqueued")

    def arguments_of(self, payload: bytes) -> dict[str, Any]:
        """
        The arguments of the job that this is about: the handler's parameters by name, defaults filled in.

        Raise `BadPayload`, or `BadArguments` when they do not fit that handler.
        """
        positional, named = self.of.unbind(payload)
        bound = self.of.signature.bind(*positional, **named)
        bound.apply_defaults()
        return dict(bound.arguments)

    @staticmethod
    def _check_kind(kind: str) -> str:
        return kind  # made of one that was checked; no user may write its '/'


def _pool(kind: str, function: Callable[..., Any], of: Handler) -> Pool:
    pool = pool_of(kind, function, None)
    return of.pool if pool is Pool.THREAD and of.pool is Pool.PROCESS else pool
