"""
The words of a `where` expression: from text to tokens, one at a time.

A token knows where it stands, so that whoever finds a mistake can point at it. Tokens are cut only when they are asked
for: the first mistake in the text is the one that is told.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple, NoReturn

from busq.errors import BadWhere

BIGGEST_INTEGER = 2**53
"""Numbers are compared as doubles, which tell whole numbers apart up to here."""

COMPARISONS = ("==", "!=", "<=", ">=", "<", ">", "^=", "$=", "~=")

_TOKEN = re.compile(
    r"""(?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
      | (?P<part>\.\w+)
      | (?P<word>[^\W\d]\w*)
      | (?P<sign>==|!=|<=|>=|\^=|\$=|~=|[<>()\[\],])""",
    re.VERBOSE,
)
_BLANK = re.compile(r"\s*")
_GLUED = re.compile(r"[\w.]+")

# What people write who come from elsewhere. The longer one of two with the same beginning stands first.
_FOREIGN = {
    "=>": "greater or equal is >=",
    "=<": "less or equal is <=",
    "=~": "contains is ~=",
    "=": "equal is ==",
    "<>": "unequal is !=",
    "&&": "write and",
    "&": "write and",
    "||": "write or",
    "|": "write or",
    "!": "write not, or != for unequal",
    "+": "a number has no + in front",
    "-": "- only stands in front of a number; a name with - in it is quoted, as in args['odd-name']",
    ".": "a name follows a point at once; an odd one is quoted, as in args['odd name']",
    "*": "there are no patterns; starts with is ^=, ends with is $=, contains is ~=",
    "%": "there are no patterns; starts with is ^=, ends with is $=, contains is ~=",
    "`": "text stands in single or double quotes",
    ";": "there is one expression, without ; at its end",
}
_ESCAPES = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}


class Token(NamedTuple):
    """`kind` is word, part (a point and a name), text, number, sign or end; `source` is how it is written."""

    kind: str
    value: Any
    at: int
    source: str

    def is_sign(self, *signs: str) -> bool:
        return self.kind == "sign" and self.source in signs

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.source in words

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else shortened(self.source)


def shortened(source: str) -> str:
    """Not more of it than fits into a message."""
    return source if len(source) <= 40 else source[:37] + "..."


class Tokens:
    """Cuts `text` into tokens; `next()` after the last one gives `end` again and again."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def next(self) -> Token:
        """Raise `BadWhere` for what is no token."""
        self._at = _end_of(_BLANK, self._text, self._at)
        at = self._at
        if at == len(self._text):
            return Token("end", None, at, "")
        if self._text[at] in "'\"":
            return Token("text", self._quoted(at), at, self._text[at : self._at])
        found = next((foreign for foreign in _FOREIGN if self._text.startswith(foreign, at)), "")
        match = _TOKEN.match(self._text, at)
        if match is None or len(found) > len(match.group()):
            self._fail(at, f"{found or self._text[at]!r} has no meaning here" + _hint(found))
        self._at = match.end()
        kind, source = str(match.lastgroup), match.group()
        value: Any = self._number(at, source) if kind == "number" else source.removeprefix(".")
        return Token(kind, value, at, source)

    def _number(self, at: int, source: str) -> int | float:
        if glued := _GLUED.match(self._text, self._at):
            self._fail(at, f"{shortened(source + glued.group())} is no number; times are plain numbers of seconds")
        if source.lstrip("-").isdigit():
            whole = int(source)
            if abs(whole) > BIGGEST_INTEGER:
                self._fail(at, f"{shortened(source)} is beyond 2**53, where numbers can no longer be told apart")
            return whole
        number = float(source)
        if math.isinf(number):
            self._fail(at, f"{shortened(source)} is beyond the biggest number there is (about 1.8e308)")
        return number

    def _quoted(self, start: int) -> str:
        """The text that opens at `start`; moves on behind its closing quote."""
        text, quote, at = self._text, self._text[start], start + 1
        read: list[str] = []
        while at < len(text) and text[at] != quote:
            if text[at] == "\\":
                character, at = self._escaped(at)
                read.append(character)
            else:
                read.append(text[at])
                at += 1
        if at >= len(text):
            self._fail(start, f"the text that begins here has no closing {quote}")
        self._at = at + 1
        return "".join(read)

    def _escaped(self, at: int) -> tuple[str, int]:
        """The character that the escape at `at` stands for, and where the text goes on."""
        mark = self._text[at + 1 : at + 2]
        if mark in _ESCAPES:
            return _ESCAPES[mark], at + 2
        if mark == "u":
            digits = self._text[at + 2 : at + 6]
            if re.fullmatch(r"[0-9a-fA-F]{4}", digits) and not 0xD800 <= int(digits, 16) <= 0xDFFF:
                return chr(int(digits, 16)), at + 6
            self._fail(at, r"\u takes four hex digits of one character, as in \u00e4; surrogates are none")
        self._fail(at, rf"no escape \{mark}; there are \\ \' \" \n \r \t \u00e4; a backslash itself is \\")

    def _fail(self, at: int, trouble: str) -> NoReturn:
        raise BadWhere(self._text, at, trouble)


def _hint(foreign: str) -> str:
    return f"; {_FOREIGN[foreign]}" if foreign else ""


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()
