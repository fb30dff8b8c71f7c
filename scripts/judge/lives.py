"""
What becomes of every job, write by write: the checks that need nothing but the server's order.

A life is one record of one jid, from the write that admits it until it expires; a jid whose record has expired may
begin another. Here are judged: moves (C6), writes after the end (C5), fences (C8), admissions (C4), and that a cancel
which stands before something in the log was heeded by it (C9). What must hold between the steps is in conservation.py.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from judge import schema as s
from judge.attempts import Attempt, judge_admission_below, judge_end, judge_start
from judge.contract import CANCELLED, CANCELLING, ENDED, MOVES, NEVER_AFTER_A_CANCEL, RUNNING, SUCCEEDED, TERMINAL
from judge.schema import Line, last_line
from judge.verdict import Verdict


class Life:
    """One record. `record` stays readable after it has expired."""

    __slots__ = (
        "attempts",
        "born",
        "deadline",
        "excused",
        "finished",
        "gone",
        "jid",
        "kind",
        "record",
        "requested",
        "requested_ms",
        "server",
        "shard",
        "state",
        "states",
        "terminal",
    )  # fmt: skip

    def __init__(self, shard: bytes, jid: str, born: int, kind: str, record: dict[bytes, bytes]) -> None:
        self.server = ""  # its name
        self.shard = shard
        self.jid = jid
        self.born = born
        self.kind = kind
        self.record = record
        self.state: bytes | None = None
        self.states: list[tuple[int, bytes]] = []
        self.attempts: list[Attempt] = []
        self.requested: int | None = None  # where the first accepted cancel stands
        self.requested_ms = 0
        self.terminal: int | None = None
        self.gone: int | None = None
        self.excused = ""  # why conservation is not asked of it

    @property
    def signalled(self) -> bool:
        """Whether its cancel found it running."""
        states = [state for at, state in self.states if at == self.requested]
        return CANCELLING in states and self.attempts != []

    @property
    def made_by_busq(self) -> bool:
        """Whether a script made it: what cleans up after a job, or finishes a parent."""
        kind = self.kind.encode()
        return kind.endswith((s.HOOK_KIND, s.FINALIZER_KIND))


class Lives:
    """Told of every write to a record (`Watcher` in model.py is the list). `position` is where the log stands."""

    def __init__(self, keys: s.Keys, verdict: Verdict, keep_kinds: frozenset[str], server: str) -> None:
        self.server = server
        self.position = 0
        self.base = False  # a state is being loaded, not history
        self.by_key: dict[bytes, Life] = {}
        self.all: list[Life] = []
        self.entries: dict[bytes, set[tuple[bytes, bytes]]] = {}
        self.changed: set[bytes] = set()
        self.moves: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()
        self.causes: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()
        self.epochs: list[int] = []
        self.model: Any = None
        self.rules: Any = None
        self.verdict = verdict
        self.names = keys
        self._keep_kinds = keep_kinds
        self._tombstones: dict[bytes, float] = {}
        self._unmarked: list[bytes] = []

    def wrong(self, check: str, life: Life | None, words: str, key: bytes = b"") -> None:
        jid = life.jid if life else self.jid(key)
        self.verdict.wrong(check, jid, self.position, words)

    def jid(self, key: bytes) -> str:
        apart = self.names.apart(key)
        return apart.name.decode("utf-8", "replace") if apart else ""

    # Told by the model ----------------------------------------------------------------------------------

    def record_written(self, key: bytes, before: dict[bytes, bytes], fields: dict[bytes, bytes]) -> None:
        self.changed.add(key)
        life = self.by_key.get(key)
        if life is None:
            life = self._birth(key, before, fields)
        elif not self.base:
            if life.terminal is not None:
                self._after_the_end(life, fields)
            if not s.OF_BIRTH.isdisjoint(fields):
                self.wrong("C4", life, f"admitted a second time, while it was {_text(life.state)}")
        if s.REQUESTED in fields:
            self._requested(life, fields)
        elif s.number_of(fields, s.DEADLINE) > s.number_of(before, s.DEADLINE) and not self.base:
            self.wrong("C9", life, "its deadline was put off, and nobody may move it further away")
        state = fields.get(s.STATE)
        settled_by = fields.get(s.SETTLED_BY)
        if settled_by is not None and not self.base:
            self._settled(life, before, settled_by)
        if state is not None:
            self._moved(life, before, fields, state)
        elif s.ATTEMPT in fields and not self.base:
            self.wrong("C8", life, "a new attempt number without a start")

    def _birth(self, key: bytes, before: dict[bytes, bytes], fields: dict[bytes, bytes]) -> Life:
        apart = self.names.apart(key)
        assert apart is not None
        jid = apart.name.decode("utf-8", "replace")
        life = Life(apart.shard, jid, self.position, fields.get(s.KIND, b"").decode("utf-8", "replace"), before)
        life.server = self.server
        self.by_key[key] = life
        self.all.append(life)
        if s.ENQUEUED not in fields:
            self.wrong("C6", life, f"a record that was not there is written without an admission: {_names(fields)}")
        elif s.PARENT in fields and not self.base:
            judge_admission_below(self, life, fields[s.PARENT])
        # Cancelled with its admission or in the next write of the same transaction: settled by conservation.py.
        if self._tombstones.get(key, 0.0) > float(fields.get(s.ENQUEUED, b"inf")) and not self.base:
            life.excused = "tombstoned"
        return life

    def fields_removed(self, key: bytes, fields: list[bytes]) -> None:
        self.changed.add(key)
        life = self.by_key.get(key)
        late = sorted(s.OUTCOME.intersection(fields))
        if life is not None and life.terminal is not None and late and not self.base:
            self.wrong("C5", life, f"{_text(life.state)} already, and {_names(late)} removed")

    def record_gone(self, key: bytes) -> None:
        self.changed.add(key)
        life = self.by_key.pop(key, None)
        if life is None:
            return
        life.gone = self.position
        if life.state not in TERMINAL:
            self.wrong("C1", life, f"its record was removed while it was {_text(life.state)}")
        elif self.model.expiries.get(key) is None:
            self.wrong("C5", life, "its record was removed before its time")

    def entry_added(self, stream: bytes, entry: bytes, job: bytes) -> None:
        if job:
            self.entries.setdefault(job, set()).add((stream, entry))
            self.changed.add(job)

    def entry_gone(self, stream: bytes, entry: bytes, job: bytes) -> None:
        self.entries[job].discard((stream, entry))
        self.changed.add(job)

    def touched(self, job: bytes) -> None:
        self.changed.add(job)

    def marked(self, job: bytes, score: float) -> None:
        """A member of the cancelled set: with an expiry it is a tombstone."""
        if score != float("inf"):
            self._tombstones[job] = score
        else:
            self._tombstones.pop(job, None)

    def unmarked(self, job: bytes) -> None:
        """It left the cancelled set: by expiry, or because this very transaction makes a job of its jid."""
        if job in self._tombstones:
            self._unmarked.append(job)

    def end_transaction(self) -> None:
        self.changed.clear()
        while self._unmarked:
            self._tombstones.pop(self._unmarked.pop(), None)

    def vandalised(self, stream: bytes) -> None:
        """Somebody removed a queue or its group: nothing of busq does. Its jobs are not asked to be anywhere."""
        self.verdict.remarks.append(f"{stream.decode('utf-8', 'replace')} or its group was removed at {self.position}")
        for key, life in self.by_key.items():
            if any(name == stream for name, _ in self.entries.get(key, ())):
                life.excused = "its queue was removed"

    def flushed(self) -> None:
        self.epochs.append(self.position)
        for life in self.by_key.values():
            life.gone = self.position
            life.excused = "the server was emptied"
        self.by_key.clear()
        self.entries.clear()
        self.changed.clear()
        self._tombstones.clear()

    def field_written(self, key: s.Key, name: bytes, value: bytes) -> None:
        if self.rules is not None:
            self.rules.written(key, name, value, self.position)

    # What one write means --------------------------------------------------------------------------------

    def _after_the_end(self, life: Life, fields: dict[bytes, bytes]) -> None:
        late = sorted(s.OUTCOME.intersection(fields))
        if late:
            state = fields.get(s.STATE)
            to = f", {_text(state)} now" if state is not None else ""
            self.wrong("C5", life, f"{_text(life.state)} already, and {_names(late)} written{to}")

    def _requested(self, life: Life, fields: dict[bytes, bytes]) -> None:
        if life.requested is not None and life.terminal is None and not self.base:
            self.wrong("C9", life, "a second cancel took the place of the first")
        if life.requested is None:
            life.requested = self.position
            life.requested_ms = int(float(fields[s.REQUESTED]))
            self.causes[_text(fields.get(s.CAUSE))] += 1

    def _settled(self, life: Life, before: dict[bytes, bytes], token: bytes) -> None:
        if before.get(s.TOKEN) != token:
            self.wrong("C8", life, f"settled by {_text(token)}, while attempt {_text(before.get(s.TOKEN))} owned it")
        elif before.get(s.SETTLED_BY) == token:
            self.wrong("C8", life, f"settled twice by {_text(token)}")
        elif life.state not in (RUNNING, CANCELLING):
            self.wrong("C8", life, f"settled by {_text(token)}, while it was {_text(life.state)}")

    def _moved(self, life: Life, before: dict[bytes, bytes], fields: dict[bytes, bytes], state: bytes) -> None:
        was, life.state = life.state, state
        life.states.append((self.position, state))
        line = last_line(fields)
        if self.base:
            if state in TERMINAL:
                life.terminal = self.position
            return
        self.moves[f"{_text(was)} -> {_text(state)}"] += 1
        if line is not None:
            self.lines[_text(line.name)] += 1
        if was not in TERMINAL and state not in MOVES[was]:
            self.wrong("C6", life, f"moved from {_text(was)} to {_text(state)}")
        if line is None and state != b"waiting":
            self.wrong("C6", life, f"became {_text(state)} without a line of history")
        if life.requested is not None and state in NEVER_AFTER_A_CANCEL:
            self.wrong("C9", life, f"became {_text(state)} after its cancel was accepted at {life.requested}")
        judge_end(self, life, was, before, fields, line)
        if state == RUNNING:
            judge_start(self, life, before, fields, line)
        if state in TERMINAL and life.terminal is None:
            self._ended(life, before, fields, state, line)

    def _ended(
        self, life: Life, before: dict[bytes, bytes], fields: dict[bytes, bytes], state: bytes, line: Line | None
    ) -> None:
        life.terminal = self.position
        attempt = fields.get(s.ATTEMPT, before.get(s.ATTEMPT, b"0"))
        if line is not None and (line.name != b"finalized" or line.attempt != attempt):
            self.wrong(
                "C8",
                life,
                f"ended by the line {_text(line.name)} of attempt {_text(line.attempt)}, not {_text(attempt)}",
            )
        if state == CANCELLED:
            how = fields.get(s.ENDED)
            self.endings[_text(how)] += 1
            if how not in ENDED:
                self.wrong("C6", life, f"cancelled, and its execution ended as {_text(how)}")
            if life.requested is None:
                self.wrong("C12", life, "cancelled, and nobody had asked for it")
        elif state == SUCCEEDED and s.number_of(before, s.OPEN_CHILDREN) > 0:
            self.wrong("C6", life, f"succeeded with {_text(before[s.OPEN_CHILDREN])} children that have not ended")
        elif life.requested is not None and not (state == SUCCEEDED and self.keeps_late(life, before)):
            self.wrong("C9", life, f"{_text(state)}, although its cancel was accepted at {life.requested}")

    def keeps_late(self, life: Life, record: dict[bytes, bytes]) -> bool:
        """Whether its handler may turn a cancel round by returning in time."""
        return record.get(s.LATE_SUCCESS) == b"keep" or life.kind in self._keep_kinds


def _text(value: bytes | None) -> str:
    return "nothing" if value is None else value.decode("utf-8", "replace")


def _names(fields: Any) -> str:
    return ", ".join(_text(name) for name in list(fields)[:8])
