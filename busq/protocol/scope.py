"""
Which jobs a wide cancel covers, the rule that it becomes, and what is known of it afterwards.

A `Filter` is what people say; its `condition()` is what scripts judge (see `where.py`). Every field that is given
narrows it: a job must fit all of them. Nothing given would mean every job, so that has to be said: `everything=True`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import msgspec

from busq.errors import TooLarge, UsageError
from busq.protocol.cancel import check_label
from busq.protocol.jids import flaw_of
from busq.protocol.where import Node, fields_of, parse_where

LARGEST_FILTER = 8192  # bytes as JSON; a live rule is read by every script that touches a job
LONGEST_QUEUE = 64  # characters

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOT_YET = ("worker", "state", "attempt", "failures", "losses", "age")


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """
    Which jobs: those that fit every field that is given. None leaves a field open.

    `tags`: each of these names with this value. `worker`: the jobs that it is running. `jid_prefix`: what their jids
    start with. `enqueued_before`: an aware datetime, by the server's clock. `descendants_of`: children of that job,
    their children and so on, not the job itself. `where`: an expression (see `where.py`). Clean-ups are never meant.
    """

    group: str | None = None
    kind: str | None = None
    queue: str | None = None
    tags: Mapping[str, str] | None = None
    worker: str | None = None
    jid_prefix: str | None = None
    enqueued_before: datetime | None = None
    descendants_of: str | None = None
    where: str | None = None
    everything: bool = False

    def checked(self) -> Filter:
        """
        The same filter with every value in its stored form.

        Raise `UsageError` that names the field, what was given and what would do; `BadWhere` for a bad expression;
        `TooLarge` beyond 8 KiB.
        """
        if not isinstance(self.everything, bool):
            raise UsageError(f"everything: {self.everything!r:.60} will not do; it takes True or False")
        if not self.everything and not self._given():
            raise UsageError(
                "an empty filter would cancel every job of the bus; say which ones (group=, kind=, queue=, tags=, "
                "worker=, jid_prefix=, enqueued_before=, descendants_of=, where=), or everything=True if you mean all"
            )
        checked = msgspec.structs.replace(
            self, **{field: _CHECKS[field](value, field) for field, value in self._given().items()}
        )
        size = len(msgspec.json.encode(checked))
        if size > LARGEST_FILTER:
            raise TooLarge(
                f"a filter of {size} bytes as JSON is over the limit of {LARGEST_FILTER}; say it more shortly"
            )
        return checked

    def condition(self) -> Node:
        """What scripts judge: one `["and", node...]` of everything that is given; every job fits `["and"]`."""
        nodes: list[Node] = [
            ["==", {"f": field}, {"v": value}]
            for field in ("queue", "kind", "group", "worker")
            if (value := getattr(self, field)) is not None
        ]
        if self.jid_prefix is not None:
            nodes.append(["^=", {"f": "jid"}, {"v": self.jid_prefix}])
        if self.enqueued_before is not None:
            nodes.append(["<", {"f": "enqueued"}, {"v": _ms(self.enqueued_before)}])
        nodes += [["==", {"f": "tags", "p": [name]}, {"v": value}] for name, value in sorted((self.tags or {}).items())]
        if self.descendants_of is not None:
            nodes.append(["under", self.descendants_of])
        if self.where is not None:
            nodes.append(parse_where(self.where))
        return ["and", *nodes]

    def words(self) -> str:
        """What it covers, for people: "group 'user:42' and kind 'upload'"; "everything"."""
        said = [
            f"{field} {value!r}" for field in ("group", "kind", "queue") if (value := getattr(self, field)) is not None
        ]
        said += [f"tag {name}={value!r}" for name, value in sorted((self.tags or {}).items())]
        if self.worker is not None:
            said.append(f"running on worker {self.worker!r}")
        if self.jid_prefix is not None:
            said.append(f"jids that start with {self.jid_prefix!r}")
        if self.enqueued_before is not None:
            said.append(f"enqueued before {self.enqueued_before.isoformat()}")
        if self.descendants_of is not None:
            said.append(f"descendants of {self.descendants_of!r}")
        if self.where is not None:
            said.append(f"where {self.where}" if not said else f"({self.where})")
        return " and ".join(said) or "everything"

    def _given(self) -> dict[str, Any]:
        return {field: value for field in _CHECKS if (value := getattr(self, field)) is not None}


def check_standing(filter: Filter) -> None:
    """
    Raise `UsageError` when a standing rule of this filter could never hit what it is made for.

    It is judged when a job arrives, and such a job runs nowhere, is always queued or scheduled and has no history.
    """
    asked = sorted(fields_of(filter.condition()) & set(_NOT_YET), key=_NOT_YET.index)
    if asked:
        raise UsageError(
            f"a standing rule cannot ask for {', '.join(asked)}: it is judged when a job arrives, and a job that has "
            "just arrived has no worker, no attempt behind it and no age. Leave it out, or cancel without standing=True"
        )


def check_moment(value: Any, what: str) -> datetime:
    """The moment in UTC. Raise `UsageError` for anything but an aware datetime; `what` names it."""
    if not isinstance(value, datetime):
        raise UsageError(f"{what}: {value!r:.60} will not do; it takes a datetime with a time zone")
    if value.utcoffset() is None:
        raise UsageError(
            f"{what}: {value!r} has no time zone, so it is another moment on every machine; give one, as in "
            "datetime.now(UTC) or moment.astimezone()"
        )
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"{what}: {value!r} is outside the years 1 to 9999 in UTC") from None


def _ms(moment: datetime) -> int:
    """The first whole millisecond that is not before the moment."""
    return -((_EPOCH - moment) // timedelta(milliseconds=1))


# What each field takes -----------------------------------------------------------------------------------


def _check_words(value: Any, field: str) -> str:
    words = check_label(value, field)
    if not words:
        raise UsageError(f"{field}: it is empty; leave it out to leave it open")
    return words


def _check_name(value: Any, field: str) -> str:
    if isinstance(value, str) and "/" in value:
        raise UsageError(
            f"{field}: {value!r:.160} will not do: names with / are busq's own (clean-ups, finalizers), and those are "
            "not cancelled by name"
        )
    if flaw := flaw_of(value):
        raise UsageError(f"{field}: a {field} {flaw}")
    if field == "queue" and len(value) > LONGEST_QUEUE:
        raise UsageError(
            f"queue: a queue's name takes at most {LONGEST_QUEUE} characters, and {value!r} has {len(value)}"
        )
    return str(value)


def _check_jid(value: Any, field: str) -> str:
    if flaw := flaw_of(value):
        raise UsageError(f"{field}: {'a jid' if field == 'descendants_of' else 'the start of a jid'} {flaw}")
    return str(value)


def _check_tags(value: Any, field: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not value:
        raise UsageError(f"tags: {value!r:.60} will not do; it takes names with values, as in {{'tenant': 'a'}}")
    for name, each in value.items():
        if not isinstance(name, str) or not isinstance(each, str):
            raise UsageError(f"tags: {name!r:.60}: {each!r:.60} will not do; names and values are text")
    return {check_label(name, "a tag"): check_label(each, f"tag {name!r}") for name, each in value.items()}


def _check_where(value: Any, field: str) -> str:
    parse_where(value)
    return str(value)


_CHECKS = {
    "group": _check_words,
    "kind": _check_name,
    "queue": _check_name,
    "tags": _check_tags,
    "worker": _check_words,
    "jid_prefix": _check_jid,
    "enqueued_before": check_moment,
    "descendants_of": _check_jid,
    "where": _check_where,
}


# What is known of a wide cancel --------------------------------------------------------------------------


class ScopeState(StrEnum):
    """
    How far a wide cancel is.

    Settling: decided, and records are still being written. Standing: later arrivals are hit too. Settled: nothing is
    left to write. Revoked: what had not been settled by then is left alone.
    """

    SETTLING = "settling"
    STANDING = "standing"
    SETTLED = "settled"
    REVOKED = "revoked"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """
    A wide cancel in its durable form.

    `standing`: it also hits jobs that arrive later, up to `until` or, without that, until it is revoked. `reason`
    and `source` are the caller's words, `grace_s` (seconds) stands in for each job's own grace, `by` is the process
    that decided it, `decided_at` the server's time then. Moments are in UTC.
    """

    id: str
    filter: Filter
    standing: bool = False
    until: datetime | None = None
    reason: str = ""
    source: str = ""
    grace_s: float | None = None
    decided_at: datetime | None = None
    by: str = ""
    state: ScopeState = ScopeState.SETTLING


class ScopeLook(msgspec.Struct, frozen=True, kw_only=True):
    """
    How far a wide cancel is, over all shards.

    `counts`: jobs hit so far by `Verdict` (cancelled, signalled). `endings`: those of them that have ended, by
    `Ended`. `unfinished`: jobs that were signalled and have not ended. `examined` of `total` records were looked at.
    """

    id: str
    state: ScopeState
    counts: dict[str, int]
    endings: dict[str, int]
    unfinished: int
    examined: int
    total: int

    @property
    def done(self) -> bool:
        """
        Whether every job that was there is settled and every one that was hit has ended.

        A standing rule goes on to hit later arrivals.
        """
        return self.state is not ScopeState.SETTLING and self.unfinished == 0


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a filter would hit now: how many jobs, and how many of each kind, queue and state.

    `digest` stands for this very picture; given as `expect=`, the cancel is refused when the picture has changed.
    """

    jobs: int
    kinds: dict[str, int]
    queues: dict[str, int]
    states: dict[str, int]
    digest: str
