"""
Other people's words, made harmless for a terminal, and without secrets.

Reasons, kinds, arguments and error messages come from whoever enqueues or cancels. A terminal would obey an escape
sequence in them, and right-to-left marks can make one jid look like another.
"""

from __future__ import annotations

from typing import Any

import msgspec

from busq.redaction import hide, hide_within


def safe(words: object, *, newlines: bool = False) -> str:
    """The same words with every character that is not printable spelled out, as in a Python string."""
    text = str(words)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (newlines and c == "\n") else spelled(c) for c in text)


def spelled(character: str) -> str:
    """One character as an escape: a newline as `\\n`, an escape character as `\\x1b`."""
    return character.encode("unicode_escape").decode("ascii")


def shown(words: object, *, newlines: bool = False) -> str:
    """Words of others as they may be shown: `safe`, and without secrets."""
    return safe(hide(str(words)), newlines=newlines)


def safe_json(data: bytes) -> str:
    """A JSON document as it may be shown: the same one, but for secrets in its texts; unprintable ones are escapes."""
    text = data.decode()
    if hide(text) != text:
        text = msgspec.json.encode(hide_within(msgspec.json.decode(data))).decode()
    return text if text.isascii() else "".join(c if c.isprintable() or c == "\n" else _unicode_escape(c) for c in text)


def _unicode_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def plain_json(value: Any) -> str:
    """A value of ours as one line of JSON, as it may be shown."""
    return safe_json(msgspec.json.encode(value))
