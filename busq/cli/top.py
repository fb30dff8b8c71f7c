"""
`busq top`: the bus, live: numbers, queues, jobs at work, workers.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from busq.cli.place import HERE, Flag, Output, Place
from busq.protocol.job import Job
from busq.protocol.states import State

if TYPE_CHECKING:
    from busq.store.counts import Stats
    from busq.store.reader import Reader
    from busq.store.roster import Member

MOST_JOBS = 20


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on the screen, at one moment of the server's clock."""

    at: datetime
    stats: Stats
    jobs: list[Job]
    workers: list[Member]


def top(
    *,
    interval: float = 1.0,
    once: Flag = False,
    output: Output = "table",
    place: Place = HERE,
) -> None:
    """
    Watch the bus live; Ctrl-C ends it.

    Off a terminal it prints one snapshot.

    Parameters
    ----------
    interval
        Seconds between two looks.
    once
        Print one snapshot.
    """
    from busq.cli import loop
    from busq.cli.output import console, print_json, show
    from busq.errors import UsageError

    if not interval > 0:
        raise UsageError(f"--interval: {interval} will not do; it takes seconds, more than 0")
    if once or output == "json" or not sys.stdout.isatty():
        snapshot = loop.run(_once(place))
        if output == "json":
            print_json(snapshot)
        else:
            for part in _parts(snapshot):
                show(console(), part)
        return
    loop.run(_live(place, interval))


async def _once(place: Place) -> Snapshot:
    from busq.cli.place import opened_reader

    async with opened_reader(place) as (_, reader):
        return await _snapshot(reader)


async def _live(place: Place, interval: float) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from busq.cli.output import console
    from busq.cli.place import opened_reader
    from busq.cli.safe import safe
    from busq.errors import BusUnavailable

    async with opened_reader(place) as (_, reader):
        parts: list[Any] = _parts(await _snapshot(reader))
        with Live(Group(*parts), console=console(), screen=True, auto_refresh=False) as live:
            while True:
                live.update(Group(*parts), refresh=True)
                await asyncio.sleep(interval)
                try:
                    parts = _parts(await _snapshot(reader))
                except BusUnavailable as error:  # the last picture stays, and says that it is old
                    parts = [Text(safe(error), style="red"), *parts[-MOST_PARTS:]]


async def _snapshot(reader: Reader) -> Snapshot:
    return Snapshot(
        stats=await reader.stats(),
        jobs=await reader.jobs(states=[State.RUNNING, State.CANCELLING], limit=MOST_JOBS),
        workers=await reader.members(),
        at=await reader.now(),
    )


MOST_PARTS = 7


def _parts(snapshot: Snapshot) -> list[Any]:
    """The tables of a snapshot, from top to bottom, with a line between."""
    from rich.text import Text

    from busq.cli import tables
    from busq.cli.output import COLOURS, moment, table

    head = Text(f"busq  {moment(snapshot.at)[11:-8]} UTC   ")
    for state, count in snapshot.stats.now.items():
        head.append(f"{state} {count}  ", style=COLOURS.get(state, "") if count else "dim")
    head.append(f"suspects {snapshot.stats.suspects}  ", style="yellow" if snapshot.stats.suspects else "dim")
    head.append(f"dead letters {snapshot.stats.dead}", style="red" if snapshot.stats.dead else "dim")
    if snapshot.stats.settling:
        head.append(f"  settling {snapshot.stats.settling}", style="yellow")
    jobs = tables.job_rows(snapshot.jobs, snapshot.at)
    return [
        head,
        Text(),
        table(tables.queue_columns(), tables.queue_rows(snapshot.stats.queues)),
        Text(),
        table(tables.member_columns(), tables.member_rows(snapshot.workers, snapshot.at)),
        Text(),
        table(tables.job_columns(), jobs) if jobs else Text("No job is running.", style="dim"),
    ]
