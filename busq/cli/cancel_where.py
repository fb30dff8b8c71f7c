"""
`busq cancel` without jids: the options that choose jobs by what they are, and what is said of such a cancel.

The bus has decided before anything is printed; what is shown then is how far the records and the running jobs are.
"""

from __future__ import annotations

import asyncio
import math
import sys
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from busq.cli import exits
from busq.cli.place import Flag
from busq.protocol.durability import DurabilityWord

if TYPE_CHECKING:
    from busq.cli.place import Place
    from busq.client.bus import Bus
    from busq.client.scope import Scope
    from busq.client.scope_calls import FilteredWish
    from busq.protocol.scope import ScopeLook, Survey

LOOK_S = 0.1  # between two looks for the progress on a terminal

CONDITIONS = (
    "--group, --kind, --queue, --tag, --worker, --jid-prefix, --before, --descendants-of, --where, "
    "or --everything for every job there is"
)
SETTLING = (
    "It is decided: nothing that it hits starts any more. The records follow; --wait waits for them, `busq rules` "
    "shows how far they are."
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which jobs, when no jids name them. Several conditions must all hold."""

    group: str | None = None
    """Jobs of this group."""

    kind: str | None = None
    """Jobs of this kind."""

    queue: str | None = None
    """Jobs of this queue."""

    tag: Annotated[list[str] | None, Parameter(negative="")] = None
    """Jobs with the tag name=value; may be repeated."""

    worker: str | None = None
    """Jobs that this worker runs."""

    jid_prefix: str | None = None
    """Jobs whose jid begins so."""

    before: str | None = None
    """Jobs enqueued before this: 2026-01-02T10:00 (UTC unless it says otherwise), or 10m, 2h, 7d ago."""

    descendants_of: str | None = None
    """The children of this jid, theirs and so on."""

    where: str | None = None
    """An expression over record and arguments, such as "args.path ^= '/tmp/' and attempt > 1"."""

    everything: Flag = False
    """Every job there is."""

    standing: Flag = False
    """Jobs enqueued later as well, until `busq rules revoke`."""

    until: str | None = None
    """The end of a standing rule: a time, or 10m, 2h, 7d from now."""

    dry_run: Flag = False
    """Cancel nothing; say what would be hit, and the digest of that picture."""

    expect: str | None = None
    """The digest of a dry run: cancel what it saw, or nothing (exit 1) when the picture has changed."""

    def given(self) -> list[str]:
        """The options that were given, as they are written."""
        return [
            f"--{field.name.replace('_', '-')}" for field in fields(self) if getattr(self, field.name) != field.default
        ]

    def check(self, *, jids: bool, tombstone: bool, wait: bool) -> None:
        """Raise `UsageError` for what cannot be meant."""
        from busq.errors import UsageError

        given = self.given()
        if jids:
            if given:
                raise UsageError(
                    f"jids name their jobs already, so {given[0]} does not go with them; give one or the other"
                )
            return
        if not set(given) - {"--standing", "--until", "--dry-run", "--expect"}:
            raise UsageError(f"nothing to cancel by: give one or more JIDs, or {CONDITIONS}")
        if tombstone:
            raise UsageError("--tombstone is for jids of jobs not there yet; --standing hits jobs that come later")
        if self.until is not None and not self.standing:
            raise UsageError("--until is the end of a standing rule; give --standing with it")
        if self.standing and self.expect is not None:
            raise UsageError(
                "--expect cannot vouch for the later jobs of a --standing rule; cancel first, then make the rule"
            )
        if wait and self.dry_run:
            raise UsageError("--wait: a dry run has nothing to wait for; leave it out")


async def carry_out(
    place: Place,
    chosen: Chosen,
    *,
    reason: str,
    source: str,
    grace: float | None,
    durability: DurabilityWord,
    wait: float | None,
    output: str,
) -> int:
    """Cancel what is chosen, or look at it; print what came of it and say with which code to exit."""
    from busq.cli.place import opened_bus
    from busq.errors import PictureChanged

    async with opened_bus(place) as bus:
        wish: FilteredWish = {
            **await _wish(bus, chosen),
            "reason": reason,
            "source": source,
            "grace": grace,
            "durability": durability,
        }
        try:
            if chosen.dry_run:
                print_survey(await bus.cancel_where(dry_run=True, **wish), output)
                return exits.DONE
            scope = await bus.cancel_where(**wish)
        except PictureChanged as error:  # the answer is no; nothing is wrong with the question
            exits.tell(str(error))
            return exits.NO
        code = exits.confirmed(scope.confirmed)
        if await _lacks_watchdog(bus):
            exits.tell("no watchdog is alive, and it takes one to settle the records; start `busq watchdog`")
        return max(code, await (_show(scope, output) if wait is None else _wait(scope, wait, output)))


async def _wish(bus: Bus, chosen: Chosen) -> FilteredWish:
    from busq.cli import moments
    from busq.cli.enqueue import tags

    wish: FilteredWish = {
        "group": chosen.group,
        "kind": chosen.kind,
        "queue": chosen.queue,
        "tags": tags(chosen.tag or []) or None,
        "worker": chosen.worker,
        "jid_prefix": chosen.jid_prefix,
        "descendants_of": chosen.descendants_of,
        "where": chosen.where,
        "everything": chosen.everything,
        "standing": chosen.standing,
        "expect": chosen.expect,
    }
    if chosen.until is not None:
        wish["until"] = moments.read(chosen.until, "--until")
    if chosen.before is not None:
        moments.ago(chosen.before, "--before", datetime.now(UTC))  # told before there is a connection
        wish["enqueued_before"] = moments.ago(chosen.before, "--before", await (await bus._link()).reader.now())
    return wish


async def _lacks_watchdog(bus: Bus) -> bool:
    """Whether nobody settles the records; False where this user may not look: what was decided stands all the same."""
    from busq.errors import BusUnavailable

    try:
        now, members = await (await bus._link()).reader.now(), await bus.workers()
    except BusUnavailable:
        return False
    return not any(each.card and each.card.role == "watchdog" and each.is_alive(now) for each in members)


async def _show(scope: Scope, output: str) -> int:
    """Print what has come of it so far."""
    seen = await scope.look()
    print_scope(seen, output)
    if seen.state == "settling" and output == "table":
        print(SETTLING, file=sys.stderr)
    return exits.DONE


async def _wait(scope: Scope, seconds: float, output: str) -> int:
    exits.tell(f"scope {scope.id} is decided, waiting for its jobs to end")
    waiting = asyncio.create_task(scope.wait(timeout=None if math.isinf(seconds) else seconds))
    try:
        if sys.stderr.isatty():
            await _show_progress(scope, waiting)
        print_scope(await waiting, output)
    except TimeoutError as error:
        print_scope(await scope.look(), output)
        exits.tell(str(error))
        return exits.NO
    finally:
        waiting.cancel()
    return exits.DONE


async def _show_progress(scope: Scope, waiting: asyncio.Task[ScopeLook]) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        settling = shown.add_task("records settled", total=None)
        ending = shown.add_task("running jobs ended", total=None)
        while not waiting.done():
            seen = await scope.look()
            signalled = scope.counts["signalled"]
            shown.update(settling, total=seen.total, completed=seen.examined)
            shown.update(ending, total=signalled, completed=signalled - seen.unfinished, visible=signalled > 0)
            await asyncio.wait([waiting], timeout=LOOK_S)


# Printing ------------------------------------------------------------------------------------------------


def print_scope(seen: ScopeLook, output: str) -> None:
    """How far a scope is."""
    from busq.cli.output import print_facts, print_json
    from busq.client.scope import progress

    if output == "json":
        print_json(seen)
        return
    settling = progress(seen) if seen.state == "settling" else ""
    print_facts(
        [
            ("scope", seen.id),
            ("state", seen.state),
            *((verdict, f"{count}") for verdict, count in seen.counts.items()),
            ("ended", named_counts(seen.endings)),
            ("still ending", seen.unfinished or None),
            ("settling", settling),
        ]
    )


def print_survey(survey: Survey, output: str) -> None:
    """What a cancel would hit."""
    from busq.cli.output import print_facts, print_json

    if output == "json":
        print_json(survey)
        return
    print_facts(
        [
            ("jobs", f"{survey.jobs}"),
            ("kinds", named_counts(survey.kinds)),
            ("queues", named_counts(survey.queues)),
            ("states", named_counts(survey.states)),
            ("digest", survey.digest),
        ]
    )
    print(
        "Nothing was cancelled. --expect DIGEST cancels this picture, or nothing when it has changed.", file=sys.stderr
    )


def named_counts(counts: dict[str, int]) -> str:
    """Counts in one line, the greatest first."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} {count}" for name, count in ranked if count)
