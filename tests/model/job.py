"""What the plain model remembers: jobs, rules, and the wishes against jids that nobody has enqueued."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from busq.protocol.hook import hook_kind, hook_queue
from busq.protocol.states import State

S = State
LIVE = (S.SCHEDULED, S.QUEUED, S.RUNNING, S.WAITING)
STOPPED = (S.CANCELLING, S.CANCELLED)


@dataclass(eq=False)
class Job:
    """
    `token` and `owner` are those of the newest attempt, `entry` is the one that stands for the job.

    `occasion`: on which its hook runs, as its record says; "" as long as nobody has said so. `parked`: its attempt has
    ended like this, and it waits for its children. `unread`: cancelled while its entry was in the queue, and still is.
    `told`: what its history says of its hook.
    """

    jid: str
    kind: str
    group: str | None = None
    key: str | None = None
    parent: Job | None = None
    policy: str = "cancel"
    args: dict[str, Any] = field(default_factory=dict)
    shard: int = 0
    queue: str = "q"
    state: State = S.QUEUED
    born: str = "enqueued"
    at: int = 0
    due: int = 0
    expires: int | None = None
    due_by: int | None = None
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    refusals: int = 0
    entry: bytes | None = None
    owner: str | None = None
    token: str = ""
    settled: str = ""
    saved: bytes = b""
    parked: str = ""
    cause: str | None = None
    requested: int = 0
    scope: str | None = None
    ended: str | None = None
    signalled: bool = False
    unread: bool = False
    occasion: str = ""
    hook: Job | None = None
    hook_of: Job | None = None
    about: tuple[int, str | None, str | None] = (0, None, None)
    told: list[tuple[str, str]] = field(default_factory=list)
    against: list[Rule] = field(default_factory=list)
    open: list[Job] = field(default_factory=list)
    kids: int = 0
    kids_failed: int = 0
    cancelled_kid: Job | None = None
    finalizer: bool = False
    final: Job | None = None

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def place(self) -> tuple[int, str]:
        return self.shard, self.queue

    def ancestors(self) -> Iterator[Job]:
        above = self.parent
        while above:
            yield above
            above = above.parent


def finalizer_of(job: Job, now: int) -> Job:
    """Its jid is made by the script."""
    return Job(
        "", f"{job.kind}/finalize", job.group, parent=job, args=job.args, shard=job.shard, queue=job.queue, at=now
    )  # fmt: skip


def hook_of(job: Job, now: int) -> Job:
    """The clean-up after a cancelled job, and what it is told: `about` has its attempts, cause and end."""
    return Job(
        "", hook_kind(job.kind), args=job.args, shard=job.shard, queue=hook_queue(job.queue), at=now, saved=job.saved,
        hook_of=job, about=(job.attempt, job.cause, job.ended),
    )  # fmt: skip


@dataclass(eq=False)
class Rule:
    """
    `until`: later arrivals match up to then; 0 for a rule that does not stand. `live`: the shards that it is live in;
    `states` are what it is in each.
    """

    id: str
    condition: Any
    at: int = 0
    until: int = 0
    live: set[int] = field(default_factory=set)
    states: dict[int, str] = field(default_factory=dict)
    verdicts: dict[str, int] = field(default_factory=lambda: {"cancelled": 0, "signalled": 0})
    ended: int = 0
    unfinished: int = 0


@dataclass
class Tombstone:
    """The wish against a jid that no job has, up to a moment; the latest request is known, the first cause stands."""

    until: int
    request: str
    cause: str
