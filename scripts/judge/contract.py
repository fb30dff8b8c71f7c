"""
What the contract says of states, as data: written by hand from its words, not taken from busq.

A terminal state is never left. An accepted cancel ends in `cancelled`, unless the handler turned this round for
itself; nothing that was asked to stop is queued, scheduled or started again.
"""

from __future__ import annotations

SCHEDULED, QUEUED, RUNNING, WAITING = b"scheduled", b"queued", b"running", b"waiting"
CANCELLING, SUCCEEDED, FAILED, CANCELLED = b"cancelling", b"succeeded", b"failed", b"cancelled"

TERMINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})
STATES = TERMINAL | {SCHEDULED, QUEUED, RUNNING, WAITING, CANCELLING}

# From where to where one write may move a job; None: it is not there yet.
MOVES: dict[bytes | None, frozenset[bytes]] = {
    None: frozenset({SCHEDULED, QUEUED, CANCELLED}),  # cancelled: by a tombstone or a standing rule
    SCHEDULED: frozenset({QUEUED, CANCELLED}),
    # Queued anew: its entry was reclaimed or handed back unstarted. Scheduled and failed: nobody knows its kind.
    QUEUED: frozenset({RUNNING, QUEUED, SCHEDULED, FAILED, CANCELLED}),
    # Running anew: the answer to a start was lost, and its worker begins another attempt.
    RUNNING: frozenset({RUNNING, QUEUED, SCHEDULED, WAITING, CANCELLING, SUCCEEDED, FAILED, CANCELLED}),
    WAITING: frozenset({CANCELLING, SUCCEEDED, FAILED, CANCELLED}),
    CANCELLING: frozenset({CANCELLED, SUCCEEDED}),  # succeeded: late_success="keep"
    SUCCEEDED: frozenset(),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}

NEVER_AFTER_A_CANCEL = frozenset({SCHEDULED, QUEUED, RUNNING, WAITING})

ENDED = frozenset({b"before_start", b"confirmed", b"completed", b"killed", b"abandoned"})

# Of these it is claimed that an attempt ran, and that its code has stopped.
STOPPED = frozenset({b"confirmed", b"completed", b"killed"})

# Verdicts of `cancel` that say that the job is or will be cancelled.
ACCEPTED = frozenset({"cancelled", "signalled", "already_cancelling", "already_cancelled"})

# What trips a handler's token without being a cancel.
NO_CANCELS = frozenset({"timeout", "lease_lost", "shutdown"})

# How far a state is on its way; a read may not go back from one of these to something that comes before.
AFTER_A_CANCEL = frozenset({"cancelling", "cancelled"})
