"""
The small language in which people say which jobs: from text to nodes.

Nodes are plain lists and dicts, as JSON writes them; one evaluator in Lua judges them (lua/lib/conditions.lua) and
nothing of the text is ever run. What is parsed here is bounded, for it is judged again and again while its rule lives.

    node     ["and", node...]   ["or", node...]   ["not", node]   [op, operand, operand]   ["under", jid]
    op       ==  !=  <  <=  >  >=  ^= (starts with)  $= (ends with)  ~= (contains)  in
    operand  {"v": value}  {"v": [value...]}  {"f": field}  {"f": "args", "p": [part...]}  {"f": "tags", "p": [name]}

`["under", jid]`, and the field `enqueued` (ms), only come from a `Filter`: no text gives them.

    kind == 'upload' and (args.path ^= '/tmp/' or not tags.tenant in ['a', 'b'])
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from busq.errors import BadWhere, UsageError
from busq.protocol.where_parser import Node, Parser

__all__ = ["LONGEST_TEXT", "Node", "fields_of", "parse_where"]

LONGEST_TEXT = 2000  # characters


def parse_where(text: str) -> Node:
    """
    The node that a text stands for.

    Raise `BadWhere`, which points at the mistake and says what would do; `UsageError` when it is no text at all.
    """
    given: Any = text
    if not isinstance(given, str):
        raise UsageError(f"where takes text, not {type(given).__name__} ({given!r:.60})")
    if len(text) > LONGEST_TEXT:
        raise BadWhere(text, LONGEST_TEXT, f"it has {len(text)} characters; at most {LONGEST_TEXT} are taken")
    for at, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise BadWhere(text, at, f"{character!r} is half a character, which cannot be written as UTF-8")
    return Parser(text).whole()


def fields_of(node: Node) -> frozenset[str]:
    """The fields that a node asks about; `under` among them where it asks for descendants of a job."""
    return frozenset(_fields_of(node))


def _fields_of(node: Node) -> Iterator[str]:
    word, *rest = node
    if word == "under":
        yield word
    elif word in ("and", "or", "not"):
        for each in rest:
            yield from _fields_of(each)
    else:
        yield from (operand["f"] for operand in rest if "f" in operand)
