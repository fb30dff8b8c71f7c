"""
Hooks: what `@handler.on_cancel` makes of a function, so that it runs like any handler.

A hook is the handler of the clean-up's own kind, so intake, executors and child processes know nothing of hooks. It
takes one argument and runs where its handler does: an `async def` as a coroutine, a `def` in a thread, or in a child
process when the handler itself does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from busq.callables import Pool, pool_of, refuse_unfit
from busq.errors import ConfigError, UsageError
from busq.handlers import Handler, HandlerOptions
from busq.protocol.codec import decode_result
from busq.protocol.hook import CancelledJob, Occasion, hook_kind, read_clean_up

RETRIES = 3
GRACE_S = 1.0  # a hook that ran into its limit has had its time


class Hook(Handler):
    """
    The `on_cancel` of the handler `of`. `options.timeout_s` left out: `Settings.hook_limit_s`.

    Raise `ConfigError` for a function that does not take one argument, or when the handler has a hook already.
    """

    of: Final[Handler]
    occasion: Final[Occasion]

    def __init__(
        self,
        function: Callable[..., Any],
        of: Handler,
        *,
        timeout_s: float | None = None,
        retries: int = RETRIES,
        never_started: bool = True,
    ) -> None:
        refuse_unfit(function)
        kind = hook_kind(of.kind)
        own = HandlerOptions(timeout_s=timeout_s, retries=retries, grace_s=GRACE_S, pool=_pool(kind, function, of))
        super().__init__(function, kind=kind, options=own)
        self.of = of
        self.occasion = Occasion.ALWAYS if never_started else Occasion.ATTEMPTED
        if of.hook is not None:
            raise ConfigError(f"handler {of.kind!r} has an on_cancel hook already, {of.hook.where}; it takes one")
        try:
            self.signature.bind(of)
        except TypeError as error:
            raise ConfigError(
                f"the on_cancel hook of {of.kind!r} is called with one argument, a busq.CancelledJob, and {self.where} "
                f"does not take that: {error}"
            ) from None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        raise UsageError(f"{self.kind!r} is a hook: it runs by itself after a cancelled job, and cannot be enqueued")

    def unbind(self, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
        """The one argument. Raise `BadPayload`, or `BadArguments` when the job's own ones do not fit its handler."""
        told = read_clean_up(payload)
        positional, named = self.of.unbind(told.payload)
        bound = self.of.signature.bind(*positional, **named)
        bound.apply_defaults()
        job = CancelledJob(
            jid=told.jid,
            kind=self.of.kind,
            args=dict(bound.arguments),
            cause=told.cause,
            reason=told.reason,
            source=told.source,
            ended=told.ended,
            saved=decode_result(told.saved),
            attempt=told.attempt,
        )
        return [job], {}

    @staticmethod
    def _check_kind(kind: str) -> str:
        return kind  # made of one that was checked; no user may write its '/'


def _pool(kind: str, function: Callable[..., Any], of: Handler) -> Pool:
    pool = pool_of(kind, function, None)
    return of.pool if pool is Pool.THREAD and of.pool is Pool.PROCESS else pool
