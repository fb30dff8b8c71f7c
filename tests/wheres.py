"""
Conditions to try things on: meanings written by hand, random ones with the jobs that they are asked of, and a printer.

Whatever evaluates conditions is held against `MEANINGS`, and beside the oracle (tests/store/judge.py) with `nodes()`
and `facts()`. Both draw from few values, so that random conditions often fit random jobs.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from busq.protocol.states import State

JOB: dict[str, Any] = {
    "jid": "order-17",
    "kind": "upload-part",
    "queue": "media",
    "group": "user:42",
    "parent": None,
    "worker": None,
    "state": "queued",
    "attempt": 2,
    "failures": 1,
    "losses": 0,
    "age": 90.5,
    "enqueued": 1_700_000_000_000,
    "args": {
        "path": "/tmp/a.mp4",
        "size": 3,
        "rate": 0.5,
        "force": True,
        "none": None,
        "empty": "",
        "labels": ["x", "y", 3, None, True, 2.5, ["x"]],
        "nested": {"deep": [{"er": "ü"}], "0": "text"},
        "odd name": "odd",
        "big": 2**53,
        "in": "keyword",
    },
    "tags": {"tenant": "a", "a.b": "point", "": "nameless"},
    "ancestors": {"root", "root.child"},
}
"""The job of which `MEANINGS` tells."""

MEANINGS: list[tuple[str, bool]] = [
    ("kind == 'upload-part'", True),
    ("kind == 'upload'", False),
    ("kind != 'upload'", True),
    ("kind ^= 'upload'", True),
    ("kind ^= 'upload-part-2'", False),
    ("kind $= '-part'", True),
    ("kind $= 'upload'", False),
    ("kind ~= 'load-p'", True),
    ("kind ~= 'loadp'", False),
    ("kind ~= '.'", False),  # no pattern: a point is a point
    ("kind ~= '%a'", False),
    ("kind ^= '^u'", False),
    ("'load' in kind", True),
    ("kind in 'an upload-part there'", True),
    ("kind in ['a', 'upload-part']", True),
    ("kind not in ['a', 'upload-part']", False),
    ("not kind in ('a', 'b')", True),
    ("group == null", False),
    ("parent == null", True),
    ("worker != null", False),
    ("parent ^= 'a'", False),
    ("parent < 'a'", False),
    ("parent in ['a', null]", True),
    ("state in ['queued', 'scheduled']", True),
    ("attempt == 2 and failures == 1 and losses == 0", True),
    ("attempt == 2.0", True),
    ("attempt >= 2 and attempt <= 2 and not attempt < 2 and not attempt > 2", True),
    ("attempt in [1, 2.0, 3]", True),
    ("age > 90 and age < 91", True),
    ("age > -1", True),
    ("jid > 'order-16' and jid < 'order-2'", True),
    ("kind < 'uploae' and kind > 'upload'", True),
    ("kind > 'Upload'", True),  # bytewise: capitals come first
    ("kind < 'ü'", True),
    ("args.path ^= '/tmp/'", True),
    ("args.path == '/tmp/a.mp4' or attempt == 9", True),
    ("args.missing == null", True),
    ("args.missing != 'a'", True),
    ("args.missing < 1", False),
    ("args.none == null", True),
    ("args.size == 3", True),
    ("args.size == '3'", False),
    ("args.size == true", False),
    ("args.force == true", True),
    ("args.force == 1", False),
    ("args.force != false", True),
    ("args.force in [1, true]", True),
    ("args.force in [1, 'true']", False),
    ("args.rate < 1 and args.rate == 5e-1", True),
    ("args.size < 'z'", False),
    ("args.size > 'a'", False),
    ("args.empty == ''", True),
    ("args.empty == null", False),
    ("args.path ^= args.empty and args.path $= args.empty and args.path ~= args.empty", True),
    ("args.empty in args.path", True),
    ("args.labels ~= 'x'", True),
    ("args.labels ~= 'z'", False),
    ("args.labels ~= 3", True),
    ("args.labels ~= 3.0", True),
    ("args.labels ~= null", True),
    ("args.labels ~= true", True),
    ("args.labels ~= false", False),
    ("'y' in args.labels", True),
    ("'z' not in args.labels", True),
    ("args.labels == args.labels", False),  # lists are equal to nothing
    ("args.labels != args.labels", True),
    ("args.nested == null", False),
    ("args.nested != null", True),
    ("args.labels.0 == 'x' and args.labels[1] == 'y'", True),
    ("args.labels.6.0 == 'x'", True),
    ("args.labels.7 == null", True),
    ("args.labels['0'] == null", True),
    ("args.nested.deep[0].er == 'ü'", True),
    ("args.nested['0'] == 'text'", True),
    ("args.nested.0 == null", True),  # an index finds nothing in a map
    ("args.path.0 == null", True),
    ("args.path.length == null", True),
    ("args['odd name'] == 'odd'", True),
    ("args.in == 'keyword'", True),
    ("args.big == 9007199254740992", True),
    ("args.0 == null", True),
    ("args.path == args.path", True),
    ("args.size == attempt", False),
    ("args.size > attempt", True),
    ("args.none == args.missing", True),
    ("tags.tenant == 'a'", True),
    ("tags['a.b'] == 'point' and tags[''] == 'nameless'", True),
    ("tags.other == null", True),
    ("tags.other ^= 'a'", False),
    ("tags.tenant in ['a', 'b']", True),
    ("kind == 'a' or kind == 'upload-part' and attempt == 9", False),
    ("(kind == 'a' or kind == 'upload-part') and not attempt == 9", True),
    ("not (kind == 'a' or attempt == 9)", True),
    ("not not attempt == 2", True),
]
"""Expressions, and whether `JOB` fits them."""


# Random ones -----------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(["a", "b", "ab", "ba", "/tmp/a", "B", "ü", "漢", "\0", "'", '"', "\\", "\n", "%a", "0"])
ANY_TEXTS = TEXTS | st.just("") | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
NUMBERS = (
    st.integers(-2, 3)
    | st.integers(-(2**53), 2**53)
    | st.sampled_from([0.5, -0.5, 1.0, 2.0])
    | st.floats(allow_nan=False, allow_infinity=False)
)
PLAIN = ANY_TEXTS | NUMBERS | st.booleans() | st.none()
NAMES = st.sampled_from(["a", "b", "in", "odd name", "", "0", "ü", "1x"])
PARTS = NAMES | st.integers(0, 3)

TEXT_FIELDS = st.sampled_from([{"f": name} for name in ("jid", "kind", "queue", "group", "parent", "worker")])
MAYBE_FIELDS = st.sampled_from([{"f": name} for name in ("group", "parent", "worker")])
NUMBER_FIELDS = st.sampled_from([{"f": name} for name in ("attempt", "failures", "losses", "age")])
ARGS = st.lists(PARTS, min_size=1, max_size=3).map(lambda parts: {"f": "args", "p": parts})
TAGS = NAMES.map(lambda name: {"f": "tags", "p": [name]})
STATES = st.sampled_from([str(state) for state in State])


def _v(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return values.map(lambda value: {"v": value})


def _lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return _v(st.lists(values, min_size=1, max_size=4))


def _written(ops: list[str], left: st.SearchStrategy[Any], right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.sampled_from(ops), left, right).map(list)


_EQUAL, _ORDER, _PARTLY = ["==", "!="], ["<", "<=", ">", ">="], ["^=", "$=", "~="]
_SPEAKING = TEXT_FIELDS | TAGS | ARGS

COMPARISONS = st.one_of(
    _written(_EQUAL, _SPEAKING, _v(ANY_TEXTS) | _SPEAKING),
    _written(_EQUAL, MAYBE_FIELDS | TAGS, _v(st.none())),
    _written(_EQUAL, NUMBER_FIELDS | ARGS, _v(NUMBERS) | NUMBER_FIELDS | ARGS),
    _written(_EQUAL, ARGS, _v(PLAIN)),
    _written(_EQUAL, st.just({"f": "state"}), _v(STATES)),
    _written(_EQUAL, _v(NUMBERS), NUMBER_FIELDS),
    _written(_ORDER, _SPEAKING, _v(ANY_TEXTS) | _SPEAKING),
    _written(_ORDER, NUMBER_FIELDS | ARGS, _v(NUMBERS) | NUMBER_FIELDS | ARGS),
    _written(_PARTLY, _SPEAKING, _v(ANY_TEXTS.filter(bool)) | _SPEAKING),
    _written(["~="], ARGS, _v(PLAIN.filter(lambda value: value != "")) | NUMBER_FIELDS),
    _written(["in"], _SPEAKING, _lists(ANY_TEXTS) | _v(ANY_TEXTS) | _SPEAKING),
    _written(["in"], MAYBE_FIELDS | TAGS, _lists(ANY_TEXTS | st.none())),
    _written(["in"], NUMBER_FIELDS | ARGS, _lists(NUMBERS)),
    _written(["in"], ARGS, _lists(PLAIN)),
    _written(["in"], st.just({"f": "state"}), _lists(STATES)),
    _written(["in"], _v(PLAIN), ARGS),
    _written(["in"], _v(ANY_TEXTS), _SPEAKING),
)


def nodes() -> st.SearchStrategy[Any]:
    """Conditions that can be written as text, all of them with a meaning."""
    return st.recursive(
        COMPARISONS,
        lambda inner: (
            st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=4)).map(
                lambda drawn: [drawn[0], *drawn[1]]
            )
            | inner.map(lambda node: ["not", node])
        ),
        max_leaves=8,
    )


def facts() -> st.SearchStrategy[dict[str, Any]]:
    """Jobs: everything that a condition may ask about."""
    # MessagePack tells bytes and moments apart from text and numbers.
    odd = st.binary(max_size=2) | st.integers(2**53, 2**64 - 1) | st.just(datetime(2026, 1, 1, tzinfo=UTC))
    values = st.recursive(
        PLAIN | odd, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
    )
    counts = st.integers(0, 3)
    maybe = TEXTS | st.none()
    return st.fixed_dictionaries(
        {
            "jid": TEXTS, "kind": TEXTS, "queue": TEXTS, "group": maybe, "parent": maybe, "worker": maybe,
            "state": STATES, "attempt": counts, "failures": counts, "losses": counts,
            "age": st.floats(0, 3), "enqueued": st.integers(0, 3),
            "args": st.dictionaries(NAMES, values, max_size=3) | st.lists(values, max_size=3),
            "tags": st.dictionaries(NAMES, ANY_TEXTS, max_size=2),
            "ancestors": st.sets(TEXTS, max_size=2),
        }
    )  # fmt: skip


# Printing --------------------------------------------------------------------------------------------------


def printed(node: Any) -> str:
    """A text that stands for this node."""
    word, *rest = node
    if word in ("and", "or"):
        return f" {word} ".join(_inside(each) for each in rest)
    if word == "not":
        return f"not {_inside(rest[0])}"
    left, right = rest
    return f"{_operand(left)} {word} {_operand(right)}"


def _inside(node: Any) -> str:
    return f"({printed(node)})" if node[0] in ("and", "or") else printed(node)


def _operand(operand: Any) -> str:
    if "v" in operand:
        value = operand["v"]
        return "[" + ", ".join(map(_literal, value)) + "]" if isinstance(value, list) else _literal(value)
    return str(operand["f"]) + "".join(_part(part) for part in operand.get("p", ()))


def _part(part: str | int) -> str:
    if isinstance(part, int):
        return f".{part}"
    return f".{part}" if re.fullmatch(r"[^\W\d]\w*", part) else f"[{_literal(part)}]"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        return f"'{escaped}'"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)
