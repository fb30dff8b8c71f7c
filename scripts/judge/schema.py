"""
Names on the wire, as data: all that the judge knows of how busq writes things down.

Taken from the README's table of keys and from what a record looks like, not from busq's code: a change of the wire
is to be made here by hand, by somebody who thinks about it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

GROUP = b"busq"

# What may stand after `<namespace>:{s}:`, and what stands there by itself. A key that fits neither is residue.
WITH_NAME = ("job", "queue", "ended", "scope", "children", "fallen", "rate")
ALONE = frozenset({
    "queues", "scheduled", "cancelled", "tombstones", "deadlines", "timers", "workers", "worker_info", "suspects",
    "rules", "walk", "waiting", "cascades", "keyed", "hooks", "dead", "events", "counters", "drains", "birth",
})  # fmt: skip
OF_THE_BUS = ("meta",)

# Keys that a drained bus holds nothing in, or nothing but what is said beside them.
EMPTY_AT_THE_END = ("scheduled", "deadlines", "timers", "waiting", "cascades", "keyed", "walk", "children")

# Fields of a job's record.
STATE, ENTRY, QUEUE, KIND = b"state", b"entry", b"queue", b"kind"
ATTEMPT, TOKEN, OWNER, SETTLED_BY = b"attempt", b"token", b"owner", b"fin"
REQUESTED, CAUSE, DEADLINE, ENDED, FINISHED = b"requested", b"cause", b"deadline", b"ended", b"finished"
ENQUEUED, ADMISSION, PARENT, POLICY, PARKED = b"enqueued", b"seq", b"parent", b"policy", b"parked"
LATE_SUCCESS, LINES = b"late", b"n"
OPEN_CHILDREN, HOOK, ON_CANCEL = b"open", b"hook", b"on_cancel"
GROUP_OF_JOB, TAGS, TERMS, CALL, SCOPE = b"group", b"tags", b"terms", b"call", b"scope"

# Written by an ending and never again.
OUTCOME = frozenset(
    b"state attempt token owner started fin result error cause reason source requested ended finished deadline"
    b" evidence evidence_result evidence_error failures losses entry parked request scope saved progress".split()
)
# Written once, when the job is admitted.
OF_BIRTH = frozenset({ENQUEUED, ADMISSION, CALL, KIND})

HOOK_KIND, FINALIZER_KIND = b"/on_cancel", b"/finalize"


class Key(NamedTuple):
    """A key taken apart: `part` is "job", "queue", "scheduled", …; "" for a key that is not in the table."""

    part: str
    shard: bytes
    name: bytes


class Keys:
    """Takes the keys of one namespace apart, and puts them together."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"{namespace}:".encode()
        self._form = re.compile(rb"\{(\d+)\}:(\w+)(?::(.*))?\Z", re.DOTALL)
        self._known: dict[bytes, Key | None] = {}

    def apart(self, key: bytes) -> Key | None:
        """None for a key of somebody else."""
        try:
            return self._known[key]
        except KeyError:
            made = self._known[key] = self._apart(key)
            return made

    def _apart(self, key: bytes) -> Key | None:
        if not key.startswith(self._prefix):
            return None
        rest = key[len(self._prefix) :]
        if rest.decode("utf-8", "replace") in OF_THE_BUS:
            return Key(rest.decode(), b"", b"")
        found = self._form.match(rest)
        if found is None:
            return Key("", b"", rest)
        part, name = found[2].decode(), found[3]
        known = part in WITH_NAME if name is not None else part in ALONE
        return Key(part if known else "", found[1], name or b"")

    def job(self, shard: bytes, jid: bytes) -> bytes:
        return self._prefix + b"{" + shard + b"}:job:" + jid

    def queue(self, shard: bytes, queue: bytes) -> bytes:
        return self._prefix + b"{" + shard + b"}:queue:" + queue

    def alone(self, shard: bytes, part: str) -> bytes:
        return self._prefix + b"{" + shard + b"}:" + part.encode()


class Line(NamedTuple):
    """One line of history, as a record holds it."""

    name: bytes
    at: int
    attempt: bytes
    by: bytes


def last_line(fields: dict[bytes, bytes]) -> Line | None:
    """The newest line of history that this write brings."""
    count = fields.get(LINES)
    text = fields.get(b"e" + count) if count is not None else None
    if text is None:
        return None
    parts = text.split(b"\t", 4)
    return Line(parts[0], int(parts[1]), parts[2], parts[3]) if len(parts) == 5 else None


def requester(fields: dict[bytes, bytes]) -> Line | None:
    """The line that says that a cancel was asked for, among those of this write."""
    for name, text in fields.items():
        if name[:1] == b"e" and text.startswith(b"requested\t"):
            parts = text.split(b"\t", 4)
            return Line(parts[0], int(parts[1]), parts[2], parts[3]) if len(parts) == 5 else None
    return None


def number_of(record: dict[bytes, bytes], field: bytes) -> float:
    try:
        return float(record.get(field, b"0"))
    except ValueError:
        return 0.0
