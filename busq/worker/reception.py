"""
What comes off the queues: what is no job is buried, what we cannot run is given back, the rest is started.

An entry tells a jid and a kind and may lie about both; the start script compares it with the record. Nothing that
is read gets lost here: each entry ends as a started attempt, a dead letter, a job given back, or a leftover that
the script removed.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable

import msgspec

from busq import events
from busq.config import Settings
from busq.errors import BadRecord
from busq.handlers import Handler, Handlers
from busq.hooks import Hook
from busq.protocol.codec import ErrorInfo, encode_error
from busq.protocol.judgement import REFUSAL_FIRST_S, REFUSAL_MOST_S, REFUSALS
from busq.store.forms import Delivery, KindTerms, Refusal, StartAnswer
from busq.store.store import Store
from busq.store.streams import Entry
from busq.worker.outbox import UNKNOWN_JID, Outbox
from busq.worker.slots import Slots

UNJUDGED_S = 5.0  # until a job is offered again that a rule of a newer busq may cover

Started = tuple[Entry, Handler, Delivery, StartAnswer, KindTerms]

Begin = Callable[[list[Started]], None]
"""Called with the jobs that one script call has started; each holds a slot already."""

log = events.logger("busq.worker")


class Reception:
    def __init__(
        self,
        settings: Settings,
        handlers: Handlers,
        store: Store,
        slots: Slots,
        outbox: Outbox,
        begin: Begin,
        *,
        displaced: Callable[[], None],
    ) -> None:
        self._handlers = handlers
        self._store = store
        self._slots = slots
        self._outbox = outbox
        self._begin = begin
        self._displaced = displaced
        self._terms = {handler.kind: terms_of(handler, settings) for handler in handlers}
        self._numbers = itertools.count(1)
        self._unread_rules: set[str] = set()

    @property
    def occasions(self) -> dict[str, str]:
        """After which cancelled jobs of a kind its hook runs, for every kind that may be enqueued; "" for no hook."""
        return {kind: self._terms[kind].occasion for kind in self._handlers.kinds()}

    async def take(self, entries: Iterable[Entry], *, adopt: bool = False) -> set[str]:
        """
        Start what can be started behind these entries, and deal with the rest. Raise `BusUnavailable`.

        Return the queues that brought more than some pool had room for.
        """
        overfull: set[str] = set()
        startable: dict[tuple[int, str], list[tuple[Entry, Handler]]] = {}
        flawed: list[Entry] = []
        left_over: list[tuple[Entry, StartAnswer]] = []
        for entry in entries:
            if entry.flaw:
                flawed.append(entry)
                continue
            handler = self._handlers.get(entry.kind)
            if handler is None:
                self._refuse_unknown(entry)
            elif not self._slots.take(handler):
                overfull.add(entry.queue)
                self._refuse(entry, "no_slot", delay_s=0, unknown=adopt)  # somebody else may have room right now
            else:
                startable.setdefault((entry.shard, entry.queue), []).append((entry, handler))
        # Always true: a slot that was taken above belongs to an attempt that has begun, or to a group still in here.
        try:
            while startable:
                place = next(iter(startable))
                left_over += await self._start(*place, startable[place], adopt=adopt)
                del startable[place]
        finally:
            for chosen in startable.values():
                for _, handler in chosen:
                    self._slots.give_back(handler)
        for entry, answer in left_over:
            await self._not_started(entry, answer)
        for entry in flawed:
            await self._bury(entry, entry.flaw)
        return overfull

    async def _start(
        self, shard: int, queue: str, chosen: list[tuple[Entry, Handler]], *, adopt: bool
    ) -> list[tuple[Entry, StartAnswer]]:
        """Begin what the script starts. Return the rest, its slots given back."""
        kinds = {handler.kind for _, handler in chosen}
        deliveries = [
            Delivery(entry.id, entry.jid, entry.kind, f"{self._store.by}/{next(self._numbers)}") for entry, _ in chosen
        ]
        terms = [self._terms[kind] for kind in kinds]
        try:
            answers = await self._store.start(shard, queue, deliveries, terms, adopt=adopt)
        except BadRecord as error:
            return await self._start_singly(shard, queue, chosen, error)
        begun, left_over = [], []
        for (entry, handler), delivery, answer in zip(chosen, deliveries, answers, strict=True):
            if answer.word == "started":
                begun.append((entry, handler, delivery, answer, self._terms[handler.kind]))
            else:
                self._slots.give_back(handler)
                left_over.append((entry, answer))
        if begun:
            self._begin(begun)
        return left_over

    async def _start_singly(
        self, shard: int, queue: str, chosen: list[tuple[Entry, Handler]], error: BadRecord
    ) -> list[tuple[Entry, StartAnswer]]:
        """
        One odd record fails a whole batch: find it, bury its entry, and start the others.

        Those before it in the batch may have been started: what a script has written is not taken back.
        """
        if len(chosen) == 1:
            entry, handler = chosen[0]
            await self._bury(entry, f"bad_record: {error}")
            self._slots.give_back(handler)
            return []
        left_over = []
        while chosen:  # what is in `chosen` still holds its slot, whatever is raised here
            left_over += await self._start(shard, queue, [chosen[-1]], adopt=True)
            chosen.pop()
        return left_over

    async def _not_started(self, entry: Entry, answer: StartAnswer) -> None:
        if answer.word == "missing":
            await self._bury(entry, UNKNOWN_JID)
        elif answer.word == "odd":
            await self._bury(entry, f"bad_record: {answer.detail}")
        elif answer.word == "newer":
            said = f"the record is of version {answer.detail}, which this worker's busq does not know"
            self._refuse(entry, "newer_version", counted=said)
        elif answer.word == "unjudged":
            self._tell_of_rule(answer.detail)
            self._refuse(entry, "newer_rule", delay_s=UNJUDGED_S, unknown=True)
        elif answer.word == "other_kind":
            await self._bury(entry, "bad_entry: it names another kind than the job's record")
        else:
            if answer.word == "gone":  # whoever ended it had to take it for running here, and may have said so
                self._displaced()
            events.tell(log, events.JOB_STALE, level=logging.DEBUG, jid=entry.jid, kind=entry.kind, state=answer.detail)

    def _tell_of_rule(self, number: str) -> None:
        """Once for each rule: what it may cover waits for a worker that can judge it."""
        if number not in self._unread_rules:
            self._unread_rules.add(number)
            events.tell(
                log, events.RULE_UNREADABLE, rule=number, until="it is settled, revoked or read by a newer busq"
            )

    async def _bury(self, entry: Entry, flaw: str) -> None:
        word = await self._store.bury(entry.shard, entry.queue, entry.id, reason=flaw, raw=_raw(entry))
        if word == "buried":
            events.tell(log, events.ENTRY_BURIED, entry=entry.id.decode(), queue=entry.queue, reason=flaw)

    def _refuse_unknown(self, entry: Entry) -> None:
        near = self._handlers.near(entry.kind)
        known = f"; near it: {', '.join(near)}" if near else ""
        self._refuse(
            entry, "unknown_kind", counted=f"no worker on queue {entry.queue!r} knows kind {entry.kind!r}{known}"
        )

    def _refuse(
        self, entry: Entry, why: str, *, delay_s: float = REFUSAL_FIRST_S, counted: str = "", unknown: bool = False
    ) -> None:
        """
        Give a job back. `counted`: it fails with these words when that has happened too often.

        `unknown`: the record may say that we run it, and we do not.
        """
        refusal = Refusal(
            jid=entry.jid,
            entry=entry.id,
            why=why,
            delay_ms=round(delay_s * 1000),
            most_ms=round(REFUSAL_MOST_S * 1000),
            limit=REFUSALS if counted else 0,
            error=encode_error(ErrorInfo("UnknownKind" if why == "unknown_kind" else "NewerVersion", counted)),
            unknown=unknown,
        )
        self._outbox.refuse(entry.shard, entry.queue, refusal, raw=_raw(entry))

    def give_back_unstarted(self, entries: Iterable[Entry]) -> None:
        """Entries that were read and are not run here: this worker is stopping."""
        for entry in entries:
            if entry.jid:
                self._refuse(entry, "shutdown", delay_s=0, unknown=True)


def _raw(entry: Entry) -> bytes:
    """The entry as it was read, for the dead letters."""
    return msgspec.msgpack.encode(list(entry.raw) or [b"jid", entry.jid.encode(), b"kind", entry.kind.encode()])


def terms_of(handler: Handler, settings: Settings) -> KindTerms:
    """What this handler says where a producer left it open."""
    options = handler.options
    timeout_s = options.timeout_s
    if timeout_s is None and isinstance(handler, Hook):
        timeout_s = settings.hook_limit_s

    def ms(own: float | None, default: float) -> int:
        return round((default if own is None else own) * 1000)

    def length_ms(own: float | None) -> int | None:
        return None if own is None else ms(own, 0)

    return KindTerms(
        handler.kind,
        options.retries or 0,
        settings.max_losses if options.max_losses is None else options.max_losses,
        ms(options.grace_s, settings.grace_s),
        ms(None, settings.beat_s + settings.force_s),
        length_ms(timeout_s),
        options.backoff_s or settings.backoff_s,
        options.backoff_max_s or settings.backoff_max_s,
        length_ms(options.expires_s),
        length_ms(options.deadline_s),
        "" if handler.hook is None else str(handler.hook.occasion),
    )
