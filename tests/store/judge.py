"""
What a condition means, in plain Python: the oracle beside which the evaluator in Lua is judged.

`facts` hold jid, kind, queue, group, parent, worker, state (text or None), attempt, failures, losses, age, enqueued
(numbers), args (a dict, or a list of positional ones), tags (a dict) and ancestors (a set of jids). What is missing is
None. Lists and maps are equal to nothing, not even to themselves; bytes count as the text that they spell.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TEXT: dict[str, Callable[[bytes, bytes], bool]] = {
    "^=": bytes.startswith,
    "$=": bytes.endswith,
    "~=": bytes.__contains__,
}


def matches(node: list[Any], facts: Mapping[str, Any]) -> bool:
    """Whether a job of which these facts are known fits the condition."""
    word, *rest = node
    if word == "and":
        return all(matches(each, facts) for each in rest)
    if word == "or":
        return any(matches(each, facts) for each in rest)
    if word == "not":
        return not matches(rest[0], facts)
    if word == "under":
        return rest[0] in facts.get("ancestors", ())
    left, right = (_plain(_value(operand, facts)) for operand in rest)
    return _compare(word, left, right)


def _compare(op: str, left: Any, right: Any) -> bool:
    if op in ("==", "!="):
        return _equal(left, right) == (op == "==")
    if op in _ORDER:
        alike = _kind(left) == _kind(right) in ("number", "text")
        return alike and _ORDER[op](left, right)
    if op == "in":
        if _kind(right) == "list":
            return any(_equal(left, _plain(each)) for each in right)
        return _kind(left) == _kind(right) == "text" and left in right
    if op == "~=" and _kind(left) == "list":
        return any(_equal(_plain(each), right) for each in left)
    return _kind(left) == _kind(right) == "text" and _TEXT[op](left, right)


def _equal(a: Any, b: Any) -> bool:
    return _kind(a) == _kind(b) in ("null", "bool", "number", "text") and bool(a == b)


def _value(operand: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    if "v" in operand:
        return operand["v"]
    value = facts.get(operand["f"])
    for part in operand.get("p", ()):
        value = _step(value, part)
    return value


def _step(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _plain(value: Any) -> Any:
    """Text as its bytes, for that is how it is ordered; whole numbers as doubles, for that is how they compare."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    kinds: dict[type, str] = {type(None): "null", float: "number", bytes: "text", list: "list", tuple: "list"}
    return kinds.get(type(value), "other")
