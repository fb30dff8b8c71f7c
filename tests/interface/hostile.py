"""
What somebody might put into a job to deceive whoever looks at it, and how to tell that it did not work.

SPELL holds every character that steers a terminal, breaks a line or turns text round; CANARY is a secret.
"""

from __future__ import annotations

CHARACTERS = [
    *map(chr, range(0x01, 0x20)),  # C0, with newline and escape; NUL stands in no argument
    "\x7f",
    *map(chr, range(0x80, 0xA0)),  # C1: one of them is an escape sequence by itself
    *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\u200e", "\u200f", "\u061c",  # bidi
    "\u2028", "\u2029", "\ufeff", "\U000e0041",
]  # fmt: skip
FORGED = "FORGED LINE"
SPELL = "[" + "".join(CHARACTERS) + "\x1b]0;title\x07\x1b[2J\n" + FORGED + "\r\n" + FORGED + "]"

PASSWORD = 'pw/"q:1 @cänary'
CANARY = "cänary"
IN_A_URL = "redis://somebody:hunter2-canary@elsewhere:6379/0"
SECRETS = (CANARY, "c\\u00e4nary", "c%C3%A4nary", "c\\xe4nary", "hunter2-canary")


def steering(text: str) -> list[str]:
    """Characters in a text that must not reach a terminal or a log as they are."""
    return sorted({hex(ord(c)) for c in text if not (c.isprintable() or c == "\n")})


def forged(text: str) -> list[str]:
    """Lines that somebody else has written."""
    return [line for line in text.splitlines() if line.startswith(FORGED)]


def revealed(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]
