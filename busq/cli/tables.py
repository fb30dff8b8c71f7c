"""
What jobs, histories, queues and members look like in a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from busq.cli.output import (
    NARROW,
    Column,
    console,
    duration,
    json_document,
    moment,
    print_facts,
    print_json,
    print_table,
    since,
)
from busq.cli.safe import shown
from busq.protocol.states import State

if TYPE_CHECKING:
    from busq.protocol.job import Event, Job
    from busq.store.counts import QueueStats, Stats
    from busq.store.roster import Member


def print_job(job: Job, output: str, *, hook: Job | None = None) -> None:
    """One record in full; `hook`: that of the job that cleans up after it."""
    if output == "json":
        print_json(job)
        return
    print_facts(_facts(job, hook))
    if job.error is not None and job.error.traceback:
        lines = shown(job.error.traceback, newlines=True).rstrip().split("\n")
        sys.stdout.write("\n" + "".join(f"  {line}\n" for line in lines))


def _facts(job: Job, hook: Job | None) -> list[tuple[str, object]]:
    def document(value: Any) -> str:
        return "" if value is None else " ".join(json_document(value).split())

    ran = job.finished_at - job.started_at if job.finished_at and job.started_at else None
    return [
        ("jid", job.jid),
        ("kind", job.kind),
        ("queue", job.queue),
        ("state", str(job.state)),
        ("ended", job.ended and str(job.ended)),
        ("cause", job.cause),
        ("scope", job.scope),
        ("reason", job.reason),
        ("source", job.source),
        ("attempt", job.attempt),
        ("failures", f"{job.failures} of {job.retries} retries" if job.retries else job.failures or None),
        ("losses", job.losses or None),
        ("progress", None if job.progress is None else f"{job.progress:.0%} {job.progress_note}".strip()),
        ("owner", job.owner),
        ("group", job.group),
        ("tags", ", ".join(f"{name}={value}" for name, value in job.tags.items())),
        ("key", job.key),
        ("parent", job.parent),
        ("on parent's cancel", job.on_parent_cancel if job.parent and not job.finalize_of else None),
        ("depth", job.depth or None),
        ("children", _children(job) if job.children else None),
        ("finalizer of", job.finalize_of),
        ("hook", f"{job.hook}  ({hook.state})" if hook else job.hook),
        ("hook of", job.hook_of),
        ("args", document(job.args) if job.args else None),
        ("kwargs", document(job.kwargs) if job.kwargs else None),
        ("saved", document(job.saved)),
        ("grace", duration(job.grace_s)),
        ("timeout", duration(job.timeout_s)),
        ("enqueued", moment(job.enqueued_at)),
        ("due", moment(job.due_at) if job.state is State.SCHEDULED else None),
        ("expires", moment(job.expires_at)),
        ("due by", moment(job.due_by)),
        ("started", moment(job.started_at)),
        ("requested", moment(job.requested_at)),
        ("deadline", moment(job.deadline)),
        ("finished", moment(job.finished_at) + (f"  (ran {duration(ran.total_seconds())})" if ran else "")),
        ("result", document(job.result)),
        ("evidence", document(job.evidence)),
        ("error", f"{job.error.type}: {job.error.message}" if job.error else None),
    ]


def _children(job: Job) -> str:
    """How many there were, and what is to be said of them: `3 (2 not ended, 1 failed)`."""
    counts = ((job.open_children, "not ended"), (job.failed_children, "failed"))
    said = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f"{job.children} ({said})" if said else str(job.children)


def print_jobs(found: Sequence[Job], now: datetime) -> None:
    print_table(job_columns(), job_rows(found, now), empty="No jobs match.")


def print_cancelled(found: Sequence[Job], now: datetime) -> None:
    """Cancelled jobs, with who asked for it and why in place of what all jobs have."""
    if console().width < NARROW:  # all of it in one column, over as many lines as it takes
        columns = [Column("JID", kept=True), Column("ENDED", kept=True, coloured=True), Column("CAUSE")]
        print_table(columns, [(job.jid, job.ended, _asked_by(job)) for job in found], empty="No jobs match.")
        return
    columns = [
        Column("JID", kept=True),
        Column("KIND", cut=True),
        Column("ENDED", kept=True, coloured=True),
        Column("CAUSE", kept=True),
        Column("SCOPE", kept=True),
        Column("REASON", cut=True),
        Column("SOURCE", cut=True),
        Column("SINCE", kept=True, right=True),
    ]
    rows = [
        (job.jid, job.kind, job.ended, job.cause, job.scope, job.reason, job.source, since(job.finished_at, now))
        for job in found
    ]
    print_table(columns, rows, empty="No jobs match.")


def _asked_by(job: Job) -> str:
    """Why and by whom a job was cancelled, in one sentence: `scope s-01…: profile deleted (by cli)`."""
    cause = " ".join(word for word in (job.cause, job.scope) if word)
    told = f"{cause}: {job.reason}" if job.reason else cause
    return f"{told} (by {job.source})" if job.source else told


def job_columns() -> list[Any]:
    return [
        Column("JID", kept=True),
        Column("STATE", kept=True, coloured=True),
        Column("KIND", cut=True),
        Column("QUEUE", cut=True, wide=True),
        Column("TRY", kept=True, right=True),
        Column("AGE", kept=True, right=True),
        Column("NOTE", cut=True),
    ]


def job_rows(found: Sequence[Job], now: datetime) -> list[tuple[object, ...]]:
    return [
        (job.jid, str(job.state), job.kind, job.queue, job.attempt, since(job.enqueued_at, now), _note(job, now))
        for job in found
    ]


def _note(job: Job, now: datetime) -> str:
    """What is most worth knowing about a job in its state, in a few words."""
    words = {
        State.SUCCEEDED: "",
        State.FAILED: f"{job.error.type}: {job.error.message}" if job.error else job.cause or "",
        State.CANCELLED: ", ".join(word for word in (job.ended and str(job.ended), job.reason) if word),
        State.SCHEDULED: f"in {duration(max(0.0, (job.due_at - now).total_seconds()))}" if job.due_at else "",
        State.CANCELLING: f"until {job.deadline:%H:%M:%S}, {job.reason}".rstrip(", ") if job.deadline else job.reason,
        State.RUNNING: "" if job.progress is None else f"{job.progress:.0%} {job.progress_note}",
    }.get(job.state, "")
    return words if len(words) <= 60 else words[:59] + "…"


def print_history(events: Sequence[Event]) -> None:
    first = next((event.at for event in events if event.at is not None), None)
    columns = [
        Column("AT", kept=True),
        Column("AFTER", kept=True, right=True),
        Column("EVENT", kept=True),
        Column("TRY", kept=True, right=True),
        Column("BY"),
        Column("FACTS"),
    ]
    rows = [
        (
            moment(event.at)[11:-4],
            duration((event.at - first).total_seconds()) if event.at and first else "",
            event.name,
            event.attempt or "",
            event.by,
            event.facts,
        )
        for event in events
    ]
    if first is not None:
        print(f"Since {moment(first)}", file=sys.stderr)
    print_table(columns, rows, empty="Its record holds no history.")


def print_stats(found: Stats) -> None:
    print_table(
        [Column("STATE", coloured=True), Column("JOBS", right=True)],
        [(state, count) for state, count in found.now.items()],
        empty="",
    )
    sys.stdout.write("\n")
    print_table(queue_columns(), queue_rows(found.queues), empty="No queue has ever had a job.")
    sys.stdout.write("\n")
    totals = ", ".join(f"{name} {count}" for name, count in sorted(found.total.items()))
    print_facts(
        [
            ("since ever", totals),
            ("cancels ended", ", ".join(f"{how} {count}" for how, count in sorted(found.endings.items()))),
            ("suspects", str(found.suspects)),
            ("dead letters", str(found.dead)),
            ("rules", f"{found.rules} live, {found.settling} of them still settling"),
        ]
    )


def queue_columns() -> list[Any]:
    return [Column("QUEUE"), Column("READY", right=True), Column("HELD", right=True), Column("OLDEST", right=True)]


def queue_rows(queues: Sequence[QueueStats]) -> list[tuple[object, ...]]:
    return [(each.queue, each.ready, each.held, duration(each.oldest_s)) for each in queues]


def print_members(members: Sequence[Member], now: datetime) -> None:
    print_table(member_columns(), member_rows(members, now), empty="Nobody: no worker and no watchdog is on the bus.")


def member_columns() -> list[Any]:
    return [
        Column("NAME", kept=True),
        Column("ROLE", kept=True),
        Column("IS", kept=True, coloured=True),
        Column("RUNNING", right=True),
        Column("QUEUES"),
        Column("UP", right=True),
    ]


def member_rows(members: Sequence[Member], now: datetime) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for member in members:
        card = member.card
        word = "alive" if member.is_alive(now) else "silent"
        if card is None:
            rows.append((member.name, "?", word, "", "", ""))
            continue
        running = f"{card.running}" + (f" (+{card.suspects})" if card.suspects else "")
        rows.append(
            (
                member.name,
                card.role,
                "draining" if card.draining and word == "alive" else word,
                running if card.role == "worker" else "",
                ", ".join(card.queues),
                since(card.started_at, now),
            )
        )
    return rows
