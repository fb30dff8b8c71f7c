"""
What can go wrong, in three families: the caller's mistake, the bus out of reach, and what became of a job.

A message names the thing, what was found and what would do. `Cancelled` stands outside: it is raised inside
handlers and is a `BaseException`, so that an ordinary `except Exception` cannot swallow a cancel.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from busq.protocol.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Sequence

    from busq.protocol.cancel import Cause
    from busq.protocol.job import Job
    from busq.protocol.scope import Survey
    from busq.protocol.states import State


class BusqError(Exception):
    """The root of everything that busq raises on purpose, but for `Cancelled`."""


# The caller's mistakes -----------------------------------------------------------------------------------


class UsageError(BusqError):
    """The call cannot be carried out as it was made; the message says what would do."""


class ConfigError(UsageError):
    """A setting is missing, malformed or contradicts what the bus already holds."""


class BadJid(UsageError):
    """A jid is not 1 to 128 characters of `A-Z a-z 0-9 - _ . :`, or cannot live where it was asked to."""


class BadArguments(UsageError):
    """Arguments do not fit the handler's signature, or cannot be written as MessagePack."""


class BadPayload(UsageError):
    """Bytes from the wire that are not a payload of a version that this busq understands."""


class BadResult(UsageError):
    """What a handler returned cannot be written as MessagePack, or does not fit the type that is asked for."""


class TooLarge(UsageError):
    """A payload, result or batch is over its limit; the message names both."""


class BadWhere(UsageError):
    """
    An expression that does not say which jobs. The message shows it with a caret under the mistake.

    `text` is the expression, `at` the mistake's position in it (0 to its length), `trouble` what is wrong there.
    """

    def __init__(self, text: str, at: int, trouble: str) -> None:
        self.text = text
        self.at = at
        self.trouble = _in_one_line(trouble)
        super().__init__(f"where: {self.trouble}\n{_pointed(text, at)}")

    def __reduce__(self) -> tuple[type[BadWhere], tuple[str, int, str]]:
        return type(self), (self.text, self.at, self.trouble)


def _in_one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _pointed(text: str, at: int, around: int = 60) -> str:
    """Two lines: the text near `at`, cut where it is long, and a caret below."""
    start, end = max(0, at - around), at + around
    shown = _in_one_line(text[start:end])
    front, back = "..." if start else "", "..." if end < len(text) else ""
    # A blank as wide as the character above it, for terminals that give some two columns.
    blank = "".join("\u3000" if unicodedata.east_asian_width(c) in "WF" else " " for c in shown[: at - start])
    return f"  {front}{shown}{back}\n  {' ' * len(front)}{blank}^"


class JidInUse(UsageError):
    """
    A job with this jid still has a record. `state` says what became of it; None: its key holds something that is no
    record, and not of busq.
    """

    def __init__(self, jid: str, state: State | None) -> None:
        found = "its key holds what is no record" if state is None else f"its record still exists, in state {state!s}"
        super().__init__(f"jid {jid!r} is in use: {found}. Choose another jid, or leave it out and busq makes one.")
        self.jid = jid
        self.state = state

    def __reduce__(self) -> tuple[type[JidInUse], tuple[str, State | None]]:
        return type(self), (self.jid, self.state)


class ParentClosed(UsageError):
    """
    The job that was named as parent gains no more children: it has ended, was asked to stop, or is unknown.

    `jid` and `state` are the parent's; `state` is None when there is no record of it.
    """

    def __init__(self, jid: str, state: State | None) -> None:
        if state is None:
            found = "is unknown: it never existed on this bus, or its record has expired"
        elif state == "cancelling":
            found = "was asked to stop (state cancelling)"
        else:
            found = f"has ended (state {state!s})"
        super().__init__(
            f"parent {jid!r} {found}, so it gains no children; nothing was enqueued for this job. Leave parent out and "
            "it is a job of its own."
        )
        self.jid = jid
        self.state = state

    def __reduce__(self) -> tuple[type[ParentClosed], tuple[str, State | None]]:
        return type(self), (self.jid, self.state)


class TooDeep(UsageError):
    """A child of this parent (`jid`) would stand too many generations below the root of its tree."""

    def __init__(self, jid: str, deepest: int) -> None:
        super().__init__(
            f"parent {jid!r} stands {deepest} generations below the root of its tree, and that is the limit; nothing "
            "was enqueued for this job. Leave parent out and it begins a tree of its own."
        )
        self.jid = jid
        self.deepest = deepest

    def __reduce__(self) -> tuple[type[TooDeep], tuple[str, int]]:
        return type(self), (self.jid, self.deepest)


class PictureChanged(UsageError):
    """
    A cancel with `expect=` found other jobs than the dry run before it, and cancelled nothing.

    `expected` is the digest that was given, `survey` what there is now.
    """

    def __init__(self, expected: str, survey: Survey) -> None:
        states = ", ".join(f"{count} {state}" for state, count in survey.states.items() if count)
        super().__init__(
            f"the picture has changed, and nothing was cancelled: expected was digest {expected!r}, found was "
            f"{survey.digest!r} with {survey.jobs} matching jobs{f' ({states})' if states else ''}. "
            "Look again with a dry run, and expect its digest."
        )
        self.expected = expected
        self.survey = survey

    def __reduce__(self) -> tuple[type[PictureChanged], tuple[str, Survey]]:
        return type(self), (self.expected, self.survey)


class BlockingCallInLoop(UsageError):
    """A blocking call was made inside a running event loop; the message names the awaitable form."""


class NoCurrentJob(UsageError):
    """`current_job()` was called outside a handler."""


# The bus out of reach ------------------------------------------------------------------------------------


class BusUnavailable(BusqError):
    """
    Redis did not answer, or answered that it cannot serve now. The call may or may not have taken effect; sending the
    same one again is safe. `trouble` names what was found: unreachable, out_of_memory, read_only, …
    """

    def __init__(self, message: str, trouble: Trouble = Trouble.UNREACHABLE) -> None:
        super().__init__(message)
        self.trouble = trouble

    def __reduce__(self) -> tuple[type[BusUnavailable], tuple[str, Trouble]]:
        return type(self), (str(self), self.trouble)


class UnfitServer(BusUnavailable):
    """The server answers but must not carry a bus: too old, or it evicts keys."""

    def __init__(self, message: str, trouble: Trouble = Trouble.UNFIT) -> None:
        super().__init__(message, trouble)


class TooManyRules(BusqError):
    """As many rules are live as may be; the message says where. A watchdog settles them, and then there is room."""


class QueueFull(BusqError):
    """
    As many jobs wait in the queue as may. `jids` are the jobs of this call that were refused for it; the others are in.

    Nothing of a refused job was written: it may be sent again as it is. On a bus with shards, `waiting` and `limit` are
    those of one shard, which takes its share of the limit.
    """

    def __init__(self, queue: str, waiting: int, limit: int, jids: Sequence[str]) -> None:
        super().__init__(
            f"queue {queue!r} is full: {waiting:,} jobs wait in it and the limit (of a shard) is {limit:,}; "
            f"{len(jids)} of this call were not enqueued. Try again later, add workers, or raise the limit "
            "(max_queue, queue_limit)"
        )
        self.queue = queue
        self.waiting = waiting
        self.limit = limit
        self.jids = list(jids)

    def __reduce__(self) -> tuple[type[QueueFull], tuple[str, int, int, Sequence[str]]]:
        return type(self), (self.queue, self.waiting, self.limit, self.jids)


class RateLimited(BusqError):
    """
    Too many jobs a second. `what` is "queue" or "group", `name` which one; `retry_after_s`: earlier there is no room.

    `jids` are the jobs of this call that were refused for a rate; the others are in. Nothing of a refused job was
    written: it may be sent again as it is.
    """

    def __init__(self, what: str, name: str, rate: float, retry_after_s: float, jids: Sequence[str]) -> None:
        super().__init__(
            f"{what} {name!r} takes {rate:g} jobs a second ({what}_rate); {len(jids)} of this call were not enqueued. "
            f"Try again in {retry_after_s:.3g} s"
        )
        self.what = what
        self.name = name
        self.rate = rate
        self.retry_after_s = retry_after_s
        self.jids = list(jids)

    def __reduce__(self) -> tuple[type[RateLimited], tuple[str, str, float, float, Sequence[str]]]:
        return type(self), (self.what, self.name, self.rate, self.retry_after_s, self.jids)


class BadRecord(BusqError):
    """Redis holds something under a key of the bus that no busq of this version has written."""


# What became of a job ------------------------------------------------------------------------------------


class JobNotFound(BusqError):
    """No record of this jid: it never existed, or its time after the end is over."""

    def __init__(self, jid: str) -> None:
        super().__init__(
            f"no job {jid!r}: it never existed on this bus, or its record has expired "
            "(kept 1 h after success and 24 h after failure or cancel, unless set otherwise)."
        )
        self.jid = jid

    def __reduce__(self) -> tuple[type[JobNotFound], tuple[str]]:
        return type(self), (self.jid,)


class ScopeNotFound(BusqError):
    """No scope of this id: it was never decided on this bus, or its time after the end is over."""

    def __init__(self, id: str) -> None:
        super().__init__(
            f"no scope {id!r}: it was never decided on this bus, or it has expired (kept 24 h after it was settled)."
        )
        self.id = id

    def __reduce__(self) -> tuple[type[ScopeNotFound], tuple[str]]:
        return type(self), (self.id,)


class _JobEnded(BusqError):
    def __init__(self, job: Job, message: str) -> None:
        super().__init__(message)
        self.job = job

    def __reduce__(self) -> tuple[type[_JobEnded], tuple[Job]]:
        return type(self), (self.job,)


class JobFailed(_JobEnded):
    """The awaited job failed. `job` is its terminal record; the handler's own error is in `job.error`."""

    def __init__(self, job: Job) -> None:
        error = job.error
        what = f"{error.type}: {error.message}" if error else f"cause {job.cause}"
        super().__init__(job, f"job {job.jid} ({job.kind}) failed in attempt {job.attempt}: {what}")


class JobCancelled(_JobEnded):
    """The awaited job was cancelled. `job` is its terminal record, with cause, reason, source and ended."""

    def __init__(self, job: Job) -> None:
        reason = f", reason {job.reason!r}" if job.reason else ""
        super().__init__(job, f"job {job.jid} ({job.kind}) was cancelled, {job.ended}; cause {job.cause}{reason}")


# Inside a handler ----------------------------------------------------------------------------------------


class Cancelled(BaseException):
    """
    Raised by `check_cancelled()` inside a handler whose token was tripped, every time it is asked.

    `cause` says why (`user`, `scope`, …; `shutdown`, `timeout` and `lease_lost` stop the attempt but do not cancel
    the job), `reason` holds the caller's own words or "".
    """

    def __init__(self, cause: Cause, reason: str = "") -> None:
        super().__init__(f"cancelled: {cause}" + (f" ({reason})" if reason else ""))
        self.cause = cause
        self.reason = reason

    def __reduce__(self) -> tuple[type[Cancelled], tuple[Cause, str]]:
        return type(self), (self.cause, self.reason)
