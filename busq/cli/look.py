"""
The commands that only look: get, list, history, stats, workers, suspects.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from busq.cli.place import HERE, Output, Place
from busq.protocol.states import State

if TYPE_CHECKING:
    from busq.protocol.job import Event, Job
    from busq.store.reader import QueueStats, Reader, Stats
    from busq.store.roster import Member

T = TypeVar("T")

Jid = Annotated[str, Parameter(name="JID")]


def get(jid: Jid, /, *, output: Output = "table", place: Place = HERE) -> None:
    """One job: its record as it is now."""
    wanted = _checked(jid)
    job, hook = _read(place, lambda reader: _with_hook(reader, wanted))
    print_job(job, output, hook=hook)


def jobs(
    *,
    state: Annotated[list[State] | None, Parameter(negative="")] = None,
    kind: str | None = None,
    queue: str | None = None,
    group: str | None = None,
    limit: int = 100,
    output: Output = "table",
    place: Place = HERE,
) -> None:
    """
    Jobs, live ones first, then the newest endings.

    Parameters
    ----------
    state
        Only these; may be repeated.
    kind
        Only of this kind.
    queue
        Only of this queue.
    group
        Only of this group.
    limit
        At most so many.
    """
    from busq.errors import UsageError

    if limit < 1:
        raise UsageError(f"--limit: {limit} will not do; it takes 1 or more")
    listing, now = _read(
        place,
        lambda reader: _with_now(
            reader, reader.listing(states=state or [], kind=kind, queue=queue, group=group, limit=limit)
        ),
    )
    found = listing.jobs
    only_cancelled = set(state or []) == {State.CANCELLED}
    _print(found, output, lambda: print_cancelled(found, now) if only_cancelled else print_jobs(found, now))
    if listing.more and len(found) < limit:
        print(
            f"{len(found)} shown, and there may be more: the first {listing.looked_at:,} jobs were looked at. Narrow "
            "it by --state or --queue, which are found without looking at others.",
            file=sys.stderr,
        )
    elif len(found) == limit and output == "table":
        print(f"Only the first {limit} are shown; --limit shows more.", file=sys.stderr)


def history(jid: Jid, /, *, output: Output = "table", place: Place = HERE) -> None:
    """What happened to one job, oldest first."""
    wanted = _checked(jid)
    events = _read(place, lambda reader: reader.history(wanted))
    _print(events, output, lambda: _print_history(events))


def stats(*, output: Output = "table", place: Place = HERE) -> None:
    """The bus in numbers."""
    found = _read(place, lambda reader: reader.stats())
    _print(found, output, lambda: _print_stats(found))


def workers(*, output: Output = "table", place: Place = HERE) -> None:
    """Every worker and watchdog, with its lease and what it says of itself."""
    members, now = _read(place, lambda reader: _with_now(reader, reader.members()))
    _print(members, output, lambda: _print_members(members, now))


def suspects(*, output: Output = "table", place: Place = HERE) -> None:
    """Abandoned attempts whose code may still run: nobody could prove that it stopped."""
    from busq.cli.output import Column, print_table, since

    found, now = _read(place, lambda reader: _with_now(reader, reader.suspects()))
    columns = [
        Column("JID", kept=True),
        Column("ATTEMPT", right=True),
        Column("KIND"),
        Column("SINCE", right=True),
        Column("OWNER"),
    ]
    rows = [(each.jid, each.attempt, each.kind, since(each.since, now), each.owner) for each in found]
    _print(found, output, lambda: print_table(columns, rows, empty="No suspects: no abandoned code is known to run."))


# Reading ---------------------------------------------------------------------------------------------------


def _read(place: Place, ask: Callable[[Reader], Awaitable[T]]) -> T:
    from busq.cli import loop
    from busq.cli.place import opened_reader

    async def read() -> T:
        async with opened_reader(place) as (_, reader):
            return await ask(reader)

    return loop.run(read())


async def _with_hook(reader: Reader, jid: str) -> tuple[Job, Job | None]:
    """A job, and the one that cleans up after it, as long as that one has a record."""
    from busq.errors import BadRecord, JobNotFound

    job = await reader.job(jid)
    try:
        return job, await reader.job(job.hook) if job.hook else None
    except (JobNotFound, BadRecord):
        return job, None


async def _with_now(reader: Reader, found: Awaitable[T]) -> tuple[T, datetime]:
    """An answer together with the server's present moment, from which ages are counted."""
    return await found, await server_now(reader)


async def server_now(reader: Reader) -> datetime:
    from busq.store import watch

    return datetime.fromtimestamp(await watch.server_now_ms(reader._store) / 1000, UTC)


def _checked(jid: str) -> str:
    from busq.protocol.jids import check_jid

    return check_jid(jid)


# Printing --------------------------------------------------------------------------------------------------


def _print(value: Any, output: str, as_table: Callable[[], None]) -> None:
    from busq.cli.output import print_json

    if output == "json":
        print_json(value)
    else:
        as_table()


def print_job(job: Job, output: str, *, hook: Job | None = None) -> None:
    """One record in full; `hook`: that of the job that cleans up after it."""
    from busq.cli.output import print_facts

    _print(job, output, lambda: print_facts(_facts(job, hook)))
    if output == "table" and job.error is not None and job.error.traceback:
        from busq.cli.safe import shown

        lines = shown(job.error.traceback, newlines=True).rstrip().split("\n")
        sys.stdout.write("\n" + "".join(f"  {line}\n" for line in lines))


def _facts(job: Job, hook: Job | None) -> list[tuple[str, object]]:
    from busq.cli.output import duration, json_document, moment

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
    from busq.cli.output import print_table

    print_table(job_columns(), job_rows(found, now), empty="No jobs match.")


def print_cancelled(found: Sequence[Job], now: datetime) -> None:
    """Cancelled jobs, with who asked for it and why in place of what all jobs have."""
    from busq.cli.output import NARROW, Column, console, print_table, since

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
    from busq.cli.output import Column

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
    from busq.cli.output import since

    return [
        (job.jid, str(job.state), job.kind, job.queue, job.attempt, since(job.enqueued_at, now), _note(job, now))
        for job in found
    ]


def _note(job: Job, now: datetime) -> str:
    """What is most worth knowing about a job in its state, in a few words."""
    from busq.cli.output import duration

    words = {
        State.SUCCEEDED: "",
        State.FAILED: f"{job.error.type}: {job.error.message}" if job.error else job.cause or "",
        State.CANCELLED: ", ".join(word for word in (job.ended and str(job.ended), job.reason) if word),
        State.SCHEDULED: f"in {duration(max(0.0, (job.due_at - now).total_seconds()))}" if job.due_at else "",
        State.CANCELLING: f"until {job.deadline:%H:%M:%S}, {job.reason}".rstrip(", ") if job.deadline else job.reason,
        State.RUNNING: "" if job.progress is None else f"{job.progress:.0%} {job.progress_note}",
    }.get(job.state, "")
    return words if len(words) <= 60 else words[:59] + "…"


def _print_history(events: Sequence[Event]) -> None:
    from busq.cli.output import Column, duration, moment, print_table

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


def _print_stats(found: Stats) -> None:
    from busq.cli.output import Column, print_facts, print_table

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
    from busq.cli.output import Column

    return [Column("QUEUE"), Column("READY", right=True), Column("HELD", right=True), Column("OLDEST", right=True)]


def queue_rows(queues: Sequence[QueueStats]) -> list[tuple[object, ...]]:
    from busq.cli.output import duration

    return [(each.queue, each.ready, each.held, duration(each.oldest_s)) for each in queues]


def _print_members(members: Sequence[Member], now: datetime) -> None:
    from busq.cli.output import print_table

    print_table(member_columns(), member_rows(members, now), empty="Nobody: no worker and no watchdog is on the bus.")


def member_columns() -> list[Any]:
    from busq.cli.output import Column

    return [
        Column("NAME", kept=True),
        Column("ROLE", kept=True),
        Column("IS", kept=True, coloured=True),
        Column("RUNNING", right=True),
        Column("QUEUES"),
        Column("UP", right=True),
    ]


def member_rows(members: Sequence[Member], now: datetime) -> list[tuple[object, ...]]:
    from busq.cli.output import since

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
