"""
What is to be recorded, given how a handler ended. No input or output; the store's scripts have the last word.

                    returned            raised a cancellation       raised anything else
    not tripped     succeeded           failure                     failure, retried by policy
    a cancel        finish: the script makes it cancelled and keeps this as evidence
    timeout         failure timed_out, retried by policy; succeeded if it returned before it had observed
    shutdown        succeeded           handed back                 handed back
    lease lost      finish: the script answers stale and adds a line of history

The right column under shutdown is a hand-back too: what a handler raises while it is being interrupted says
nothing about the job. A handler that was not begun after all is a hand-back, whatever the token says.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec

from busq.errors import BadPayload, BusqError, Cancelled, TooLarge
from busq.protocol.cancel import Cause
from busq.protocol.codec import ErrorInfo, describe_error, encode_error, encode_result
from busq.protocol.judgement import retry_delay_s
from busq.protocol.states import Verb
from busq.worker.attempt import Attempt
from busq.worker.executors.base import NotBegun, Told, Written

CANCELLATIONS = (asyncio.CancelledError, Cancelled)

_rng = random.Random()  # jitter needs no secrecy


class Outcome(msgspec.Struct, frozen=True):
    """A verb of the store and what it is told."""

    verb: Verb
    word: str
    result: bytes = b""
    error: ErrorInfo | None = None
    cause: str = ""
    delay_ms: int = 0

    @property
    def error_bytes(self) -> bytes:
        return b"" if self.error is None else encode_error(self.error)

    @property
    def in_words(self) -> str:
        """For the history of the job that a hook cleans up after."""
        if self.verb is Verb.RELEASE:
            return "handed_back"
        if self.error is None or self.cause == "timed_out":
            return self.cause or self.word
        return f"{self.word}: {self.error.type}"


SUCCEEDED = Outcome(Verb.FINISH, "succeeded")


def describe(error: BaseException, limit_bytes: int) -> ErrorInfo:
    """The error in words; one that comes from another process is in words already."""
    return error.info if isinstance(error, Told) else describe_error(error, limit_bytes)


def outcome_of(
    attempt: Attempt, value: Any, error: BaseException | None, *, result_bytes: int, traceback_bytes: int
) -> Outcome:
    """What is to be recorded for an attempt whose handler returned `value` or raised `error`."""
    tripped = attempt.token.facts
    if error is None:
        late = tripped is not None and tripped.cause is Cause.TIMEOUT and attempt.token.observed
        if not late:
            return _returned(value, result_bytes)
        return _failed(attempt, ErrorInfo("TimedOut", _timed_out(attempt)), "timed_out")
    if isinstance(error, NotBegun):
        return Outcome(Verb.RELEASE, "interrupted", cause="no_slot")
    if tripped is not None and tripped.cause is Cause.SHUTDOWN:
        return Outcome(Verb.RELEASE, "interrupted", cause=str(Cause.SHUTDOWN))
    if tripped is not None and tripped.cause is Cause.TIMEOUT:
        info = describe(error, traceback_bytes)
        return _failed(attempt, ErrorInfo("TimedOut", _timed_out(attempt), info.traceback), "timed_out")
    if tripped is not None:
        word = "cancelled" if is_cancellation(error) else "failed"
        return Outcome(Verb.FINISH, word, error=describe(error, traceback_bytes))
    info = describe(error, traceback_bytes)
    if is_cancellation(error):
        info = ErrorInfo(info.type, "the handler was cancelled from inside, though nobody asked for it", info.traceback)
    return _failed(attempt, info, "error")


def unfit(error: BusqError) -> Outcome:
    """A job that cannot be run with what it was sent: failed at once, for another attempt would fail alike."""
    cause = "bad_payload" if isinstance(error, BadPayload) else "bad_arguments"
    return Outcome(Verb.FINISH, "failed", error=ErrorInfo(type(error).__name__, str(error)), cause=cause)


def abandoned(attempt: Attempt) -> Outcome:
    """An attempt that was given up after its timeout, its code still running."""
    return _failed(attempt, ErrorInfo("TimedOut", _timed_out(attempt) + " and could not be stopped"), "timed_out")


def is_cancellation(error: BaseException) -> bool:
    """Whether this says "I was cancelled": also a group, as a `TaskGroup` raises it, of nothing but cancellations."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_cancellation(each) for each in error.exceptions)
    return error.cancellation if isinstance(error, Told) else isinstance(error, CANCELLATIONS)


def _returned(value: Any, result_bytes: int) -> Outcome:
    if value is None:
        return SUCCEEDED
    if isinstance(value, Written):
        if value.unfit is not None:
            return Outcome(Verb.FINISH, "failed", error=value.unfit, cause=value.cause)
        return Outcome(Verb.FINISH, "succeeded", result=value.result)
    try:
        return Outcome(Verb.FINISH, "succeeded", result=encode_result(value, result_bytes))
    except BusqError as error:
        # The work is done and would be done twice by a retry, so this failure is final.
        cause = "result_too_large" if isinstance(error, TooLarge) else "bad_result"
        return Outcome(Verb.FINISH, "failed", error=ErrorInfo(type(error).__name__, str(error)), cause=cause)


def _failed(attempt: Attempt, info: ErrorInfo, cause: str) -> Outcome:
    delay = retry_delay_s(
        attempt.failures + 1, backoff_s=attempt.backoff_s, backoff_max_s=attempt.backoff_max_s, rng=_rng
    )
    return Outcome(Verb.RETRY, "failed", error=info, cause=cause, delay_ms=round(delay * 1000))


def _timed_out(attempt: Attempt) -> str:
    return f"the handler ran longer than its timeout of {attempt.timeout_s:g} s"
