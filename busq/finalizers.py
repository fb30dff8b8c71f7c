"""
Finalizers: what `@handler.finalize` makes of a function, so that it runs like any handler once a job and all of its
children have ended. The job ends as its finalizer does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from busq.attendants import Attendant
from busq.handlers import Handler, HandlerOptions
from busq.protocol.codec import decode_result, fit
from busq.protocol.tree import FinishedJob, finalizer_kind, read_finished


class Finalizer(Attendant):
    """The `finalize` of the handler `of`. Tried again only when it asks for it: its failure is the job's own."""

    ROLE = "a finalizer"
    TOLD = "busq.FinishedJob"
    OCCASION = "when a job and its children have ended"

    def __init__(
        self, function: Callable[..., Any], of: Handler, *, timeout_s: float | None = None, retries: int = 0
    ) -> None:
        own = HandlerOptions(timeout_s=timeout_s, retries=retries)
        super().__init__(function, of, kind=finalizer_kind(of.kind), earlier=of.finalizer, options=own)

    def unbind(self, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
        """The one argument. Raise `BadPayload`, or `BadArguments` when the job's own ones do not fit its handler."""
        told = read_finished(payload)
        job = FinishedJob(
            jid=told.jid,
            kind=self.of.kind,
            args=self.arguments_of(told.payload),
            result=self._result(told.result),
            saved=decode_result(told.saved),
            attempt=told.attempt,
            children=told.children,
            failed=told.failed,
            failed_children=told.failed_children,
        )
        return [job], {}

    def _result(self, written: bytes) -> Any:
        value = decode_result(written)
        try:
            return fit(value, self.of.result_type)
        except Exception:  # a wrong annotation is no reason to fail work that is done: the value as it was written
            return value
