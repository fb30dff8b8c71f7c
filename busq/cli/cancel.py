"""
`busq cancel`: ask jobs to stop, and say of each what is true now. Without jids it is `cancel_where.py` that answers.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from busq.cli import exits
from busq.cli.cancel_where import Chosen
from busq.cli.place import HERE, Output, Place, Wait
from busq.protocol.durability import Confirmed, DurabilityWord

if TYPE_CHECKING:
    from busq.client.bus import Bus
    from busq.protocol.cancel import CancelAnswer

NOTHING_CHOSEN = Chosen()
NOTHING_WRITTEN = ("not_found", "already_finished")
WAITERS = 100  # jobs waited for at once


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """
    What came of one jid. `state` is its state after the call, or after the wait.

    `ended` says how its execution stopped, `took_s` how long that took from the request, by the server's clock.
    """

    jid: str
    verdict: str
    state: str | None
    deadline: datetime | None
    ended: str | None = None
    took_s: float | None = None
    confirmed: Confirmed | msgspec.UnsetType = msgspec.UNSET  # only where it was asked for


def cancel(
    jids: Annotated[list[str] | None, Parameter(name="JID", negative="")] = None,
    /,
    *,
    chosen: Chosen = NOTHING_CHOSEN,
    reason: str = "",
    grace: float | None = None,
    source: str = "cli",
    tombstone: float | None = None,
    durability: DurabilityWord = None,
    wait: Wait = None,
    output: Output = "table",
    place: Place = HERE,
) -> int:
    """
    Ask jobs to stop: those with these jids, or all that match.

    The wish is written down before this returns. Exits 1 when a job is unknown or had finished already; of a cancel
    without jids, when the picture has changed since the dry run.

    Parameters
    ----------
    jids
        Jids; - reads them from stdin.
    reason
        Your own words, kept with the job.
    grace
        Seconds between asking and force, in place of the job's own.
    source
        Who asks, kept with the job.
    tombstone
        When there is no such job: the next enqueue of this jid within so many seconds is born cancelled.
    durability
        What to confirm before it returns: that a replica has the wish (replicated) or that it is on the server's disk
        (fsynced). Exits 1 when it could not be confirmed; the wish is written down all the same.
    wait
        Wait until the jobs have ended, that many seconds at most; without a number, without end. Exits 1 when one
        has not ended, or has not been cancelled.
    """
    from busq.cli import cancel_where, loop

    chosen.check(jids=bool(jids), tombstone=tombstone is not None, wait=wait is not None)
    if not jids:
        return loop.run(
            cancel_where.carry_out(
                place,
                chosen,
                reason=reason,
                source=source,
                grace=grace,
                durability=durability,
                wait=wait,
                output=output,
            )
        )
    wanted = _jids(jids)
    answers, lines = loop.run(_cancel(place, wanted, reason, grace, source, tombstone, durability, wait))
    _print(lines, output, waited=wait is not None)
    written = tombstone is not None or any(line.verdict not in NOTHING_WRITTEN for line in lines)
    code = exits.confirmed(answers[0].confirmed) if written else exits.DONE
    return code if all(_went_through(line, waited=wait is not None) for line in lines) else exits.NO


async def _cancel(
    place: Place,
    jids: Sequence[str],
    reason: str,
    grace: float | None,
    source: str,
    tombstone: float | None,
    durability: DurabilityWord,
    wait: float | None,
) -> tuple[list[CancelAnswer], list[Line]]:
    from busq.cli.place import opened_bus

    async with opened_bus(place) as bus:
        answers = await bus.cancel_many(
            jids, reason=reason, source=source, grace=grace, tombstone=tombstone, durability=durability
        )
        if wait is None:
            return answers, [_line(answer) for answer in answers]
        until = time.monotonic() + wait
        turn = asyncio.Semaphore(WAITERS)
        return answers, await asyncio.gather(*(_ended(bus, answer, until, turn) for answer in answers))


async def _ended(bus: Bus, answer: CancelAnswer, until: float, turn: asyncio.Semaphore) -> Line:
    """The line of one job when it has ended, or when the time is over."""
    from busq.errors import JobNotFound

    if answer.state is None:
        return _line(answer)
    async with turn:
        try:
            left = None if math.isinf(until) else max(0.0, until - time.monotonic())
            job = await bus.wait(answer.jid, timeout=left)
        except TimeoutError:
            job = await bus.get(answer.jid)
        except JobNotFound:  # its record expired meanwhile
            return _line(answer)
    took = None
    if job.finished_at is not None and job.requested_at is not None:
        took = round((job.finished_at - job.requested_at).total_seconds(), 3)
    return Line(
        jid=job.jid,
        verdict=answer.verdict,
        state=job.state,
        deadline=answer.deadline,
        ended=job.ended,
        took_s=took,
        confirmed=answer.confirmed or msgspec.UNSET,
    )


def _line(answer: CancelAnswer) -> Line:
    return Line(
        jid=answer.jid,
        verdict=answer.verdict,
        state=answer.state,
        deadline=answer.deadline,
        confirmed=answer.confirmed or msgspec.UNSET,
    )


def _went_through(line: Line, *, waited: bool) -> bool:
    if line.verdict in NOTHING_WRITTEN:
        return False
    return not waited or line.state in (None, "cancelled")


def _jids(given: Sequence[str]) -> list[str]:
    from busq.cli.app import STDIN
    from busq.errors import UsageError

    read: list[str] = []
    for each in given:
        read += sys.stdin.read().split() if each == STDIN else [each]
    if not read:
        raise UsageError("no jids: stdin was empty")
    return list(dict.fromkeys(read))


def _print(lines: Sequence[Line], output: str, *, waited: bool) -> None:
    from busq.cli.output import Column, duration, moment, print_json, print_table

    if output == "json":
        print_json(lines)
        return
    jid, verdict = Column("JID", kept=True), Column("VERDICT", kept=True, coloured=True)
    state = Column("STATE", coloured=True)
    if waited:
        rows = [(line.jid, line.verdict, line.state, line.ended, duration(line.took_s)) for line in lines]
        print_table([jid, verdict, state, Column("ENDED", coloured=True), Column("TOOK", right=True)], rows, empty="")
    else:
        told = [(line.jid, line.verdict, line.state, moment(line.deadline)) for line in lines]
        print_table([jid, verdict, state, Column("DEADLINE")], told, empty="")
