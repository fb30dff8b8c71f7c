"""
The commands that only look: get, list, history, stats, workers, suspects.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from busq.cli import tables
from busq.cli.output import Column, print_json, print_table, since
from busq.cli.place import HERE, Output, Place
from busq.protocol.states import State

if TYPE_CHECKING:
    from busq.protocol.job import Job
    from busq.store.reader import Reader

T = TypeVar("T")

Jid = Annotated[str, Parameter(name="JID")]


def get(jid: Jid, /, *, output: Output = "table", place: Place = HERE) -> None:
    """One job: its record as it is now."""
    wanted = _checked(jid)
    job, hook = _read(place, lambda reader: _with_hook(reader, wanted))
    tables.print_job(job, output, hook=hook)


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
    as_table = tables.print_cancelled if set(state or []) == {State.CANCELLED} else tables.print_jobs
    _print(found, output, lambda: as_table(found, now))
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
    _print(events, output, lambda: tables.print_history(events))


def stats(*, output: Output = "table", place: Place = HERE) -> None:
    """The bus in numbers."""
    found = _read(place, lambda reader: reader.stats())
    _print(found, output, lambda: tables.print_stats(found))


def workers(*, output: Output = "table", place: Place = HERE) -> None:
    """Every worker and watchdog, with its lease and what it says of itself."""
    members, now = _read(place, lambda reader: _with_now(reader, reader.members()))
    _print(members, output, lambda: tables.print_members(members, now))


def suspects(*, output: Output = "table", place: Place = HERE) -> None:
    """Abandoned attempts whose code may still run: nobody could prove that it stopped."""
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
    return await found, await reader.now()


def _checked(jid: str) -> str:
    from busq.protocol.jids import check_jid

    return check_jid(jid)


def _print(value: Any, output: str, as_table: Callable[[], None]) -> None:
    if output == "json":
        print_json(value)
    else:
        as_table()
