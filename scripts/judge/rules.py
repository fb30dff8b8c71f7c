"""
Wide cancels: nothing that a rule covers starts after the rule was written down (C9).

Only conditions on what never changes of a job are judged: kind, queue, group, tags, jid, parent, the moment of its
enqueueing. A rule that asks for more is counted in `not_judged`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from judge import schema as s

if TYPE_CHECKING:
    from judge.lives import Life, Lives

_FIELDS = {"kind": s.KIND, "queue": s.QUEUE, "group": s.GROUP_OF_JOB, "parent": s.PARENT}


VERSION = 1  # of what a condition may ask


class NotJudged(Exception):
    """The condition asks for something that the judge does not follow."""


class Rule:
    """As it is stored: cutoff, the moment, until, the version, the condition; and in a line of its own the rest."""

    def __init__(self, text: bytes, position: int) -> None:
        self.position = position
        self.revoked = False
        self.over_at: int | None = None  # where it left, its time being over
        self.id = ""
        self.condition: list[Any] = []
        self.cutoff = self.until = 0
        try:
            first, _, second = text.partition(b"\n")
            cutoff, _, until, version, condition = first.split(b" ", 4)
            self.cutoff, self.until = int(cutoff), int(until)
            self.id = str(json.loads(second)["id"])
            self.judged = int(version) == VERSION
            self.condition = json.loads(condition)
        except (ValueError, KeyError, TypeError):
            self.judged = False


class Rules:
    """All rules that were ever decided, by shard."""

    def __init__(self) -> None:
        self._rules: dict[bytes, dict[bytes, Rule]] = {}
        self._ids: dict[tuple[bytes, str], Rule] = {}

    def __len__(self) -> int:
        return sum(map(len, self._rules.values()))

    @property
    def not_judged(self) -> int:
        return sum(not rule.judged for rules in self._rules.values() for rule in rules.values())

    def written(self, key: s.Key, name: bytes, value: bytes, position: int) -> None:
        if key.part == "rules" and name.isdigit():
            rule = Rule(value, position)
            self._rules.setdefault(key.shard, {})[name] = rule
            self._ids[key.shard, rule.id] = rule
        elif key.part == "scope" and (rule := self._ids.get((key.shard, key.name.decode("utf-8", "replace")))):
            if name == b"state" and value == b"revoked":
                rule.revoked = True
            elif name == b"ended" and value.isdigit() and int(value) >= rule.until:
                rule.over_at = position

    def judge_start(self, lives: Lives, life: Life, record: dict[bytes, bytes]) -> None:
        if life.kind.encode().endswith(s.HOOK_KIND):
            return
        admission, enqueued = s.number_of(record, s.ADMISSION), s.number_of(record, s.ENQUEUED)
        for rule in self._rules.get(life.shard, {}).values():
            before = admission <= rule.cutoff
            later = rule.until > enqueued and life.born > rule.position
            if rule.over_at is not None and life.born > rule.over_at:
                later = False  # the clock was set back since
            if not (before or later) or rule.revoked or not rule.judged:
                continue
            try:
                hit = matches(rule.condition, life.jid, record)
            except NotJudged:
                rule.judged = False
                continue
            if hit:
                lives.wrong(
                    "C9", life, f"started after the cancel {rule.id} that covers it, decided at {rule.position}"
                )


def matches(node: list[Any], jid: str, record: dict[bytes, bytes]) -> bool:
    """Whether a record fits a condition; raise `NotJudged`."""
    word, *rest = node
    if word == "and":
        return all(matches(each, jid, record) for each in rest)
    if word == "or":
        return any(matches(each, jid, record) for each in rest)
    if word == "not":
        return not matches(rest[0], jid, record)
    if word not in ("==", "!=", "^=", "<"):
        raise NotJudged
    field, value = rest
    if not isinstance(field, dict) or "v" not in value:
        raise NotJudged
    held, wanted = _value(field, jid, record), value["v"]
    if word == "<":
        if field.get("f") != "enqueued":
            raise NotJudged
        return isinstance(held, float) and isinstance(wanted, int | float) and bool(held < wanted)
    if not isinstance(wanted, str):
        raise NotJudged
    if word == "^=":
        return isinstance(held, str) and held.startswith(wanted)
    return bool(bool(held == wanted) == (word == "=="))


def _value(field: dict[str, Any], jid: str, record: dict[bytes, bytes]) -> str | float | None:
    name = field.get("f")
    if name == "jid":
        return jid
    if name == "enqueued":
        return float(record.get(s.ENQUEUED, b"0"))
    if name == "tags" and len(field.get("p", ())) == 1:
        told = json.loads(record.get(s.TAGS, b"{}")).get(field["p"][0])
        return told if isinstance(told, str) else None
    if name not in _FIELDS:
        raise NotJudged
    held = record.get(_FIELDS[name])
    return None if held is None else held.decode("utf-8", "replace")
