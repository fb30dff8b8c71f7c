"""
What no bus may hold, looked for at the end of every test on the bench and after whole stories.

At any moment a key is one that the table of keys names, of the type that it says; a record expires when its job has
ended and not before; and what is said to expire does.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from busq.protocol.keys import KEY_TABLE, LEFT_WHEN_DRAINED
from busq.protocol.states import State, is_terminal

DAY_MS = 86_400_000
TYPES = {"sorted set": "zset", "sorted sets": "zset"}


@cache
def patterns() -> list[tuple[re.Pattern[bytes], str, str]]:
    """For each row: which keys are meant, its name and its type."""
    rows = []
    for named, kind, *_ in KEY_TABLE:
        place = re.escape(named).replace(re.escape("{s}"), r"\{\d+\}")
        place = place.replace(re.escape("<queue or group>"), "(queue:[A-Za-z0-9_.:/-]+|group:.+)")
        place = re.sub(r"<(jid|queue|id)>", "[A-Za-z0-9_.:/-]+", place)
        place = place.replace("<state>", "(succeeded|failed|cancelled)")
        kind = kind.split(",")[0]
        rows.append((re.compile(rf"[A-Za-z0-9_.-]+:{place}".encode()), named, TYPES.get(kind, kind)))
    return rows


def row_of(key: bytes) -> tuple[str, str]:
    """The row that names a key, and the type that it says; two empty strings for none."""
    for pattern, named, kind in patterns():
        if pattern.fullmatch(key):
            return named, kind
    return "", ""


async def complaints(redis: Any) -> list[str]:
    """What is wrong with what the server holds, at any moment."""
    found = []
    for key in await redis.keys("*"):
        named, kind = row_of(key)
        is_kind, left_ms = (await redis.type(key)).decode(), await redis.pttl(key)
        said = f"{key.decode(errors='replace')} ({is_kind}, expires in {left_ms} ms)"
        if not named:
            found.append(f"{said} is named by no row of the table of keys")
        elif is_kind != kind:
            found.append(f"{said} is said to be a {kind}")
        elif named in ("{s}:job:<jid>", "{s}:scope:<id>"):
            state = (await redis.hget(key, "state") or b"").decode()
            over = (
                state in ("settled", "revoked")
                if "scope" in named
                else state in set(State) and is_terminal(State(state))
            )
            if over != (left_ms > 0) and left_ms != -2:
                found.append(f"{said} is {state!r}")
        elif (LEFT_WHEN_DRAINED.get(named) == "expires") != (left_ms > 0) and left_ms != -2:
            found.append(f"{said} is said to {'expire' if left_ms < 0 else 'stay'}")
    return found


async def residue(redis: Any) -> list[str]:
    """What a drained bus holds beyond that, though it should hold less."""
    found = await complaints(redis)
    for key in await redis.keys("*"):
        named, _ = row_of(key)
        how = LEFT_WHEN_DRAINED.get(named)
        if how is None:
            found.append(f"{key.decode()} is left of a drained bus")
        elif how == "for good, empty" and await redis.xlen(key):
            found.append(f"{key.decode()} holds {await redis.xlen(key)} entries")
        elif how == "expires" and await redis.pttl(key) > DAY_MS:
            found.append(f"{key.decode()} expires later than in a day")
    return found
