"""
One run of one handler, from start to outcome, as the worker sees it.

Belongs to the handlers' loop. Only the token may be touched from elsewhere, and `progress`, which is replaced
whole. An attempt is over once: when its handler has ended, or when the worker has given it up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from busq.handlers import Handler
from busq.store.forms import Note
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
        "backoff_max_s",
        "backoff_s",
        "callbacks_done",
        "entry",
        "failures",
        "force_timer",
        "forced",
        "grace_s",
        "handler",
        "jid",
        "job",
        "notes",
        "number",
        "over",
        "progress",
        "queue",
        "retries",
        "saved",
        "shard",
        "shields",
        "shut_out",
        "started_at",
        "task",
        "timeout_s",
        "timers",
        "token",
        "token_id",
        "tripped_at",
        "watched",
    )

    def __init__(
        self, *, jid: str, handler: Handler, shard: int, queue: str, entry: bytes, token_id: str, number: int,
        failures: int, retries: int, grace_s: float, timeout_s: float | None, backoff_s: float, backoff_max_s: float,
        saved: bytes, started_at: float,
    ) -> None:  # fmt: skip
        self.jid = jid
        self.handler = handler
        self.shard = shard
        self.queue = queue
        self.entry = entry
        self.token_id = token_id
        self.number = number
        self.failures = failures
        self.retries = retries
        self.grace_s = grace_s
        self.timeout_s = timeout_s
        self.backoff_s = backoff_s
        self.backoff_max_s = backoff_max_s
        self.saved = saved
        self.started_at = started_at
        self.token = CancelToken()
        self.job: CurrentJob | None = None
        self.task: asyncio.Task[Any] | None = None
        self.notes: list[tuple[str, float, str]] = []  # lines of history not yet sent: name, when, facts
        self.progress: tuple[str, str] | None = None
        self.timers: list[asyncio.TimerHandle] = []
        self.force_timer: asyncio.TimerHandle | None = None
        self.tripped_at: float | None = None
        self.shields = 0
        self.shut_out = False  # a cancel waits outside a shield
        self.forced = False
        self.over = False
        self.abandoned = False
        self.watched = False
        self.callbacks_done = False

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
        if self.force_timer is not None:
            self.force_timer.cancel()
            self.force_timer = None
