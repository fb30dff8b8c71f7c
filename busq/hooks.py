"""
Hooks: what `@handler.on_cancel` makes of a function, so that it runs like any handler after a cancelled job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from busq.attendants import Attendant
from busq.handlers import Handler, HandlerOptions
from busq.protocol.codec import decode_result
from busq.protocol.hook import CancelledJob, Occasion, hook_kind, read_clean_up

RETRIES = 3
GRACE_S = 1.0  # a hook that ran into its limit has had its time


class Hook(Attendant):
    """The `on_cancel` of the handler `of`. `options.timeout_s` left out: `Settings.hook_limit_s`."""

    ROLE = "an on_cancel hook"
    TOLD = "busq.CancelledJob"
    OCCASION = "after a cancelled job"

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
        own = HandlerOptions(timeout_s=timeout_s, retries=retries, grace_s=GRACE_S)
        super().__init__(function, of, kind=hook_kind(of.kind), earlier=of.hook, options=own)
        self.occasion = Occasion.ALWAYS if never_started else Occasion.ATTEMPTED

    def unbind(self, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
        """The one argument. Raise `BadPayload`, or `BadArguments` when the job's own ones do not fit its handler."""
        told = read_clean_up(payload)
        job = CancelledJob(
            jid=told.jid,
            kind=self.of.kind,
            args=self.arguments_of(told.payload),
            cause=told.cause,
            reason=told.reason,
            source=told.source,
            ended=told.ended,
            saved=decode_result(told.saved),
            attempt=told.attempt,
        )
        return [job], {}
