"""
Who may move a job from where to where, as data.

`TRANSITIONS[verb][state]` lists every answer that the verb may give for a job in that state, and the state that the
job is in afterwards. `None` stands for "no record". The Lua scripts are the second writing of this table; a test
walks every state x every verb to see that the two agree, and the README's diagram is drawn from it.

Before its own row counts, every other script that touches a job first carries out what has been decided for it: the row
of `carry_out` where a live rule matches or a job above it is being cancelled, then its own row for the state that this
leads to. The last child's ending is a verb without a script of its own: it happens in the script that ends the child.

Adding a state? It also needs a line in the README and an answer under every verb here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a job is. The last three are terminal: never left."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


def is_terminal(state: State) -> bool:
    """Whether a job in this state has ended for good."""
    return state in TERMINAL


class Verb(StrEnum):
    """Everything that may change a job's state; each is one script, but for `last_child`."""

    ENQUEUE = "enqueue"
    PROMOTE = "promote"
    START = "start"
    RENEW = "renew"
    NOTE = "note"
    FINISH = "finish"
    RETRY = "retry"
    RELEASE = "release"
    REFUSE = "refuse"
    CANCEL = "cancel"
    EXPIRE = "expire"
    FINALIZE = "finalize"
    RECLAIM = "reclaim"
    CARRY_OUT = "carry_out"
    LAST_CHILD = "last_child"


Answers = Mapping[str, frozenset[State | None]]
Table = Mapping[Verb, Mapping[State | None, Answers]]


def _row(**answers: State | None | tuple[State | None, ...]) -> Answers:
    return {word: frozenset(to if isinstance(to, tuple) else (to,)) for word, to in answers.items()}


def _rows(given: Mapping[State, Answers], *, otherwise: str, missing: Answers) -> Mapping[State | None, Answers]:
    """One row for every state: `given` where it is named, else `otherwise` with the state unchanged."""
    rows: dict[State | None, Answers] = {None: missing}
    for state in State:
        rows[state] = given.get(state, _row(**{otherwise: state}))
    return rows


_S = State
_MISSING = _row(missing=None)

TRANSITIONS: Table = {
    Verb.ENQUEUE: _rows(
        {},
        otherwise="in_use",
        missing=_row(
            enqueued=(_S.QUEUED, _S.SCHEDULED),
            tombstoned=_S.CANCELLED,
            fenced=_S.CANCELLED,
            orphan=None,
            too_deep=None,
            full=None,
            limited=None,
        ),
    ),
    Verb.PROMOTE: _rows(
        {_S.SCHEDULED: _row(promoted=_S.QUEUED, early=_S.SCHEDULED)}, otherwise="stale", missing=_MISSING
    ),
    Verb.START: _rows(
        {s: _row(stale=s, newer=s) for s in State}
        | {
            # Stale and cancelled: a moment of the job had passed. The next two: a worker asks about its own entry, of
            # which it runs nothing because the answer to its start was lost.
            # Unjudged: a live rule of a newer busq may cover it.
            _S.QUEUED: _row(
                started=_S.RUNNING,
                stale=(_S.QUEUED, _S.CANCELLED),
                other_kind=_S.QUEUED,
                newer=_S.QUEUED,
                unjudged=_S.QUEUED,
            ),
            _S.RUNNING: _row(
                started=_S.RUNNING, stale=(_S.RUNNING, _S.CANCELLED), newer=_S.RUNNING, unjudged=_S.RUNNING
            ),
            _S.CANCELLING: _row(stale=(_S.CANCELLING, _S.CANCELLED), newer=_S.CANCELLING),
        },
        otherwise="stale",
        # Stale: it was cancelled before anybody read its entry, and its record has expired since.
        missing=_row(missing=None, stale=None),
    ),
    # The next five name their attempt: `stale` is also what an attempt hears that no longer owns the job.
    Verb.RENEW: _rows(
        {
            _S.RUNNING: _row(running=_S.RUNNING, stale=_S.RUNNING),
            _S.CANCELLING: _row(cancelling=_S.CANCELLING, stale=_S.CANCELLING),
        },
        otherwise="stale",
        missing=_MISSING,
    ),
    Verb.NOTE: _rows(
        {
            _S.RUNNING: _row(noted=_S.RUNNING, stale=_S.RUNNING),
            _S.CANCELLING: _row(noted=_S.CANCELLING, stale=_S.CANCELLING),
        },
        otherwise="stale",
        missing=_MISSING,
    ),
    # A job that is being cancelled and has open children stays so, whoever says that its attempt has ended.
    Verb.FINISH: _rows(
        {
            # Cancelled: a child of it was, and it has no open one.
            _S.RUNNING: _row(settled=(_S.SUCCEEDED, _S.FAILED, _S.WAITING, _S.CANCELLED), stale=_S.RUNNING),
            # Succeeded only for a handler made with late_success="keep" that returned before the deadline.
            _S.CANCELLING: _row(settled=(_S.CANCELLED, _S.CANCELLING, _S.SUCCEEDED), stale=_S.CANCELLING),
        },
        otherwise="stale",
        missing=_MISSING,
    ),
    Verb.RETRY: _rows(
        {
            _S.RUNNING: _row(settled=(_S.SCHEDULED, _S.FAILED), stale=_S.RUNNING),
            _S.CANCELLING: _row(settled=(_S.CANCELLED, _S.CANCELLING), stale=_S.CANCELLING),
        },
        otherwise="stale",
        missing=_MISSING,
    ),
    Verb.RELEASE: _rows(
        {
            _S.RUNNING: _row(settled=_S.QUEUED, stale=_S.RUNNING),
            _S.CANCELLING: _row(settled=(_S.CANCELLED, _S.CANCELLING), stale=_S.CANCELLING),
        },
        otherwise="stale",
        missing=_MISSING,
    ),
    Verb.REFUSE: _rows(
        {
            _S.QUEUED: _row(refused=(_S.QUEUED, _S.SCHEDULED), buried=_S.FAILED, stale=_S.QUEUED),
            # A worker gives its own entry back, of which it runs nothing because the answer to its start was lost.
            _S.RUNNING: _row(refused=_S.QUEUED, stale=_S.RUNNING),
            _S.CANCELLING: _row(stale=(_S.CANCELLING, _S.CANCELLED)),
        },
        otherwise="stale",
        missing=_MISSING,
    ),
    Verb.CANCEL: _rows(
        {
            _S.SCHEDULED: _row(cancelled=_S.CANCELLED),
            _S.QUEUED: _row(cancelled=_S.CANCELLED),
            _S.RUNNING: _row(signalled=_S.CANCELLING),
            _S.WAITING: _row(signalled=_S.CANCELLING),
            _S.CANCELLING: _row(already_cancelling=_S.CANCELLING),
            _S.CANCELLED: _row(already_cancelled=_S.CANCELLED),
        },
        otherwise="already_finished",
        missing=_row(tombstoned=None, not_found=None),
    ),
    # Stale while it lives: no moment of it matters any more, as for a started job that had only to start in time.
    Verb.EXPIRE: _rows(
        {
            _S.SCHEDULED: _row(cancelled=_S.CANCELLED, early=_S.SCHEDULED, stale=_S.SCHEDULED),
            _S.QUEUED: _row(cancelled=_S.CANCELLED, early=_S.QUEUED, stale=_S.QUEUED),
            _S.RUNNING: _row(signalled=_S.CANCELLING, early=_S.RUNNING, stale=_S.RUNNING),
            _S.WAITING: _row(signalled=_S.CANCELLING, early=_S.WAITING, stale=_S.WAITING),
        },
        otherwise="stale",
        missing=_MISSING,
    ),
    Verb.FINALIZE: _rows(
        {_S.CANCELLING: _row(finalized=_S.CANCELLED, early=_S.CANCELLING)}, otherwise="stale", missing=_MISSING
    ),
    Verb.RECLAIM: _rows(
        {s: _row(alive=s, stale=s) for s in State}
        | {
            _S.QUEUED: _row(reclaimed=_S.QUEUED, alive=_S.QUEUED, stale=_S.QUEUED),
            _S.RUNNING: _row(reclaimed=_S.QUEUED, lost=_S.FAILED, alive=_S.RUNNING, stale=_S.RUNNING),
            _S.CANCELLING: _row(ended=(_S.CANCELLED, _S.CANCELLING), alive=_S.CANCELLING, stale=_S.CANCELLING),
        },
        otherwise="stale",
        missing=_row(missing=None, alive=None),
    ),
    # What becomes of a job that a live rule matches.
    Verb.CARRY_OUT: _rows(
        {
            _S.SCHEDULED: _row(cancelled=_S.CANCELLED),
            _S.QUEUED: _row(cancelled=_S.CANCELLED),
            _S.RUNNING: _row(signalled=_S.CANCELLING),
            _S.WAITING: _row(signalled=_S.CANCELLING),
        },
        otherwise="untouched",
        missing=_row(untouched=None),
    ),
    # What becomes of the parent. Finalizing: its finalizer is its last child, and as that one ends it ends too.
    Verb.LAST_CHILD: _rows(
        {
            _S.WAITING: _row(ended=(_S.SUCCEEDED, _S.FAILED, _S.CANCELLED), finalizing=_S.WAITING),
            # Untouched: its own attempt is still running.
            _S.CANCELLING: _row(ended=_S.CANCELLED, untouched=_S.CANCELLING),
        },
        otherwise="untouched",
        missing=_row(untouched=None),
    ),
}


def moves() -> Iterator[tuple[State | None, Verb, State]]:
    """Every change of state that the table allows, as (from, verb, to); what the README's diagram is drawn from."""
    for verb, rows in TRANSITIONS.items():
        for before, answers in rows.items():
            for after in sorted({to for states in answers.values() for to in states if to is not None}):
                if after != before:
                    yield before, verb, after


def allowed(verb: Verb, before: State | None, answer: str, after: State | None) -> bool:
    """Whether the table lets `verb` answer `answer` for a job in `before` and leave it in `after`."""
    return after in TRANSITIONS[verb][before].get(answer, frozenset())
