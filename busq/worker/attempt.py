"""
One run of one handler, from start to outcome, as the worker sees it.

Belongs to the handlers' loop. Only the token may be touched from elsewhere, `progress`, which is replaced whole, and
`deadline_at` and `asked_at`, which are the control thread's; that thread also takes the notes while the loop is blocked
(`standin.py`). An attempt is over once: when its handler has ended, or when the worker has given it up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from busq.handlers import Handler
from busq.protocol.cancel import Cause, TripFacts
from busq.store.forms import KindTerms, Note, StartAnswer
from busq.store.streams import Entry
from busq.worker.token import CancelToken

if TYPE_CHECKING:
    from busq.worker.context import CurrentJob


class Attempt:
    """
    `token_id` is the fence that the record knows; `token` is what the handler watches. Times are monotonic seconds.

    `over`: nothing that this handler does is applied any more, and its slot is free. `abandoned`: it was given up
    while its code was still running.
    """

    __slots__ = (
        "abandoned",
        "abandoned_at",
        "answer",
        "asked_at",
        "deadline_at",
        "entry",
        "force_timer",
        "forced",
        "handler",
        "heeded",
        "jid",
        "job",
        "killed",
        "notes",
        "number",
        "observed_noted",
        "over",
        "progress",
        "queue",
        "saved",
        "shard",
        "shields",
        "shut_out",
        "started_at",
        "task",
        "terms",
        "timeout_timer",
        "timers",
        "times_out_at",
        "token",
        "token_id",
        "tripped_at",
        "waits",
        "watched",
    )

    def __init__(
        self, handler: Handler, entry: Entry, token_id: str, answer: StartAnswer, terms: KindTerms, now: float
    ) -> None:
        self.jid = entry.jid
        self.handler = handler
        self.shard = entry.shard
        self.queue = entry.queue
        self.entry = entry.id
        self.token_id = token_id
        self.answer = answer
        self.terms = terms
        self.number = answer.attempt
        self.saved = answer.saved
        self.started_at = now
        self.token = CancelToken()
        self.job: CurrentJob | None = None
        self.task: asyncio.Task[Any] | None = None
        self.notes: list[tuple[str, float, str]] = []  # lines of history not yet sent: name, when, facts
        self.progress: tuple[str, str] | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.timeout_timer: asyncio.TimerHandle | None = None
        self.force_timer: asyncio.TimerHandle | None = None
        self.times_out_at: float | None = None  # known when its handler begins
        self.tripped_at: float | None = None
        self.deadline_at: float | None = None  # of a cancel; written and read by the control thread
        self.asked_at: float | None = None  # when that cancel was asked for; written by the control thread
        self.shields = 0
        self.shut_out = False  # a cancel waits outside a shield
        self.forced = False
        self.heeded: TripFacts | None = None  # what the ladder goes by
        self.observed_noted: TripFacts | None = None  # of which it was last noted that the handler has learned of it
        self.over = False
        self.abandoned = False
        self.abandoned_at = 0.0
        self.killed = False  # the process that ran the handler was ended by force
        self.watched = False
        self.waits = False  # for a child process: its handler has not begun

    @property
    def failures(self) -> int:
        """Handler failures before this attempt."""
        return self.answer.failures

    @property
    def grace_s(self) -> float:
        return self.answer.grace_s

    @property
    def timeout_s(self) -> float | None:
        return self.answer.timeout_s

    @property
    def timeout_facts(self) -> TripFacts:
        """What its handler is told when it has run for the whole of its timeout."""
        return TripFacts(cause=Cause.TIMEOUT, reason=f"ran {self.timeout_s:g} s", grace_s=self.grace_s)

    @property
    def backoff_s(self) -> float:
        return self.answer.backoff_s or self.terms.backoff_s

    @property
    def backoff_max_s(self) -> float:
        return self.answer.backoff_max_s or self.terms.backoff_max_s

    @property
    def facts(self) -> dict[str, Any]:
        """What every log line of this attempt carries."""
        return {"jid": self.jid, "kind": self.handler.kind, "attempt": self.number}

    def take_notes(self, now: float) -> tuple[Note, ...]:
        """The lines of history that wait to be sent, aged; they are taken, not copied."""
        if not self.notes:
            return ()
        taken, self.notes = self.notes, []
        return tuple(Note(name, max(0, round((now - at) * 1000)), facts) for name, at, facts in taken)

    def drop_timers(self) -> None:
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()
        for one in (self.timeout_timer, self.force_timer):
            if one is not None:
                one.cancel()
        self.timeout_timer = self.force_timer = None
