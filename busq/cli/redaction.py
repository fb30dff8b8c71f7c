"""
Secrets kept out of what we print: in log lines, in messages, in tracebacks.

What looks like a login in a URL is hidden wherever it stands, and the passwords that this process was given (`guard`)
are hidden in any form.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
SHORTEST = 4  # a shorter password would blank out half of every line

# Without the scheme: on a terminal a colour may stand right before it, and its last letter looks like part of it.
_LOGIN = re.compile(r"(://[^\s:/@\"'<>]*):[^\s\"'<>]*@")
_IN_QUERY = re.compile(r"([?&]\w*(?:password|passwd|token|secret)=)[^\s&\"'<>]+", re.IGNORECASE)
_NAMES = re.compile(r"passw|secret|token\b|api_?key|authorization|credential", re.IGNORECASE)

_guarded: set[str] = set()


def guard(url: str | None) -> None:
    """From now on, never show the passwords of this URL, written as they are or as they were meant."""
    if not url:
        return
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return
    guard_secret(password)
    for each in parts.query.split("&"):
        name, _, value = each.partition("=")
        if is_secret(name):
            guard_secret(value)


def guard_secret(secret: str | None) -> None:
    """From now on, never show this, written as it is or as it was meant."""
    if secret:
        _guarded.update(each for each in (secret, unquote(secret)) if len(each) >= SHORTEST)


def hide(text: str) -> str:
    """The same text without secrets."""
    if "://" in text:
        text = _LOGIN.sub(rf"\1:{HIDDEN}@", text)
        text = _IN_QUERY.sub(rf"\1{HIDDEN}", text)
    for secret in _guarded:
        text = text.replace(secret, HIDDEN)
    return text


def is_secret(name: str) -> bool:
    """Whether a value of this name had better not be shown."""
    return _NAMES.search(name) is not None
