"""A job as people see it: whatever bytes a record holds, reading it never raises."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busq.protocol.cancel import Ended
from busq.protocol.codec import ErrorInfo, encode_error, encode_payload, encode_result
from busq.protocol.job import event_from_line, history_from_record, job_from_record, moment
from busq.protocol.states import State

FIELDS = [
    "kind", "queue", "attempt", "failures", "losses", "retries", "cause", "reason", "source", "ended", "owner",
    "payload", "result", "error", "evidence", "evidence_result", "evidence_error", "progress", "progress_note", "saved",
    "group", "tags", "parent", "grace", "timeout", "enqueued", "due", "started", "requested", "deadline", "finished",
    "expires", "due_by", "n", "e1", "e2", "scope", "key", "policy", "depth", "kids", "open", "kids_failed",
    "finalize_of",
]  # fmt: skip
ERROR = ErrorInfo("ValueError", "no", "Traceback")


def test_a_record_is_decoded_field_by_field() -> None:
    job = job_from_record(
        "j",
        {
            b"state": b"cancelled", b"kind": b"k", b"queue": b"q", b"attempt": b"2", b"failures": b"1",
            b"retries": b"3",
            b"cause": b"user", b"reason": "genug: ü".encode(), b"source": b"api", b"ended": b"confirmed",
            b"owner": b"a",
            b"payload": encode_payload((1, "x"), {"y": None}, 1000), b"evidence": b"failed",
            b"evidence_error": encode_error(ERROR), b"progress": b"0.5", b"progress_note": b"half",
            b"saved": encode_result({"at": 7}, 1000), b"tags": b'{"t":"v"}', b"grace": b"2500", b"timeout": b"600000",
            b"enqueued": b"1700000000000", b"deadline": b"1700000007500",
        },
    )  # fmt: skip
    assert (job.state, job.kind, job.queue, job.attempt, job.failures, job.retries) == ("cancelled", "k", "q", 2, 1, 3)
    assert (job.cause, job.reason, job.source, job.ended) == ("user", "genug: ü", "api", Ended.CONFIRMED)
    assert (job.args, job.kwargs, job.saved, job.tags) == ([1, "x"], {"y": None}, {"at": 7}, {"t": "v"})
    assert job.evidence is not None
    assert (job.evidence.outcome, job.evidence.error) == ("failed", ERROR)
    assert (job.progress, job.progress_note, job.grace_s, job.timeout_s) == (0.5, "half", 2.5, 600.0)
    assert job.enqueued_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert job.deadline is not None
    assert (job.deadline - job.enqueued_at).total_seconds() == 7.5
    assert job.is_terminal


def test_a_record_says_what_family_a_job_has() -> None:
    fields = {b"kids": b"12", b"open": b"3", b"kids_failed": b"2", b"scope": b"s1", b"key": "ü".encode()}
    family = {b"policy": b"wait", b"depth": b"4", b"parent": b"p", b"finalize_of": b"f"}
    job = job_from_record("j", {b"state": b"waiting"} | fields | family)
    assert (job.children, job.open_children, job.failed_children, job.scope, job.key) == (12, 3, 2, "s1", "ü")
    assert (job.on_parent_cancel, job.depth, job.parent, job.finalize_of) == ("wait", 4, "p", "f")


def test_a_bare_record_has_defaults() -> None:
    job = job_from_record("j", {b"state": b"queued"})
    assert (job.children, job.open_children, job.failed_children, job.depth, job.on_parent_cancel) == (
        0,
        0,
        0,
        0,
        "cancel",
    )
    assert (job.scope, job.key, job.finalize_of) == (None, None, None)
    assert (job.attempt, job.retries, job.cause, job.reason, job.tags, job.evidence) == (0, None, None, "", {}, None)
    assert not job.is_terminal


@given(record=st.dictionaries(st.sampled_from([name.encode() for name in FIELDS]), st.binary(max_size=40)))
def test_whatever_bytes_a_record_holds_reading_it_does_not_raise(record: dict[bytes, bytes]) -> None:
    job = job_from_record("j", record | {b"state": b"running"})
    assert job.state is State.RUNNING
    history_from_record({k: v for k, v in record.items() if k != b"n"} | {b"n": b"2"})


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [b"", b"\xff", b"\x01", b"\x02\xc0", b"nan", b"inf", b"1e400", b"-1", b"9" * 40])
def test_a_field_that_cannot_be_read_spoils_nothing_else(field: str, value: bytes) -> None:
    job = job_from_record("j", {b"state": b"failed", b"owner": b"w", b"source": b"s", field.encode(): value})
    assert job.state is State.FAILED
    assert field == "owner" or job.owner == "w"
    history_from_record({b"e1": b"x\t1\t1\ta\t", field.encode(): value})


@pytest.mark.parametrize("ms", [None, b"", b"x", b"nan", b"inf", b"1e30", b"-1e30"])
def test_what_is_no_moment_is_none(ms: bytes | None) -> None:
    assert moment(ms) is None


def test_history_is_what_the_record_still_holds_oldest_first() -> None:
    record = {b"n": b"12"} | {b"e%d" % n: b"event%d\t1700000000000\t1\ta\t" % n for n in range(3, 13)}
    assert [event.name for event in history_from_record(record)] == [f"event{n}" for n in range(3, 13)]
    assert history_from_record({}) == []


def test_a_line_of_history_is_read_with_its_tabs() -> None:
    event = event_from_line(b"requested\t1700000000500\t3\tapi\tuser\twith a tab")
    assert (event.name, event.attempt, event.by, event.facts) == ("requested", 3, "api", "user\twith a tab")
    assert event.at is not None
    assert event.at.microsecond == 500_000


@given(st.binary(max_size=80))
def test_any_line_can_be_read(line: bytes) -> None:
    event_from_line(line)
