"""
The words of a cancel: why it was asked for, what the asker is told, and how an execution ended.

A request is not an ending: `signalled` says that the worker has until the deadline, `ended` says afterwards what
became of the code that was running.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from busq.errors import UsageError
from busq.protocol.durability import Confirmed
from busq.protocol.states import State


class Cause(StrEnum):
    """Why a token was tripped. The last three stop an attempt and do not cancel its job."""

    USER = "user"
    SCOPE = "scope"
    PARENT = "parent"
    EXPIRED = "expired"
    DEADLINE = "deadline"
    SUPERSEDED = "superseded"
    TIMEOUT = "timeout"
    LEASE_LOST = "lease_lost"
    SHUTDOWN = "shutdown"

    @classmethod
    def of(cls, word: str) -> Cause:
        """The cause that a record names. A job that a newer busq asks to stop for a reason of its own stops as well."""
        try:
            return cls(word)
        except ValueError:
            return cls.USER

    @property
    def cancels(self) -> bool:
        """Whether it is the job that shall stop, and not this attempt only."""
        return self not in (Cause.TIMEOUT, Cause.LEASE_LOST, Cause.SHUTDOWN)

    @property
    def rank(self) -> int:
        """
        A cause takes the place of another in a handler's token when its rank is higher; among equals the first stands.

        A cancel stands above all: it decides what becomes of the job. Then a lost lease: nothing that the attempt does
        counts any more. A timeout and a shutdown only end the attempt.
        """
        return 2 if self.cancels else int(self is Cause.LEASE_LOST)


class Verdict(StrEnum):
    """What a cancel was told. Each says what is true now and never more."""

    CANCELLED = "cancelled"
    SIGNALLED = "signalled"
    ALREADY_CANCELLING = "already_cancelling"
    ALREADY_CANCELLED = "already_cancelled"
    ALREADY_FINISHED = "already_finished"
    TOMBSTONED = "tombstoned"
    NOT_FOUND = "not_found"


class Ended(StrEnum):
    """How the execution of a cancelled job ended. All but the last claim that no code of it is running."""

    BEFORE_START = "before_start"
    CONFIRMED = "confirmed"
    COMPLETED = "completed"
    KILLED = "killed"
    ABANDONED = "abandoned"


class CancelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """
    A wish that jobs stop, as it is written down.

    `grace_s` (seconds) stands in for each job's own grace; `tombstone_s` (seconds) makes a later enqueue of an
    unknown jid be born cancelled.
    """

    cause: Cause = Cause.USER
    reason: str = ""
    source: str = ""
    grace_s: float | None = None
    tombstone_s: float | None = None


REASON_LIMIT = 1000  # characters; a reason is a sentence for people, not a payload


def clean_words(words: str, what: str) -> str:
    """
    The caller's own words, fit to be stored in one line of history.

    Control characters become spaces. Raise `UsageError` when there are more than 1,000 characters.
    """
    if not isinstance(words, str):
        raise UsageError(f"{what} takes text, not {type(words).__name__} ({words!r:.60})")
    if len(words) > REASON_LIMIT:
        raise UsageError(f"{what} has {len(words)} characters; at most {REASON_LIMIT} are kept with a job")
    return "".join(c if c.isprintable() else " " for c in words)


def check_label(label: str, what: str) -> str:
    """
    Give back what jobs are found by, a group or a tag, as it was given: two that differ stay different.

    Raise `UsageError` for what has characters that cannot be printed, or more than 1,000 of any.
    """
    if clean_words(label, what) != label:
        odd = next(i for i, c in enumerate(label) if not c.isprintable())
        raise UsageError(f"{what} takes printable characters, and {label!r:.160} has {label[odd]!r} at position {odd}")
    return label


def checked_seconds(seconds: float | None, what: str) -> float | None:
    """A length of time as a caller gave it, None for none. Raise `UsageError` for what is no number of seconds."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
        raise UsageError(f"{what}: {seconds!r} will not do; it takes seconds, 0 or more")
    return float(seconds)


class CancelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a cancel was told.

    `state` is the job's state after the call, None for an unknown jid, or where its record has no state that is known.
    `deadline` (the server's time, UTC) is the moment by which a signalled job is finalized; for a tombstone it is the
    moment at which the tombstone expires. `confirmed` says how far the wish has got, where `durability` was asked for.
    """

    jid: str
    verdict: Verdict
    state: State | None = None
    deadline: datetime | None = None
    confirmed: Confirmed | None = None

    @property
    def accepted(self) -> bool:
        """Whether the job is, or certainly will be, cancelled by a request: this one or one before it."""
        return self.verdict not in (Verdict.ALREADY_FINISHED, Verdict.NOT_FOUND)


class TripFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a token is told when it is tripped. Lengths in seconds; `left_s` runs to the deadline."""

    cause: Cause
    reason: str = ""
    source: str = ""
    grace_s: float = 0.0
    left_s: float = 0.0
