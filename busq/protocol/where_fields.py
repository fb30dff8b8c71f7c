"""
What a `where` expression may ask about, and which comparisons of it make sense.

The kinds of values are known for most fields. A comparison that comes out the same for every job is a mistake in
writing, and `attempt != '3'` would cancel them all: so it is refused, and not judged.

Adding a field? It also needs a value in lua/lib/conditions.lua, in tests/store/judge.py and in the README's table.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

from busq.protocol.states import State

_TEXT, _NUMBER, _BOOL, _NULL, _LIST = "text", "a number", "true or false", "null", "a list"
_PLAIN = (_TEXT, _NUMBER, _BOOL, _NULL)

FIELDS: dict[str, frozenset[str]] = {
    **{name: frozenset({_TEXT}) for name in ("jid", "kind", "queue", "state")},
    **{name: frozenset({_TEXT, _NULL}) for name in ("group", "parent", "worker")},
    **{name: frozenset({_NUMBER}) for name in ("attempt", "failures", "losses", "age")},
    "args": frozenset({*_PLAIN, _LIST}),
    "tags": frozenset({_TEXT, _NULL}),
}
"""Each field with the kinds of values that it can have; `args` and `tags` are followed by a name."""

_ALIKE = frozenset((each, each) for each in _PLAIN)
_TEXTS = frozenset({(_TEXT, _TEXT)})
_TOGETHER = {
    "==": _ALIKE,
    "!=": _ALIKE,
    **{sign: frozenset({(_NUMBER, _NUMBER), (_TEXT, _TEXT)}) for sign in ("<", "<=", ">", ">=")},
    "^=": _TEXTS,
    "$=": _TEXTS,
    "~=": _TEXTS | {(_LIST, each) for each in _PLAIN},
    "in": _TEXTS | {(each, _LIST) for each in _PLAIN},
}

# Names that people know from elsewhere in busq, or from other systems.
_OTHER_NAMES = {
    "enqueued": "age (seconds since it was enqueued)",
    "enqueued_at": "age (seconds since it was enqueued)",
    "id": "jid",
    "name": "kind",
    "owner": "worker",
    "status": "state",
    "tag": "tags.NAME",
    "payload": "args.NAME",
    "kwargs": "args.NAME",
    "arg": "args.NAME",
    "retries": "failures",
    "attempts": "attempt",
}


class Operand(NamedTuple):
    """One side of a comparison: its node, where it stands and how it is written; `items` of a list."""

    node: dict[str, Any]
    at: int
    source: str
    items: tuple[Operand, ...] = ()

    @property
    def is_field(self) -> bool:
        return "f" in self.node


class Misfit(NamedTuple):
    """A comparison that makes no sense: where the mistake stands, and what it is."""

    at: int
    trouble: str


def misfit(op: str, left: Operand, right: Operand) -> Misfit | None:
    """What is wrong with a comparison whose answer could not depend on the job; None when nothing is."""
    if not left.is_field and not right.is_field:
        return Misfit(
            left.at,
            f"{left.source} {op} {right.source} is the same for every job; the name of a field stands without quotes, "
            "as in kind == 'upload'",
        )
    if op in ("^=", "$=", "~=") and right.node.get("v") == "":
        return Misfit(right.at, f"an empty text after {op} fits every text; compare with something")
    if right.items:
        return next(filter(None, (_apart("==", left, item) or _no_state(left, item) for item in right.items)), None)
    return _apart(op, left, right) or (_no_state(left, right) or _no_state(right, left) if op in ("==", "!=") else None)


def _apart(op: str, left: Operand, right: Operand) -> Misfit | None:
    ours, theirs = _kinds_of(left), _kinds_of(right)
    if any((a, b) in _TOGETHER[op] for a in ours for b in theirs):
        return None
    wrong = left if right.is_field and not left.is_field else right
    return Misfit(
        wrong.at,
        f"{left.source} {op} {right.source} is the same for every job: {left.source} is {_words(ours)} and "
        f"{right.source} is {_words(theirs)}; {op} compares {_pairs(op)}",
    )


def _pairs(op: str) -> str:
    return {
        "==": "values of one kind",
        "!=": "values of one kind",
        "^=": "text with text",
        "$=": "text with text",
        "~=": "text with text, or a list with one value",
        "in": "one value with a list, or text with text",
    }.get(op, "two numbers or two texts")


def _kinds_of(operand: Operand) -> frozenset[str]:
    if operand.is_field:
        return FIELDS[operand.node["f"]]
    value = operand.node["v"]
    if isinstance(value, bool):
        return frozenset({_BOOL})
    kinds = {str: _TEXT, type(None): _NULL, list: _LIST}
    return frozenset({kinds.get(type(value), _NUMBER)})


def _words(kinds: frozenset[str]) -> str:
    if kinds == FIELDS["args"]:
        return "any value"
    return " or ".join(sorted(kinds, reverse=True))


def _no_state(field: Operand, value: Operand) -> Misfit | None:
    states = [str(state) for state in State]
    if field.node.get("f") != "state" or value.is_field or value.node["v"] in states:
        return None
    return Misfit(
        value.at, f"no state {value.source}; {_near(str(value.node['v']), states)}there are: {', '.join(states)}"
    )


def unknown_field(name: str) -> str:
    """What to tell somebody who asked for a field that does not exist."""
    if name in _OTHER_NAMES:
        meant = f"did you mean {_OTHER_NAMES[name]}? "
    else:
        meant = _near(name, FIELDS)
    plain = [each for each in FIELDS if each not in ("args", "tags")]
    return f"no field {name!r}; {meant}there are: {', '.join(plain)}, args.NAME, tags.NAME"


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(names), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}? " if near else ""
