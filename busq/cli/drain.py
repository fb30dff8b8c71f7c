"""
`busq drain`: have workers take no more jobs, let those that run end, and leave.

A worker reads the wish on its beat, so it need not be reachable from here. What it does then is what it does on
SIGTERM; the SIGTERM of whoever takes its pod down afterwards hurries nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter

from busq.cli import exits
from busq.cli.place import HERE, Output, Place, Wait

if TYPE_CHECKING:
    from busq.store import drains
    from busq.store.reader import Reader
    from busq.store.roster import Member

LOOK_S = 0.2  # how often the roster is read while it waits


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one worker: asked, silent (its lease has run out), gone, or still there after the wait."""

    worker: str
    host: str
    running: int
    answer: str


def drain(
    worker: Annotated[str | None, Parameter(name="WORKER")] = None,
    /,
    *,
    here: Annotated[bool, Parameter(negative="")] = False,
    wait: Wait = None,
    output: Output = "table",
    place: Place = HERE,
) -> int:
    """
    Have a worker, or all workers of a pod, take no more jobs, let those that run end, and leave.

    What does not end within the worker's own --shutdown-timeout is handed back, and another worker takes it up. Exits 1
    when there is no such worker, when it is silent, or when one is still there after --wait.

    Parameters
    ----------
    worker
        A worker's name as `busq workers` prints it, or the name of a pod (of a host): all workers there.
    here
        In place of WORKER: the workers of the pod or host that this runs on.
    wait
        Wait until they have left, that many seconds at most; without a number, without end.
    """
    from busq.cli import loop
    from busq.cli.output import Column, print_json, print_table
    from busq.errors import UsageError
    from busq.store.roster import host_name

    if (worker is None) != here:
        raise UsageError("drain takes the name of a worker or of a pod, or --here")
    if worker == "":
        raise UsageError("drain: the name is empty; for the workers of this very pod say --here")
    found = loop.run(_drain(place, host_name(place.settings()) if worker is None else worker, wait))
    if output == "json":
        print_json(found)
    elif found:
        columns = [Column("WORKER", kept=True), Column("RUNNING", right=True), Column("ANSWER", kept=True)]
        print_table(columns, [(each.worker, each.running, each.answer) for each in found], empty="")
    wanted = "asked" if wait is None else "gone"
    return exits.DONE if found and all(each.answer == wanted for each in found) else exits.NO


async def _drain(place: Place, name: str, wait: float | None) -> list[Drained]:
    from busq.cli.place import opened_reader
    from busq.store import drains

    async with opened_reader(place) as (store, reader):
        chosen, whole = _chosen(await reader.members(), name)
        answers = {member.name: await drains.ask(store, member.name, whole) for member in chosen}
        if wait is not None:
            answers = await _wait(reader, answers, wait)
    return [
        Drained(
            worker=member.name,
            host=member.card.host if member.card else "",
            running=member.card.running if member.card else 0,
            answer="gone" if answers[member.name] == "missing" else answers[member.name],
        )
        for member in chosen
    ]


def _chosen(members: Sequence[Member], name: str) -> tuple[list[Member], drains.Whole]:
    """Whom this name means, and whether that is all of a pod. Says why when it is nobody."""
    from busq.store.drains import Whole

    named = [member for member in members if member.name == name]
    if named and named[0].card is not None and named[0].card.role != "worker":
        exits.tell(f"{name} is a {named[0].card.role}, which holds no jobs: stop it with SIGTERM")
        return [], Whole.WORKER
    of_pod = [each for each in members if each.card and each.card.host == name and each.card.role == "worker"]
    if not named and not of_pod:
        there = sorted(each.name for each in members if each.card is None or each.card.role == "worker")
        exits.tell(f"no worker {name!r} and none on a pod of that name; there are: {', '.join(there) or 'none'}")
    return (named, Whole.WORKER) if named else (of_pod, Whole.POD)


async def _wait(reader: Reader, answers: dict[str, str], seconds: float) -> dict[str, str]:
    """Wait until these have left; what is still on the roster then is still `there`."""
    from contextlib import suppress

    left = set(answers)
    with suppress(TimeoutError):
        async with asyncio.timeout(None if math.isinf(seconds) else seconds):
            while True:
                left &= {member.name for member in await reader.members()}
                if not left:
                    break
                await asyncio.sleep(LOOK_S)
    return {name: "there" if name in left else "gone" for name in answers}
