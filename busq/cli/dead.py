"""
`busq dead`: the dead letters, to be looked at, tried again or thrown away.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from cyclopts import App, Parameter

from busq.cli import exits
from busq.cli.place import HERE, Output, Place

dead = App(name="dead")

Ids = Annotated[list[str], Parameter(name="ID", negative="")]


class Retried(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one letter: the jid of its new job, or why there is none."""

    id: str
    jid: str | None = None
    error: str = ""


@dead.command(name="list")
def letters(*, limit: int = 100, output: Output = "table", place: Place = HERE) -> None:
    """
    Jobs and entries that could not be run, oldest first.

    Parameters
    ----------
    limit
        At most so many.
    """
    from busq.cli import loop
    from busq.cli.output import Column, print_json, print_table, since
    from busq.cli.place import opened_reader
    from busq.errors import UsageError
    from busq.store.letters import DeadLetter

    if limit < 1:
        raise UsageError(f"--limit: {limit} will not do; it takes 1 or more")

    async def read() -> tuple[list[DeadLetter], list[tuple[object, ...]]]:
        async with opened_reader(place) as (_, reader):
            found, now = await reader.dead(limit=limit), await reader.now()
            return found, [
                (each.id, each.jid, each.kind, each.queue, since(each.at, now), _why(each.reason, each.raw))
                for each in found
            ]

    found, rows = loop.run(read())
    if output == "json":
        print_json(found)
        return
    columns = [
        Column("ID", kept=True),
        Column("JID"),
        Column("KIND"),
        Column("QUEUE"),
        Column("AGE", right=True),
        Column("REASON"),
    ]
    print_table(columns, rows, empty="No dead letters.")


@dead.command
def retry(ids: Ids, /, *, output: Output = "table", place: Place = HERE) -> int:
    """
    Enqueue the jobs of letters again, each under a new jid, and remove the letters.

    Exits 1 when one could not be: there is no such letter, it holds no job, or its arguments cannot be read.

    Parameters
    ----------
    ids
        Ids as `busq dead list` shows them.
    """
    from busq.cli import loop
    from busq.cli.output import Column, print_json, print_table

    done = loop.run(_retry(place, ids))
    if output == "json":
        print_json(done)
    else:
        rows = [(each.id, each.jid, each.error) for each in done]
        print_table([Column("ID", kept=True), Column("NEW JID", kept=True), Column("TROUBLE")], rows, empty="")
    return exits.NO if any(each.error for each in done) else exits.DONE


@dead.command
def purge(
    ids: Annotated[list[str] | None, Parameter(name="ID", negative="")] = None,
    /,
    *,
    all: Annotated[bool, Parameter(negative="")] = False,
    output: Output = "table",
    place: Place = HERE,
) -> int:
    """
    Remove letters for good.

    Parameters
    ----------
    ids
        Ids as `busq dead list` shows them.
    all
        Every letter there is.
    """
    from busq.cli import loop
    from busq.cli.output import print_json
    from busq.errors import UsageError

    if bool(ids) == all:
        raise UsageError("give ids of letters or --all" + (", not both" if all else ""))
    purged = loop.run(_purge(place, ids))
    if output == "json":
        print_json({"purged": purged})
    else:
        print(f"{purged} purged")
    return exits.DONE if ids is None or purged == len(set(ids)) else exits.NO


async def _retry(place: Place, ids: list[str]) -> list[Retried]:
    from busq.cli.place import opened_bus, opened_reader
    from busq.errors import UsageError
    from busq.protocol.codec import decode_payload
    from busq.protocol.hook import is_hook
    from busq.protocol.tree import is_finalizer
    from busq.store import letters

    done: list[Retried] = []
    async with opened_reader(place) as (store, _), opened_bus(place) as bus:
        for letter_id in dict.fromkeys(ids):
            letter = await letters.find(store, letter_id)
            if letter is None:
                done.append(Retried(id=letter_id, error="there is no such letter"))
            elif not letter.kind:
                done.append(Retried(id=letter_id, error="it was no job: nothing to enqueue"))
            elif is_hook(letter.kind):
                why = "it was an on_cancel hook, and what it was to be told of its job is gone"
                done.append(Retried(id=letter_id, error=why))
            elif is_finalizer(letter.kind):
                why = "it was a finalizer, and its job has ended without it; enqueue that one again"
                done.append(Retried(id=letter_id, error=why))
            else:
                try:
                    args, kwargs = decode_payload(letter.payload)
                    again = bus.options(**({"queue": letter.queue} if letter.queue else {}))
                    handle = await again.enqueue(letter.kind, *args, **kwargs)
                except UsageError as error:
                    done.append(Retried(id=letter_id, error=str(error)))
                    continue
                # Enqueued first: should we end here, the job runs twice rather than never.
                await letters.remove(store, letter_id)
                done.append(Retried(id=letter_id, jid=handle.jid))
    return done


async def _purge(place: Place, ids: list[str] | None) -> int:
    from busq.cli.place import opened_reader
    from busq.store import letters

    purged = 0
    async with opened_reader(place) as (store, _):
        if ids is not None:
            for letter_id in dict.fromkeys(ids):
                purged += await letters.remove(store, letter_id)
            return purged
        async for step in letters.steps(store):
            for letter_id in step:
                purged += await letters.remove(store, letter_id)
    return purged


def _why(reason: str, raw: list[bytes]) -> str:
    if not raw:
        return reason
    shown = repr(b" ".join(raw))[2:-1]
    return f"{reason}: {shown if len(shown) <= 60 else shown[:59] + '…'}"
