"""
The demo's judgement: each promise, and whether the recorded histories bear it out.

Only records and histories count, never what the story believes it did. A promise about something that did not come
to happen is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import msgspec

from busq.cli.demo.cast import SETTINGS
from busq.cli.demo.record import AT_WORK, DEAF, SPARE, Record, Recorded
from busq.protocol.cancel import Ended
from busq.protocol.job import Event
from busq.protocol.states import State

LATE_S = 2.0  # a machine under load may be this late in looking at its clock


class Judgement(msgspec.Struct, frozen=True):
    """One promise; whether it was kept, and what was found."""

    promise: str
    kept: bool
    found: str


def judge(record: Record, batches: int) -> list[Judgement]:
    """All promises, in the order of the story."""
    judges: list[tuple[str, Callable[[Record], tuple[bool, str]]]] = [
        ("every batch is compressed and hashed", lambda record: _all_done(record, batches)),
        ("a job cancelled before its start never starts", _before_start),
        ("a job cancelled while it works stops, and says so", _confirmed),
        ("a job that ignores its cancel is finalized by the watchdog", _finalized),
        ("the jobs of a killed worker run again on another", _ran_again),
        ("a cancelled job is never started again", _no_start_after_a_cancel),
        ("who is asked to end drains and ends", _drained),
    ]
    return [Judgement(promise, *found(record)) for promise, found in judges]


def _all_done(record: Record, batches: int) -> tuple[bool, str]:
    done = sum(job.state is State.SUCCEEDED for job in record.packs)
    return done == batches, f"{done} of {batches} jobs succeeded"


def _before_start(record: Record) -> tuple[bool, str]:
    seen = record.special.get(SPARE)
    if seen is None:
        return False, "there is no record of it"
    starts = len(named(seen.events, "started"))
    kept = seen.job.state is State.CANCELLED and seen.job.ended is Ended.BEFORE_START and not starts
    return kept, f"{SPARE}: {_ending(seen)}, started {starts} times"


def _confirmed(record: Record) -> tuple[bool, str]:
    seen = record.special.get(AT_WORK)
    if seen is None:
        return False, "there is no record of it"
    took_s = between(seen.events, "requested", "observed")
    kept = seen.job.state is State.CANCELLED and seen.job.ended is Ended.CONFIRMED and took_s is not None
    took = f"; request to handler {took_s * 1000:.0f} ms" if took_s is not None else ""
    return kept, f"{AT_WORK}: {_ending(seen)}{took}"


def _finalized(record: Record) -> tuple[bool, str]:
    seen = record.special.get(DEAF)
    last = named(seen.events, "finalized") if seen is not None else []
    if seen is None or not last:
        return False, f"{DEAF}: nobody finalized it"
    by = record.names.get(last[-1].by, last[-1].by)
    late_s = _late_s(last[-1].at, seen.job.deadline)
    in_time = late_s is not None and 0 <= late_s <= SETTINGS["watchdog_interval_s"] + LATE_S
    kept = by == "watchdog" and seen.job.ended is Ended.ABANDONED and in_time and record.was_suspect
    when = f" {late_s * 1000:.0f} ms after its deadline" if late_s is not None else ""
    listed = "listed" if record.was_suspect else "not listed"
    return kept, f"{DEAF}: {_ending(seen)}, by {by}{when}, {listed} as a suspect"


def _ran_again(record: Record) -> tuple[bool, str]:
    if not record.held:
        return False, "no worker was killed while it held jobs"
    lost = [jid for jid in record.held if not _ran_elsewhere(record, jid)]
    if lost:
        return False, f"not {', '.join(lost)}"
    return True, f"{', '.join(record.held)}: one loss each, reclaimed by the watchdog, succeeded elsewhere"


def _ran_elsewhere(record: Record, jid: str) -> bool:
    seen = record.special.get(jid)
    if seen is None:
        return False
    owners = [event.by for event in named(seen.events, "started")]
    return (
        seen.job.state is State.SUCCEEDED
        and seen.job.losses == 1
        and len(named(seen.events, "reclaimed")) == 1
        and record.killed in owners
        and owners[-1] != record.killed
    )


def _no_start_after_a_cancel(record: Record) -> tuple[bool, str]:
    cancelled = [seen for seen in record.special.values() if named(seen.events, "requested")]
    again = []
    for seen in cancelled:
        names = [event.name for event in seen.events]
        if "started" in names[names.index("requested") :]:
            again.append(seen.job.jid)
    if again:
        return False, f"started again: {', '.join(again)}"
    return len(cancelled) == 3, f"{len(cancelled)} cancelled, none started again"


def _drained(record: Record) -> tuple[bool, str]:
    found = ", ".join(f"{name}: exit status {status}" for name, status in record.exits.items())
    return bool(record.exits) and not any(record.exits.values()), found or "nobody was there to be asked"


def named(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event.name == name]


def between(events: list[Event], first: str, second: str) -> float | None:
    """Seconds from one event to another; None when one of them is missing."""
    times = [next((event.at for event in events if event.name == name), None) for name in (first, second)]
    return None if times[0] is None or times[1] is None else (times[1] - times[0]).total_seconds()


def _late_s(at: datetime | None, deadline: datetime | None) -> float | None:
    return None if at is None or deadline is None else (at - deadline).total_seconds()


def _ending(seen: Recorded) -> str:
    ended = f", {seen.job.ended!s}" if seen.job.ended is not None else ""
    return f"{seen.job.state!s}{ended}"
