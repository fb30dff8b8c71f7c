"""
Other people's words, made harmless for a terminal.

Reasons, kinds, arguments and error messages come from whoever enqueues or cancels. A terminal would obey an escape
sequence in them, and right-to-left marks can make one jid look like another.
"""

from __future__ import annotations


def safe(words: object, *, newlines: bool = False) -> str:
    """The same words with every character that is not printable spelled out, as in a Python string."""
    text = str(words)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (newlines and c == "\n") else spelled(c) for c in text)


def spelled(character: str) -> str:
    """One character as an escape: a newline as `\\n`, an escape character as `\\x1b`."""
    return character.encode("unicode_escape").decode("ascii")
