"""
What must hold of a job between any two transactions (C7, and C4 for entries that nobody wanted).

A live job is in exactly one place: scheduled, undelivered in its stream, pending in its group, or waiting without an
entry. Only jobs that a transaction touched are looked at, so the cost does not grow with the number of jobs.
"""

from __future__ import annotations

from judge import schema as s
from judge.attempts import number_of
from judge.contract import CANCELLED, CANCELLING, QUEUED, RUNNING, SCHEDULED, STATES, TERMINAL, WAITING
from judge.lives import Life, Lives
from judge.model import Model
from judge.streams import Whereabouts

FOREVER = float("inf")


class Conservation:
    def __init__(self, model: Model, lives: Lives) -> None:
        self._model = model
        self._lives = lives
        self.looked = 0

    def judge(self) -> None:
        """Look at every job that was touched since the last time."""
        changed = self._lives.changed
        for key in changed:
            life = self._lives.by_key.get(key)
            if life is not None:
                self.looked += 1
                self._judge(key, life)
        self._lives.end_transaction()

    def _judge(self, key: bytes, life: Life) -> None:
        if life.excused == "tombstoned":
            life.excused = ""
            if life.state != CANCELLED:
                self._wrong("C9", life, "a tombstone stood against it, and it was not born cancelled")
        if life.state not in STATES:
            self._wrong("C6", life, f"its record has the state {life.state!r}")
            return
        if life.excused:
            return
        names, shard, jid = self._lives.names, life.shard, life.jid.encode()
        scheduled = self._model.score(names.alone(shard, "scheduled"), jid) is not None
        if scheduled != (life.state == SCHEDULED):
            self._wrong(
                "C7", life, f"{_text(life.state)}, and {'in' if scheduled else 'not in'} the set of scheduled jobs"
            )
        entries = self._lives.entries.get(key, ())
        if life.state in (QUEUED, RUNNING) or (life.state == CANCELLING and s.PARKED not in life.record):
            self._judge_entry(key, life, entries)
        elif life.state in (SCHEDULED, WAITING, CANCELLING):
            if entries:
                self._wrong("C7", life, f"{_text(life.state)}, and has an entry, {_text(min(entries)[1])}")
        else:
            self._judge_ended(key, life, entries, jid)
        if life.state == CANCELLING:
            self._judge_cancelling(life, jid)
        waits = life.state == WAITING or (life.state == CANCELLING and s.PARKED in life.record)
        if waits and self._model.score(names.alone(shard, "waiting"), jid) is None:
            self._wrong("C7", life, f"{_text(life.state)}, and not in the set of those that wait for children")

    def _judge_entry(self, key: bytes, life: Life, entries: set[tuple[bytes, bytes]] | tuple[()]) -> None:
        record = life.record
        entry = record.get(s.ENTRY, b"")
        stream = self._lives.names.queue(life.shard, record.get(s.QUEUE, b""))
        if len(entries) > ((stream, entry) in entries):
            others = sorted(name for at, name in entries if (at, name) != (stream, entry))
            self._wrong(
                "C4", life, f"{_text(life.state)} with entry {_text(entry)}, and has others: {_text(b' '.join(others))}"
            )
        where = self._model.stream(stream).whereabouts(s.GROUP, entry)
        if life.state == QUEUED:
            if where not in (Whereabouts.UNDELIVERED, Whereabouts.PENDING):
                self._wrong("C7", life, f"queued, and its entry {_text(entry)} is {where.value}")
            return
        if where is not Whereabouts.PENDING:
            self._wrong("C7", life, f"{_text(life.state)}, and its entry {_text(entry)} is {where.value}")
            return
        holder = self._model.stream(stream).consumer(s.GROUP, entry)
        if holder != record.get(s.OWNER):
            self._wrong(
                "C7",
                life,
                f"owned by {_text(record.get(s.OWNER))}, and its entry {_text(entry)} is pending for {_text(holder)}",
            )

    def _judge_cancelling(self, life: Life, jid: bytes) -> None:
        names = self._lives.names
        if self._model.score(names.alone(life.shard, "cancelled"), jid) != FOREVER:
            self._wrong("C9", life, "cancelling, and not in the cancelled set")
        deadline = self._model.score(names.alone(life.shard, "deadlines"), jid)
        if deadline is None or deadline != float(life.record.get(s.DEADLINE, b"nan")):
            self._wrong("C9", life, "cancelling, and not on the list of deadlines with its own")

    def _judge_ended(self, key: bytes, life: Life, entries: set[tuple[bytes, bytes]] | tuple[()], jid: bytes) -> None:
        assert life.state in TERMINAL
        names = self._lives.names
        if key not in self._model.expiries:
            self._wrong("C7", life, f"{_text(life.state)}, and its record has no expiry")
        if life.state == CANCELLED and s.HOOK not in life.record and _wants_hook(life.record):
            self._wrong("C7", life, "cancelled, and nobody was told to clean up after it")
        mark = self._model.score(names.alone(life.shard, "cancelled"), jid)
        if entries and life.state != CANCELLED:
            self._wrong("C7", life, f"{_text(life.state)}, and has an entry, {_text(min(entries)[1])}")
        elif entries and mark != FOREVER:
            self._wrong("C7", life, "cancelled with an unread entry, and not in the cancelled set")
        for part in ("deadlines", "waiting", "timers"):
            if self._model.score(names.alone(life.shard, part), jid) is not None:
                self._wrong("C7", life, f"{_text(life.state)}, and still among {part}")

    def _wrong(self, check: str, life: Life, words: str) -> None:
        self._lives.wrong(check, life, words)


def _wants_hook(record: dict[bytes, bytes]) -> bool:
    """Whether its own record says so; what workers have declared of its kind is not followed."""
    occasion = record.get(s.ON_CANCEL)
    if record.get(s.KIND, b"").endswith(s.HOOK_KIND):
        return False
    return occasion == b"always" or (occasion == b"attempted" and number_of(record, s.ATTEMPT) > 0)


def _text(value: bytes | None) -> str:
    return "nobody" if value is None else value.decode("utf-8", "replace")
