"""
`busq enqueue`: put a job on its queue, and wait for its ending if asked to.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from busq.cli import exits
from busq.cli.place import HERE, Flag, Output, Place, Wait
from busq.protocol.durability import Confirmed, DurabilityWord

if TYPE_CHECKING:
    from busq.client.handle import JobHandle


class Enqueued(msgspec.Struct, frozen=True, kw_only=True):
    """What `-o json` says of a job that nobody waits for."""

    jid: str
    kind: str
    queue: str
    state: str
    confirmed: Confirmed | msgspec.UnsetType = msgspec.UNSET  # only where it was asked for


ON_PARENT_CANCEL = (
    "What becomes of it when its parent is cancelled: it is cancelled too (when left out), goes on and the parent "
    "waits for it, or goes on alone."
)
DURABILITY = (
    "What to confirm before it returns: that a replica has the job (replicated) or that it is on the server's disk "
    "(fsynced). Exits 1 when it could not be confirmed; the job is enqueued all the same."
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What `bus.options` takes, as options of a command."""

    queue: str | None = None
    """Left out: default."""

    jid: str | None = None
    """An id of your own, 1 to 128 characters of A-Z a-z 0-9 - _ . :"""

    delay: float | None = None
    """Seconds before which it does not start."""

    group: str | None = None
    """A group that it belongs to, to be found and cancelled by."""

    tag: Annotated[list[str] | None, Parameter(negative="")] = None
    """name=value; may be repeated."""

    parent: str | None = None
    """The job whose child it shall be: one that succeeds only after this one has ended."""

    on_parent_cancel: Annotated[Literal["cancel", "wait", "abandon"] | None, Parameter(help=ON_PARENT_CANCEL)] = None

    key: str | None = None
    """With --supersede: what it is about, in words of your own."""

    supersede: Flag = False
    """Cancel the older job of the same key, if it has not ended."""

    retries: int | None = None
    """How often to try again after a failure."""

    timeout: float | None = None
    """Seconds that one attempt may take."""

    grace: float | None = None
    """Seconds that the handler gets after a cancel, before force."""

    expires: float | None = None
    """Never start it when it is older than that many seconds."""

    deadline: float | None = None
    """Cancel it when it has not ended that many seconds from now, over all attempts."""

    max_queue: int | None = None
    """Refuse it, and exit 1, when as many jobs wait in its queue."""

    durability: Annotated[DurabilityWord, Parameter(help=DURABILITY)] = None

    def given(self) -> dict[str, Any]:
        """Those that were given, by the names that `bus.options` has for them. Raise `UsageError`."""
        found = {
            each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) != each.default
        }
        if named := found.pop("tag", None):
            found["tags"] = tags(named)
        return found


LEFT_OPEN = JobOptions()


def enqueue(
    kind: Annotated[str, Parameter(name="KIND")],
    args: Annotated[str | None, Parameter(name="ARGS")] = None,
    /,
    *,
    options: JobOptions = LEFT_OPEN,
    wait: Wait = None,
    output: Output = "table",
    place: Place = HERE,
) -> int:
    """
    Put a job on its queue, and print its jid.

    What is left out here is for the handler's own settings to say.

    Parameters
    ----------
    kind
        The kind of job: the handler's name.
    args
        One JSON document: an array holds positional arguments, an object keywords. - reads it from stdin.
    wait
        Wait for the ending, that many seconds at most; without a number, without end. Prints the record then, and
        exits 1 unless the job succeeded.
    """
    from busq.cli import loop

    positional, named = arguments(args)
    return loop.run(_enqueue(place, kind, positional, named, options.given(), wait, output))


async def _enqueue(
    place: Place,
    kind: str,
    positional: list[Any],
    named: dict[str, Any],
    options: dict[str, Any],
    wait: float | None,
    output: str,
) -> int:
    from busq.cli.output import print_json
    from busq.cli.place import opened_bus

    async with opened_bus(place) as bus:
        spec = bus.options(**options).spec(kind, *positional, **named)
        [handle] = await bus.enqueue_many([spec])
        code = exits.confirmed(handle.confirmed)
        if wait is not None:
            return max(code, await _wait(handle, wait, output))
        if output == "json":
            print_json(
                Enqueued(
                    jid=handle.jid,
                    kind=kind,
                    queue=spec.job.queue,
                    state=handle.state,
                    confirmed=handle.confirmed or msgspec.UNSET,
                )
            )
        else:
            print(handle.jid)
        return code


async def _wait(handle: JobHandle[Any], seconds: float, output: str) -> int:
    from busq.cli.tables import print_job
    from busq.protocol.states import State

    exits.tell(f"enqueued {handle.jid}, waiting for its ending")
    late: TimeoutError | None = None
    try:
        job = await handle.wait(timeout=None if math.isinf(seconds) else seconds)
    except TimeoutError as error:
        job, late = await handle.get(), error
    print_job(job, output)
    if late is not None:
        exits.tell(str(late))
    return exits.DONE if job.state is State.SUCCEEDED else exits.NO


def arguments(document: str | None) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a JSON document. Raise `UsageError` that says what will not do."""
    from busq.cli.app import STDIN
    from busq.errors import UsageError

    if document is None:
        return [], {}
    try:
        value = msgspec.json.decode(sys.stdin.buffer.read() if document == STDIN else document.encode())
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise UsageError(
            f'ARGS is no JSON document: {error}. It takes one, as \'["a.mp4"]\' or \'{{"path": "a.mp4"}}\'; mind the '
            "shell's quotes"
        ) from None
    if isinstance(value, list):
        return value, {}
    if isinstance(value, dict):
        return [], value
    raise UsageError(f"ARGS takes an array (positional arguments) or an object (keywords), not {document:.60}")


def tags(given: list[str]) -> dict[str, str]:
    """Tags as `name=value`. Raise `UsageError` for anything else."""
    from busq.errors import UsageError

    read: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise UsageError(f"--tag: {each!r} will not do; it takes name=value")
        read[name] = value
    return read
