"""
Where the executors differ, all of it in one place: what force can do.

A story that ends, whenever and however it ends, has the same states, endings and events in every executor. One that
does not end is a coroutine or a thread that nobody can stop: it is given up, counted as a suspect and left to run. A
process is ended and replaced.

                                    coroutine            thread               process
    swallows every cancel           abandoned            abandoned            killed
    loops, or calls C, for ever     abandoned,           abandoned            killed
                                    its worker stands
    waits without a look, for ever  forced: confirmed    abandoned            killed
    a C call past the lease         reclaimed, runs twice                     runs on, once
    past its timeout, for ever      failed, a suspect    failed, a suspect    failed, its process ended
    past the drain, for ever        handed back, ends with its worker         handed back, ended before
"""

from __future__ import annotations

from typing import NamedTuple


class Force(NamedTuple):
    """What it comes to when a story does not end. `stopped`: the code is known to have ended, and history says so."""

    ended: str
    suspects: int
    stopped: bool
    evidence: str | None


ABANDONED = Force("abandoned", suspects=1, stopped=False, evidence=None)
KILLED = Force("killed", suspects=0, stopped=True, evidence="ChildProcessEnded")

FORCE = {"coroutine": ABANDONED, "thread": ABANDONED, "process": KILLED}
"""For a story that force cannot move by words."""

LINGERING = {"coroutine": "confirmed", "thread": "abandoned", "process": "killed"}
"""For one that has heard its cancel and then awaits for ever: the coroutine's awaits are cancelled again."""

ONE_LOCK = {"coroutine": True, "thread": True, "process": False}
"""Whether a C call of the handler holds the interpreter lock that its worker needs."""
