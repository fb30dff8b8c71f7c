"""
What busq says happened, and the one place that turns it into log lines.

Code names an event with its facts: `tell(log, JOB_CANCELLING, jid=…)`. How loud each one is stands here, so that
a level is decided once. Payloads and results are never among the facts.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

WORKER_STARTED = "worker.started"
WORKER_DRAINING = "worker.draining"
WORKER_STOPPED = "worker.stopped"
BUS_LOST = "bus.lost"
BUS_BACK = "bus.back"
HISTORY_CHANGED = "history.changed"
QUEUE_LOST = "queue.lost"
QUEUE_MENDED = "queue.mended"
LOOP_BLOCKED = "loop.blocked"
LOOP_UNBLOCKED = "loop.unblocked"
WORKER_ASKED_TO_DRAIN = "worker.asked_to_drain"
WORKER_LIFELESS = "worker.lifeless"
WORKER_LEAVES = "worker.leaves"
SUSPECTS_TOO_MANY = "suspects.too_many"
JOB_STARTED = "job.started"
JOB_SUCCEEDED = "job.succeeded"
JOB_WAITING = "job.waiting"
JOB_FAILED = "job.failed"
JOB_RETRIED = "job.retried"
HOOK_FAILED = "hook.failed"
JOB_CANCELLED = "job.cancelled"
JOB_CANCELLING = "job.cancelling"
JOB_HANDED_BACK = "job.handed_back"
JOB_REFUSED = "job.refused"
JOB_BURIED = "job.buried"
JOB_TRIPPED = "job.tripped"
JOB_FORCED = "job.forced"
JOB_ABANDONED = "job.abandoned"
JOB_STALE = "job.stale"
JOB_RECLAIMED = "job.reclaimed"
JOB_LOST = "job.lost"
JOB_FINALIZED = "job.finalized"
JOB_EXPIRED = "job.expired"
RULES_SETTLED = "rules.settled"
RULE_UNREADABLE = "rule.unreadable"
SUSPECT_ENDED = "suspect.ended"
ENTRY_BURIED = "entry.buried"
LEASE_LOST = "lease.lost"
TRIP_CALLBACK_FAILED = "trip_callback.failed"
START_FAILED = "start.failed"
SETTLE_FAILED = "settle.failed"
SWEEP_FAILED = "sweep.failed"
CHILD_STARTED = "child.started"
CHILD_REFUSED = "child.refused"
CHILD_DIED = "child.died"
CHILD_SIGNALLED = "child.signalled"
WATCHDOG_STARTED = "watchdog.started"
WATCHDOG_STOPPED = "watchdog.stopped"
WORKER_LOST = "worker.lost"
CLOCK_SET_BACK = "clock.set_back"
WORKER_FORGOTTEN = "worker.forgotten"
HEALTH_SERVING = "health.serving"
SUPERVISOR_STARTED = "supervisor.started"
SUPERVISOR_DRAINING = "supervisor.draining"
SUPERVISOR_STOPPED = "supervisor.stopped"
PROCESS_STARTED = "process.started"
PROCESS_ENDED = "process.ended"
PROCESS_UNHEALTHY = "process.unhealthy"
PROCESS_KILLED = "process.killed"

_LEVELS: dict[str, int] = {
    JOB_STARTED: logging.DEBUG,
    JOB_SUCCEEDED: logging.DEBUG,
    JOB_WAITING: logging.DEBUG,
    JOB_FAILED: logging.WARNING,
    HOOK_FAILED: logging.ERROR,
    JOB_REFUSED: logging.WARNING,
    JOB_BURIED: logging.ERROR,
    JOB_FORCED: logging.WARNING,
    JOB_ABANDONED: logging.WARNING,
    JOB_LOST: logging.ERROR,
    ENTRY_BURIED: logging.ERROR,
    LEASE_LOST: logging.WARNING,
    TRIP_CALLBACK_FAILED: logging.ERROR,
    START_FAILED: logging.ERROR,
    SETTLE_FAILED: logging.ERROR,
    SWEEP_FAILED: logging.ERROR,
    CHILD_STARTED: logging.DEBUG,
    CHILD_REFUSED: logging.ERROR,
    CHILD_DIED: logging.WARNING,
    CHILD_SIGNALLED: logging.WARNING,
    BUS_LOST: logging.ERROR,
    HISTORY_CHANGED: logging.ERROR,
    QUEUE_LOST: logging.ERROR,
    LOOP_BLOCKED: logging.WARNING,
    LOOP_UNBLOCKED: logging.WARNING,
    WORKER_LIFELESS: logging.ERROR,
    WORKER_LEAVES: logging.ERROR,
    SUSPECTS_TOO_MANY: logging.ERROR,
    WORKER_LOST: logging.WARNING,
    CLOCK_SET_BACK: logging.ERROR,
    RULE_UNREADABLE: logging.ERROR,
    PROCESS_STARTED: logging.DEBUG,
    PROCESS_ENDED: logging.WARNING,
    PROCESS_UNHEALTHY: logging.WARNING,
    PROCESS_KILLED: logging.ERROR,
}

Log = structlog.typing.FilteringBoundLogger


def logger(name: str) -> Log:
    """A logger for one part of busq; configured by whoever runs the process, never by the library."""
    log: Log = structlog.get_logger(name)
    return log


_quiet_below = 0


def be_quiet_below(level: int) -> None:
    """Drop events below this level before they cost anything; for the process that configures its logs so."""
    global _quiet_below
    _quiet_below = level


def heard(event: str) -> bool:
    """Whether telling this event would reach a log; asked where gathering its facts costs something."""
    return _LEVELS.get(event, logging.INFO) >= _quiet_below


def tell(log: Log, event: str, *, level: int | None = None, **facts: Any) -> None:
    """Say that `event` happened. `level` overrules the table where the same event is normal in one case only."""
    loud = _LEVELS.get(event, logging.INFO) if level is None else level
    if loud >= _quiet_below:
        log.log(loud, event, **facts)
