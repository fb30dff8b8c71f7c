"""
What the store's verbs are told, and what they answer.

Plain facts, no behaviour. Milliseconds and bytes where something goes to a script or comes from one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from busq.errors import BadRecord
from busq.protocol.cancel import CancelAnswer, Verdict
from busq.protocol.hook import write_clean_up
from busq.protocol.jids import check_child, check_keyed
from busq.protocol.job import moment
from busq.protocol.states import State
from busq.protocol.tree import write_finished

Value = bytes | str | int | float


class NewJob(msgspec.Struct, frozen=True):
    """
    A job to be admitted. `fields` are further fields of its record, names and values in turn.

    Those called `expires` and `due_by` are given as lengths (ms) and written as moments of the server. `most`: it is
    refused when as many wait in its queue; 0 for what the settings say.
    """

    jid: str
    kind: str
    queue: str
    payload: bytes
    delay_ms: int = 0
    fields: tuple[str | int, ...] = ()
    most: int = 0

    @property
    def size(self) -> int:
        """About how many bytes are sent for it."""
        if not self.fields:  # as nearly all
            return len(self.payload)
        return len(self.payload) + sum(len(each) for each in self.fields if isinstance(each, str))

    def said(self, name: str) -> str | None:
        """One of the further fields; None when it is not among them."""
        for i in range(0, len(self.fields), 2):
            if self.fields[i] == name:
                return str(self.fields[i + 1])
        return None

    def check_shard(self, shards: int) -> None:
        """Raise `BadJid` when it would live elsewhere than its parent, or than the other jobs of its key."""
        if not self.fields:
            return
        parent, key = self.said("parent"), self.said("key")
        if parent is not None:
            check_child(self.jid, parent, shards)
        if key is not None:
            check_keyed(self.jid, key, shards, parent=parent)


Admission = tuple[str, State | None] | tuple[str, None, int] | tuple[str, None, str, int]
"""What an enqueue was told of one job; see `Store.enqueue`."""


class KindTerms(msgspec.Struct, frozen=True):
    """
    What a worker's handler says where the producer left it open. `slack_ms` is beat + force.

    The backoff (seconds) stays with the worker, which alone reckons with it. `expires_ms` and `deadline_ms` run from
    the job's enqueueing. `occasion` is that of the kind's `on_cancel` hook, "" when it has none.
    """

    kind: str
    retries: int
    max_losses: int
    grace_ms: int
    slack_ms: int
    timeout_ms: int | None = None
    backoff_s: float = 1.0
    backoff_max_s: float = 300.0
    expires_ms: int | None = None
    deadline_ms: int | None = None
    occasion: str = ""


class Delivery(msgspec.Struct, frozen=True):
    """An entry that this worker holds, and the token of the attempt that it would begin."""

    entry: bytes
    jid: str
    kind: str
    token: str


class StartAnswer(msgspec.Struct, frozen=True):
    """
    `word` is started, stale, gone, other_kind, odd, newer, unjudged or missing; the rest is set for started, or
    explains.

    Of a hook or a finalizer, `payload` is what it is told of the job that it is about.
    """

    word: str
    detail: str = ""
    attempt: int = 0
    payload: bytes = b""
    failures: int = 0
    retries: int = 0
    grace_s: float = 0.0
    timeout_s: float | None = None
    backoff_s: float | None = None
    backoff_max_s: float | None = None
    saved: bytes = b""


class Note(msgspec.Struct, frozen=True):
    """A line of history that only a worker can write; `ago_ms` before the call."""

    name: str
    ago_ms: int = 0
    facts: str = ""


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """
    How an attempt ended. `token` is the fence; `observed`: the handler had learned of its cancel.

    `stopped` False: its worker has given it up while its code runs on, and it becomes a suspect. `gone`: it stopped
    because the process that it ran in was ended by force. `keep`: its handler's return counts after a cancel, too.
    `hook`: of a hook, how this try ended, in words. `finalizer`: its handler has one, which shall run in the end.
    """

    jid: str
    entry: bytes
    token: str
    attempt: int
    outcome: str
    observed: bool = False
    stopped: bool = True
    gone: bool = False
    keep: bool = False
    result: bytes = b""
    error: bytes = b""
    cause: str = ""
    delay_ms: int = 0
    hook: str = ""
    finalizer: bool = False
    notes: tuple[Note, ...] = ()

    @property
    def facts(self) -> list[Value]:
        """What is to be told beyond the outcome: names and values in turn. Most endings have nothing."""
        facts: list[Value] = []
        if not self.stopped:
            facts += ("observed", "runs")
        elif self.gone or self.observed:
            facts += ("observed", "gone" if self.gone else "1")
        if self.keep:
            facts += ("keep", "1")
        if self.result:
            facts += ("result", self.result)
        if self.error:
            facts += ("error", self.error)
        if self.cause:
            facts += ("cause", self.cause)
        if self.delay_ms:
            facts += ("delay_ms", self.delay_ms)
        if self.hook:
            facts += ("hook", self.hook)
        if self.finalizer:
            facts += ("finalizer", "1")
        for note in self.notes:
            facts += ("note", f"{note.name}\t{note.ago_ms}\t{note.facts}")
        return facts


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """
    A queued job that a worker gives back. `limit` 0: it does not count.

    A counted delay doubles from `delay_ms` up to `most_ms`; after `limit` refusals the job fails with `error`.
    `unknown`: the entry was found among the worker's own after a lost reply, and it runs nothing of it.
    """

    jid: str
    entry: bytes
    why: str
    delay_ms: int = 0
    most_ms: int = 0
    limit: int = 0
    error: bytes = b""
    unknown: bool = False


class Renewal(msgspec.Struct, frozen=True):
    """One attempt in a beat; `progress` is '' when there is nothing new."""

    jid: str
    token: str
    progress: str = ""
    progress_note: str = ""


class RenewAnswer(msgspec.Struct, frozen=True):
    """`word` is running, cancelling, stale or missing; `left_ms` runs to the deadline, `asked_ms` from the request."""

    word: str
    state: str = ""
    cause: str = ""
    reason: str = ""
    source: str = ""
    grace_ms: float = 0.0
    left_ms: float = 0.0
    asked_ms: float = 0.0


class Finalized(NamedTuple):
    """`word` is finalized, early, stale or missing; `asked_s` runs from the request to the end, if this call is it."""

    word: str
    state: str
    asked_s: float = 0.0


class Rewound(NamedTuple):
    """`behind_s`: how far the server's clock is behind what was written, 0 for a good one; `rank`: None at the end."""

    behind_s: float = 0.0
    brought: int = 0
    rank: int | None = None


class Look(msgspec.Struct, frozen=True):
    """A record, empty for none, and the wish that stands against it: cause, reason, source and scope; None without."""

    record: dict[bytes, bytes]
    wish: tuple[str, str, str, str] | None = None


# How answers are read: a record may have been written by anybody ----------------------------------------------


def _state(word: bytes) -> State:
    try:
        return State(word.decode("utf-8", "replace"))
    except ValueError:
        raise BadRecord(f"a record is in state {word[:40]!r}, which this busq does not know") from None


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return number if math.isfinite(number) else 0.0


def _whole(text: str) -> int:
    return int(_number(text))


def rewound(answer: Sequence[bytes]) -> Rewound:
    if len(answer) < 4:
        return Rewound()
    behind_ms, brought, rank = (int(number) for number in answer[1:4])
    return Rewound(behind_ms / 1000, brought, None if rank < 0 else rank)


def admission(answer: Sequence[bytes]) -> Admission:
    word = answer[0].decode()
    if word == "full":
        return word, None, int(answer[1])
    if word == "limited":
        return word, None, answer[1].decode(), int(answer[2])
    return word, _state(answer[1]) if answer[1] else None


def cancel_answer(jid: str, answer: Sequence[bytes]) -> CancelAnswer:
    verdict = Verdict(answer[0].decode())
    state: State | None = None
    deadline: datetime | None = None
    if verdict is Verdict.TOMBSTONED:
        deadline = moment(answer[1])
    elif len(answer) > 1:
        with suppress(BadRecord):  # the verdict stands, and others of the same call wait for theirs
            state = _state(answer[1])
            deadline = moment(answer[2]) if len(answer) > 2 else None
    return CancelAnswer(jid=jid, verdict=verdict, state=state, deadline=deadline)


def start_answer(answer: Sequence[Any], terms: KindTerms) -> StartAnswer:
    word = answer[0].decode()
    if word != "started":
        return StartAnswer(word, answer[1].decode() if len(answer) > 1 else "")
    if len(answer) == 3:  # a first attempt, everything left to the handler
        timeout_s = None if terms.timeout_ms is None else terms.timeout_ms / 1000
        return StartAnswer(word, "", answer[1], answer[2], 0, terms.retries, terms.grace_ms / 1000, timeout_s)
    _, attempt, payload, failures, retries, grace, timeout, backoff, backoff_max, saved, *about = answer
    if about:
        payload = _ABOUT[about[0]](payload, about[1:], saved)
    return StartAnswer(
        word,
        "",
        attempt,
        payload,
        int(failures),
        int(retries),
        int(grace) / 1000,
        None if timeout == b"-" else int(timeout) / 1000,
        int(backoff) / 1000 if backoff else None,
        int(backoff_max) / 1000 if backoff_max else None,
        saved,
    )


def _clean_up(payload: bytes, about: Sequence[bytes], saved: bytes) -> bytes:
    jid, attempt, cause, reason, source, ended = (part.decode("utf-8", "replace") for part in about)
    return write_clean_up(payload, jid, _whole(attempt), cause, reason, source, ended, saved)


def _finished(payload: bytes, about: Sequence[bytes], saved: bytes) -> bytes:
    """What the job itself saved, and not its finalizer."""
    jid, attempt, children, failed, failed_children = (part.decode("utf-8", "replace") for part in about[:5])
    counts = (_whole(attempt), _whole(children), _whole(failed))
    return write_finished(payload, jid, *counts, failed_children.split(), about[5], about[6])


_ABOUT = {b"hook": _clean_up, b"finalize": _finished}
"""How what a job is told of the one that it is about is read, by the word in front."""


def renew_answer(answer: Sequence[Any]) -> RenewAnswer:
    word = answer[0].decode()
    if word != "cancelling":
        return RenewAnswer(word, answer[1].decode() if len(answer) > 1 else word)
    cause, reason, source, grace, left, asked = (part.decode("utf-8", "replace") for part in answer[1:7])
    return RenewAnswer(word, word, cause, reason, source, _number(grace), _number(left), _number(asked))


def finalized(answer: Sequence[Any]) -> Finalized:
    word, state, asked_ms, *_ = *(part.decode("utf-8", "replace") for part in answer), "", "", ""
    return Finalized(word, state, _number(asked_ms) / 1000 if word == "finalized" else 0.0)


def look(answer: Sequence[Any]) -> Look:
    record, *wish = answer
    if not isinstance(record, dict):
        record = dict(zip(record[::2], record[1::2], strict=True))
    if not wish:
        return Look(record)
    cause, reason, source, scope = (part.decode("utf-8", "replace") for part in wish)
    return Look(record, (cause, reason, source, scope))


def words(heard: Sequence[Sequence[Any]]) -> list[tuple[str, str]]:
    return [(answer[0].decode(), answer[1].decode() if len(answer) > 1 else "") for answer in heard]


def in_ms(seconds: float) -> int:
    """A length of time as scripts take it."""
    return round(seconds * 1000)
