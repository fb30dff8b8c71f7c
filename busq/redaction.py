"""
Secrets kept out of what busq says and keeps: log lines, messages, tracebacks, tables, documents, health pages.

What looks like a login in a URL is hidden wherever it stands, and the passwords that this process connects with
(`guard`) are hidden in any form.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"
SHORTEST = 4  # a shorter password would blank out half of every line

# Without the scheme: on a terminal a colour may stand right before it, and its last letter looks like part of it.
# Bounded, so that a text made for it cannot make the search slow; a longer password is still found when guarded.
_LOGIN = re.compile(r"(://[^\s:/@\"'<>]{0,256}):[^\s\"'<>]{0,512}@")
_IN_QUERY = re.compile(r"([?&]\w*(?:password|passwd|token|secret)=)[^\s&\"'<>]+", re.IGNORECASE)
_NAMES = re.compile(r"passw|secret|token\b|api_?key|authorization|credential", re.IGNORECASE)

_guarded: list[str] = []


def guard(url: str | None) -> None:
    """From now on, never show the passwords of this URL."""
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
    """From now on, never show this: as it is written, as it was meant, or as others write it."""
    if not secret:
        return
    meant = unquote(secret)
    forms = {secret, meant, quote(meant, safe=""), json.dumps(meant)[1:-1], repr(meant)[1:-1]}
    _guarded[:] = sorted({*_guarded, *(each for each in forms if len(each) >= SHORTEST)}, key=len, reverse=True)


def hide(text: str) -> str:
    """The same text without secrets."""
    text = hide_logins(text)
    for secret in _guarded:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def hide_logins(text: str) -> str:
    """The same text without what looks like a login; what is valid JSON stays so."""
    if "://" in text:
        text = _LOGIN.sub(rf"\1:{HIDDEN}@", text)
        text = _IN_QUERY.sub(rf"\1{HIDDEN}", text)
    return text


def hide_within(value: Any) -> Any:
    """The same plain value (dicts, lists, texts, numbers) without secrets in any of its texts."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {hide(key) if isinstance(key, str) else key: hide_within(each) for key, each in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)(hide_within(each) for each in value)
    return value


def is_secret(name: str) -> bool:
    """Whether a value of this name had better not be shown."""
    return _NAMES.search(name) is not None
