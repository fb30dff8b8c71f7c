"""
Moments as people write them on a command line: a time of ISO 8601, or a length of time from now or before it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_LENGTH = re.compile(r"(\d+(?:\.\d+)?) ?([smhd])(?: ago)?\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def read(words: str, option: str) -> datetime | timedelta:
    """
    What was written: a moment, in UTC unless it says otherwise, or a length of time. Raise `UsageError`.

    What tables of busq show (`2026-01-02 10:00:00.000 UTC`) can be given back.
    """
    from busq.errors import UsageError

    words = words.strip()
    try:
        if match := _LENGTH.match(words):
            return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
        moment = datetime.fromisoformat(words.removesuffix(" UTC"))
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option}: {words!r} will not do; it takes a time, as 2026-01-02T10:00 (UTC unless it says otherwise), "
            "or a length of time, as 90s, 10m, 2h, 7d"
        ) from None


def ago(words: str, option: str, now: datetime) -> datetime:
    """A moment, a length of time being one before `now`. Raise `UsageError`."""
    from busq.errors import UsageError

    given = read(words, option)
    try:
        return given if isinstance(given, datetime) else now - given
    except OverflowError:
        raise UsageError(f"{option}: {words!r} is before the first year; use a shorter time") from None
