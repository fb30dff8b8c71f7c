"""
A job as people see it: its record, decoded, and the lines of its history.

Moments are aware datetimes in UTC and come from the server's clock; lengths of time are seconds. Nothing here
trusts the bytes: a field that cannot be read becomes None and never an exception.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from busq.errors import BadPayload, BadRecord
from busq.protocol.cancel import Ended
from busq.protocol.codec import ErrorInfo, decode_error, decode_payload, decode_result
from busq.protocol.states import State, is_terminal


def moment(ms: bytes | str | None) -> datetime | None:
    """Milliseconds since the epoch, as written by a script, as a datetime in UTC; None for anything else."""
    number = _number(ms)
    if number is None:
        return None
    try:
        return datetime.fromtimestamp(number / 1000, UTC)
    except (OverflowError, OSError, ValueError):
        return None


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a cancelled handler did after it had been asked to stop: kept, never applied."""

    outcome: str
    result: Any = None
    error: ErrorInfo | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """
    The record of one job at one moment.

    `attempt` counts starts; `failures` handler failures, `losses` workers that died of it. `cause` says why a
    failed or cancelled job ended, `ended` how the execution of a cancelled one did. `progress` is 0 to 1.
    `expires_at`: never started after that; `due_by`: cancelled if it has not ended by then; `deadline` is that of an
    accepted cancel: it is finalized by then.
    `result` is the handler's value when it succeeded; `evidence` what a cancelled handler still returned or raised.
    `hook` is the jid of the job that cleans up after this one, `hook_of` that of the job that this one cleans up after.
    `scope` is the id of the wide cancel that hit it. `children` is how many it ever had, `open_children` how many of
    them have not ended, `failed_children` how many failed; `depth` is 0 for a root, `on_parent_cancel` what a child
    does when its parent is cancelled, `finalize_of` the jid of the job that this one finalizes. `key`: a newer job of
    the same key has this one cancelled.
    """

    jid: str
    kind: str
    queue: str
    state: State
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    retries: int | None = None
    cause: str | None = None
    reason: str = ""
    source: str = ""
    ended: Ended | None = None
    owner: str | None = None
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    result: Any = None
    error: ErrorInfo | None = None
    evidence: Evidence | None = None
    progress: float | None = None
    progress_note: str = ""
    saved: Any = None
    group: str | None = None
    tags: dict[str, str] = {}
    parent: str | None = None
    hook: str | None = None
    hook_of: str | None = None
    scope: str | None = None
    key: str | None = None
    on_parent_cancel: str = "cancel"
    depth: int = 0
    children: int = 0
    open_children: int = 0
    failed_children: int = 0
    finalize_of: str | None = None
    grace_s: float | None = None
    timeout_s: float | None = None
    enqueued_at: datetime | None = None
    due_at: datetime | None = None
    expires_at: datetime | None = None
    due_by: datetime | None = None
    started_at: datetime | None = None
    requested_at: datetime | None = None
    deadline: datetime | None = None
    finished_at: datetime | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended for good."""
        return is_terminal(self.state)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of history: what happened, when (server time), in which attempt (0 before the first), by whom."""

    name: str
    at: datetime | None
    attempt: int
    by: str
    facts: str = ""


class LoggedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the bus-wide log: an event and the job that it belongs to. `id` is the log's own position."""

    id: str
    jid: str
    event: Event


def job_from_record(jid: str, record: Mapping[bytes, bytes]) -> Job:
    """
    Decode one record. Everything but its state may be missing or malformed.

    Raise `BadRecord` for a state that this version does not know.
    """
    args, kwargs = _arguments(record.get(b"payload"))
    terms = _terms(record)
    get = record.get
    return Job(
        jid=jid,
        kind=text(get(b"kind")) or "",
        queue=text(get(b"queue")) or "",
        state=_state(jid, get(b"state")),
        attempt=_whole(get(b"attempt")),
        failures=_whole(get(b"failures")),
        losses=_whole(get(b"losses")),
        retries=terms[0],
        cause=text(get(b"cause")),
        reason=text(get(b"reason")) or "",
        source=text(get(b"source")) or "",
        ended=_ended(get(b"ended")),
        owner=text(get(b"owner")),
        args=args,
        kwargs=kwargs,
        result=_result(get(b"result")),
        error=_error(get(b"error")),
        evidence=_evidence(record),
        progress=_number(get(b"progress")),
        progress_note=text(get(b"progress_note")) or "",
        saved=_result(get(b"saved")),
        group=text(get(b"group")),
        tags=_tags(get(b"tags")),
        parent=text(get(b"parent")),
        hook=text(get(b"hook")),
        hook_of=text(get(b"hook_of")),
        scope=text(get(b"scope")),
        key=text(get(b"key")),
        on_parent_cancel=text(get(b"policy")) or "cancel",
        depth=_whole(get(b"depth")),
        children=_whole(get(b"kids")),
        open_children=_whole(get(b"open")),
        failed_children=_whole(get(b"kids_failed")),
        finalize_of=text(get(b"finalize_of")),
        grace_s=terms[1],
        timeout_s=terms[2],
        enqueued_at=moment(get(b"enqueued")),
        due_at=moment(get(b"due")),
        expires_at=moment(get(b"expires")),
        due_by=moment(get(b"due_by")),
        started_at=moment(get(b"started")),
        requested_at=moment(get(b"requested")),
        deadline=moment(get(b"deadline")),
        finished_at=moment(get(b"finished")),
    )


def decided(job: Job, *, cause: str, reason: str, source: str, scope: str) -> Job:
    """The job as it is to be shown when it has been decided to stop and its record does not say so yet."""
    told = {"cause": cause, "reason": reason, "source": source, "scope": scope or None}
    if job.state in (State.SCHEDULED, State.QUEUED):
        return msgspec.structs.replace(job, state=State.CANCELLED, ended=Ended.BEFORE_START, **told)
    return msgspec.structs.replace(job, state=State.CANCELLING, **told)


def history_from_record(record: Mapping[bytes, bytes]) -> list[Event]:
    """The lines of history that the record still holds, oldest first."""
    last = _whole(record.get(b"n"))
    numbered = ((i, record.get(b"e%d" % i)) for i in range(max(1, last - len(record)), last + 1))
    return [event_from_line(line) for _, line in numbered if line is not None]


def event_from_line(line: bytes) -> Event:
    """One line as the scripts write it: name, ms, attempt, by and facts with tabs between."""
    parts = line.decode("utf-8", "replace").split("\t", 4) + [""] * 4
    return Event(name=parts[0], at=moment(parts[1]), attempt=_whole(parts[2]), by=parts[3], facts=parts[4])


def text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "replace")


def _number(value: bytes | str | None) -> float | None:
    try:
        number = float(value) if value else None
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) else None


def _whole(value: bytes | str | None) -> int:
    number = _number(value)
    return 0 if number is None else int(number)


def _seconds(ms: bytes | None) -> float | None:
    number = _number(ms)
    return None if number is None else number / 1000


def _state(jid: str, value: bytes | None) -> State:
    try:
        return State(text(value) or "")
    except ValueError:
        raise BadRecord(
            f"job {jid!r} is in state {text(value)!r}, which this busq does not know: a newer one wrote it"
        ) from None


def _terms(record: Mapping[bytes, bytes]) -> tuple[int | None, float | None, float | None]:
    """Retries, grace and timeout: of the attempt once one has begun, before that what the producer said."""
    parts = (record.get(b"terms") or b"").split(b" ")
    if len(parts) == 5:
        return _whole(parts[0]), _seconds(parts[2]), _seconds(parts[4])
    retries = _whole(record[b"retries"]) if b"retries" in record else None
    return retries, _seconds(record.get(b"grace")), _seconds(record.get(b"timeout"))


def _ended(value: bytes | None) -> Ended | None:
    try:
        return Ended(value.decode()) if value else None
    except ValueError:
        return None


def _arguments(payload: bytes | None) -> tuple[list[Any] | None, dict[str, Any] | None]:
    if payload is None:
        return None, None
    try:
        return decode_payload(payload)
    except BadPayload:
        return None, None


def _result(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return decode_result(value)
    except BadPayload:
        return None


def _error(value: bytes | None) -> ErrorInfo | None:
    try:
        return decode_error(value) if value else None
    except BadPayload:
        return None


def _evidence(record: Mapping[bytes, bytes]) -> Evidence | None:
    outcome = text(record.get(b"evidence"))
    if outcome is None:
        return None
    return Evidence(
        outcome=outcome,
        result=_result(record.get(b"evidence_result")),
        error=_error(record.get(b"evidence_error")),
    )


def _tags(value: bytes | None) -> dict[str, str]:
    try:
        return msgspec.json.decode(value, type=dict[str, str]) if value else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
