"""
The grammar of a `where` expression, by recursive descent.

`or` binds loosest, then `and`, then `not`, then one comparison. Whatever is refused is refused at its place in the
text, with what was found and what would do; nothing that parses can recurse deeper or grow bigger than the bounds say.

    either      both ("or" both)*
    both        negation ("and" negation)*
    negation    "not" negation | condition
    condition   "(" either ")" | comparison
    comparison  operand op operand | operand ["not"] "in" (list | operand)
    operand     literal | field;  list  "[" literal, ... "]" or the same in parentheses
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from busq.errors import BadWhere
from busq.protocol.where_fields import FIELDS, Operand, misfit, unknown_field
from busq.protocol.where_tokens import COMPARISONS, Token, Tokens, shortened

Node = list[Any]

DEEPEST = 32  # parentheses and nots within one another
MOST_NODES = 200
LONGEST_LIST = 100

_LITERALS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_RESERVED = ("and", "or", "not", "in")
_FOREIGN_OPERATORS = {
    "is": "==",
    "eq": "==",
    "contains": "~=",
    "like": "~= (contains)",
    "startswith": "^=",
    "starts": "^=",
    "endswith": "$=",
    "ends": "$=",
    "matches": "^= (starts with), $= (ends with) or ~= (contains)",
}

_EXAMPLE = "== 'a'"
_EXAMPLES = {"args": "== true", "age": "> 3600", "attempt": ">= 3", "failures": ">= 3", "losses": ">= 3"}


def _as_in(operand: Operand) -> str:
    if not operand.is_field:
        return f"kind == {operand.source}"
    return f"{operand.source} {_EXAMPLES.get(operand.node['f'], _EXAMPLE)}"


class Parser:
    """One method for each rule of the grammar, the loosest first; `token` is the next one not yet taken."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = Tokens(text)
        self._depth = 0
        self._nodes = 0
        self._behind = 0  # where the last token taken ends
        self.token = self._tokens.next()

    def whole(self) -> Node:
        if self.token.kind == "end":
            self._fail(self.token, "it is empty; say which jobs, as in kind == 'upload'")
        node = self._either()
        if self.token.is_sign(*COMPARISONS) or self.token.is_word("in"):
            self._fail(self.token, f"{self.token} follows a whole condition; join two comparisons with and")
        if self.token.is_sign(")"):
            self._fail(self.token, "no ( is open that this ) could close")
        if self.token.kind != "end":
            self._unexpected("'and', 'or' or the end")
        return node

    def _either(self) -> Node:
        return self._joined("or", self._both)

    def _both(self) -> Node:
        return self._joined("and", self._negation)

    def _joined(self, word: str, part: Callable[[], Node]) -> Node:
        start = self.token
        parts = [part()]
        while self.token.is_word(word):
            self._take()
            parts.append(part())
        return parts[0] if len(parts) == 1 else self._node(start, word, *parts)

    def _negation(self) -> Node:
        if not self.token.is_word("not"):
            return self._condition()
        word = self._take()
        self._go_deeper(word)
        node = self._node(word, "not", self._negation())
        self._depth -= 1
        return node

    def _condition(self) -> Node:
        if not self.token.is_sign("("):
            return self._comparison()
        opening = self._take()
        self._go_deeper(opening)
        node = self._either()
        if not self.token.is_sign(")"):
            self._unexpected(f"'and', 'or' or a ) for the ( at position {opening.at}")
        self._take()
        self._depth -= 1
        return node

    def _comparison(self) -> Node:
        left = self._operand()
        start, negated = self.token, False
        if self.token.is_word("not"):
            self._take()
            negated = True
            if not self.token.is_word("in"):
                self._unexpected("in, as in kind not in ['a', 'b']")
        op = self._operator(left)
        right = self._list() if op == "in" and self.token.is_sign("[", "(") else self._operand(on_the_right=True)
        if wrong := misfit(op, left, right):
            raise BadWhere(self._text, wrong.at, wrong.trouble)
        node = self._node(start, op, left.node, right.node)
        return self._node(start, "not", node) if negated else node

    def _operator(self, left: Operand) -> str:
        if self.token.is_sign(*COMPARISONS) or self.token.is_word("in"):
            return self._take().source
        meant = _FOREIGN_OPERATORS.get(self.token.source.lower())
        if self.token.kind == "word" and meant:
            self._fail(self.token, f"no operator {self.token}; write {meant}")
        if self.token.kind == "end" or self.token.is_word("and", "or") or self.token.is_sign(")"):
            self._fail(self.token, f"{left.source} stands alone; compare it, as in {_as_in(left)}")
        return self._unexpected(f"one of {' '.join(COMPARISONS)} in")

    # Values ----------------------------------------------------------------------------------------------

    def _operand(self, *, on_the_right: bool = False) -> Operand:
        token = self.token
        if token.kind in ("text", "number") or token.is_word(*_LITERALS):
            return self._literal()
        if token.kind == "word" and token.source not in _RESERVED:
            return self._field(on_the_right=on_the_right)
        if token.is_sign("["):
            self._fail(token, "a list stands only on the right of in")
        if token.is_sign("("):
            self._fail(token, "parentheses hold whole conditions, or a list on the right of in; a value stands alone")
        return self._unexpected("a field or a value")

    def _literal(self) -> Operand:
        token = self._take()
        value = _LITERALS[token.source] if token.kind == "word" else token.value
        return Operand({"v": value}, token.at, shortened(token.source))

    def _list(self) -> Operand:
        opening = self._take()
        closing = "]" if opening.source == "[" else ")"
        items: list[Operand] = []
        while not self.token.is_sign(closing):
            if not (self.token.kind in ("text", "number") or self.token.is_word(*_LITERALS)):
                self._unexpected("a text, a number, true, false or null")
            if len(items) == LONGEST_LIST:
                self._fail(self.token, f"a list takes at most {LONGEST_LIST} values")
            items.append(self._literal())
            if self.token.is_sign(","):
                self._take()
            elif not self.token.is_sign(closing):
                self._unexpected(f", or {closing}")
        if not items:
            self._fail(opening, "an empty list: nothing is in it, so this is the same for every job")
        self._take()
        return Operand({"v": [item.node["v"] for item in items]}, opening.at, "the list", tuple(items))

    def _field(self, *, on_the_right: bool) -> Operand:
        name = self._take()
        if name.source not in FIELDS:
            self._fail(name, self._no_field(name, on_the_right=on_the_right))
        parts = list(self._parts(as_text=name.source == "tags"))
        node: dict[str, Any] = {"f": name.source}
        if name.source in ("args", "tags"):
            if not parts:
                self._fail(name, f"{name} is followed by a name, as in {name}.path or {name}['odd name']")
            if name.source == "tags" and len(parts) > 1:
                self._fail(name, "a tag has one name; one with a point in it is quoted, as in tags['a.b']")
            node["p"] = parts
        elif parts:
            self._fail(name, f"{name} has no parts; only args and tags are followed by a name")
        return Operand(node, name.at, shortened(self._text[name.at : self._behind]))

    def _parts(self, *, as_text: bool) -> Iterator[str | int]:
        """The names and indexes that follow a field; of tags only names."""
        while True:
            if self.token.kind == "part":
                part = self._take()
                yield part.value if as_text else self._name_or_index(part)
            elif self.token.is_sign("["):
                self._take()
                yield self._bracketed(as_text)
            else:
                return

    def _name_or_index(self, part: Token) -> str | int:
        name: str = part.value
        if name.isascii() and name.isdigit():
            return self._index(part, int(name))
        if name[0].isdigit():
            self._fail(part, f"a name that begins with a digit is quoted: ['{shortened(name)}']")
        return name

    def _bracketed(self, as_text: bool) -> str | int:
        inside = self.token
        if inside.kind == "number" and not as_text:
            part: str | int = self._index(inside, inside.value)
        elif inside.kind == "text":
            part = inside.value
        else:
            self._unexpected("a name in quotes" + ("" if as_text else " or an index"))
        self._take()
        if not self.token.is_sign("]"):
            self._unexpected("]")
        self._take()
        return part

    def _index(self, token: Token, number: int | float) -> int:
        if isinstance(number, float) or not 0 <= number < 2**31:
            self._fail(token, f"{token} is no index; indexes are whole numbers and count from 0")
        return number

    # Moving on, and what is wrong ------------------------------------------------------------------------

    def _take(self) -> Token:
        token = self.token
        self._behind = token.at + len(token.source)
        self.token = self._tokens.next()
        return token

    def _node(self, token: Token, *parts: Any) -> Node:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            self._fail(token, f"it has more than {MOST_NODES} comparisons and joins; a list after in takes many values")
        return list(parts)

    def _go_deeper(self, token: Token) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            self._fail(token, f"more than {DEEPEST} parentheses and nots stand within one another")

    def _no_field(self, name: Token, *, on_the_right: bool) -> str:
        lower = name.source.lower()
        if lower in (*_RESERVED, *_LITERALS):
            return f"{name} is written {lower}"
        return unknown_field(shortened(name.source)) + (f"; text stands in quotes: '{name}'" if on_the_right else "")

    def _unexpected(self, wanted: str) -> NoReturn:
        lower = self.token.source.lower()
        written = self.token.kind == "word" and lower != self.token.source and lower in _RESERVED
        self._fail(
            self.token, f"found {self.token}, where {wanted} was expected" + (f"; write {lower}" if written else "")
        )

    def _fail(self, token: Token, trouble: str) -> NoReturn:
        raise BadWhere(self._text, token.at, trouble)
