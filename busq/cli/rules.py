"""
`busq rules`: the live rules of cancels by filter, and taking them back.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import App, Parameter

from busq.cli import exits
from busq.cli.place import HERE, Output, Place

if TYPE_CHECKING:
    from busq.client.bus import Bus
    from busq.protocol.scope import Rule

rules = App(name="rules")


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A rule, with what it chooses jobs by in words, and its counts so far."""

    id: str
    what: str
    standing: bool
    until: datetime | None
    state: str
    counts: dict[str, int]
    endings: dict[str, int]
    unfinished: int
    reason: str
    source: str
    by: str
    decided_at: datetime | None


class Revoked(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one id: whether there was anything left to take back."""

    id: str
    revoked: bool
    error: str = ""


@rules.default
def listed(*, output: Output = "table", place: Place = HERE) -> None:
    """
    Cancels by filter that are still settling, and standing ones.

    A rule that is settled is gone from here; `busq list --state cancelled` shows what it hit.
    """
    from busq.cli import loop
    from busq.cli.cancel_where import named_counts
    from busq.cli.output import Column, moment, print_json, print_table, since

    found, now = loop.run(_listed(place))
    if output == "json":
        print_json(found)
        return
    columns = [
        Column("ID", kept=True),
        Column("STATE", kept=True, coloured=True),
        Column("WHAT"),
        Column("HIT"),
        Column("UNTIL", wide=True),
        Column("AGE", kept=True, right=True),
        Column("REASON", cut=True, wide=True),
        Column("SOURCE", cut=True, wide=True),
    ]
    rows = [
        (
            each.id,
            each.state,
            each.what,
            named_counts(each.counts),
            moment(each.until) or ("revoked" if each.standing else ""),
            since(each.decided_at, now),
            each.reason,
            each.source,
        )
        for each in found
    ]
    print_table(columns, rows, empty="No live rules: nothing is being settled, and none is standing.")


@rules.command
def revoke(
    ids: Annotated[list[str], Parameter(name="ID", negative="")],
    /,
    *,
    output: Output = "table",
    place: Place = HERE,
) -> int:
    """
    Take rules back: they hit no further job. What they hit stays cancelled.

    Exits 1 when one is unknown, or had been settled already.

    Parameters
    ----------
    ids
        Ids as `busq rules` shows them.
    """
    from busq.cli import loop
    from busq.cli.output import Column, print_json, print_table

    done = loop.run(_revoked(place, list(dict.fromkeys(ids))))
    if output == "json":
        print_json(done)
    else:
        rows = [(each.id, "revoked" if each.revoked else "unchanged", each.error) for each in done]
        print_table([Column("ID", kept=True), Column("IS", kept=True), Column("TROUBLE")], rows, empty="")
    return exits.DONE if all(each.revoked for each in done) else exits.NO


async def _listed(place: Place) -> tuple[list[Line], datetime]:
    from busq.cli.place import opened_bus

    async with opened_bus(place) as bus:
        lines = await asyncio.gather(*(_line(bus, rule) for rule in await bus.rules()))
        return lines, await (await bus._link()).reader.now()


async def _line(bus: Bus, rule: Rule) -> Line:
    from busq.errors import ScopeNotFound

    scope = bus.scope(rule.id)
    state, left = rule.state, 0
    try:
        seen = await scope.look()
        state, left = seen.state, seen.unfinished
    except ScopeNotFound:  # it was settled, and its time is over, since the list was read
        pass
    return Line(
        id=rule.id,
        what=rule.filter.words(),
        standing=rule.standing,
        until=rule.until,
        state=str(state),
        counts=scope.counts,
        endings=scope.endings,
        unfinished=left,
        reason=rule.reason,
        source=rule.source,
        by=rule.by,
        decided_at=rule.decided_at,
    )


async def _revoked(place: Place, ids: list[str]) -> list[Revoked]:
    from busq.cli.place import opened_bus
    from busq.errors import ScopeNotFound

    done: list[Revoked] = []
    async with opened_bus(place) as bus:
        for id in ids:
            try:
                went = await bus.revoke(id)
                done.append(Revoked(id=id, revoked=went, error="" if went else "it had been settled already"))
            except ScopeNotFound as error:
                done.append(Revoked(id=id, revoked=False, error=str(error)))
    return done
