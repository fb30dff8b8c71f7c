"""
The end of a run: wait until nothing moves any more, and write down everything that is left.

Quiet is asked of the servers' keys, not of busq: no entry in a queue, nothing scheduled, waiting, due or suspected, no
rule at work. What is not quiet in time is named, and that is a violation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from faults.server import Server

TERMINAL = ("succeeded", "failed", "cancelled")
OPEN = ("scheduled", "waiting", "deadlines", "timers", "cascades", "suspects")
LOOK_S = 0.25
PATIENCE_S = 120.0  # nothing happens to the servers any more, so only a busy machine keeps them from answering


async def until_quiet(servers: Sequence[Server], namespace: str, limit_s: float) -> list[str]:
    """Wait until the bus is at rest on all servers; what keeps it from it after `limit_s`, as lines for people."""
    end = time.monotonic() + limit_s
    while True:
        left = [f"{server.name}: {words}" for server in servers for words in await _unrest(server, namespace)]
        if not left or time.monotonic() > end:
            return left
        await asyncio.sleep(LOOK_S)


async def _unrest(server: Server, namespace: str) -> list[str]:
    try:
        async with server.admin(PATIENCE_S) as admin:
            return await _open_in(admin, namespace)
    except (RedisError, OSError) as error:
        return [f"it does not answer: {error}"]


async def _open_in(admin: Redis, namespace: str) -> list[str]:
    left = []
    async for key in admin.scan_iter(match=f"{namespace}:{{*", count=5000):
        shard, _, name = key.decode("utf-8", "replace").removeprefix(namespace).partition("}:")
        if name.startswith("job:"):
            continue
        count = 0
        if name.startswith("queue:"):
            count = await admin.xlen(key)
        elif name in OPEN or name.startswith("children:"):
            count = await admin.zcard(key)
        elif name == "rules":
            count = await _rules_at_work(admin, key)
        if count:
            left.append(f"shard {shard.removeprefix(':{')}, {name}: {count}")
    return left


async def _rules_at_work(admin: Redis, key: bytes) -> int:
    """How many are to leave: one that stands lives on until its end, by a clock that may have been set back."""
    now, held = _ms(await admin.time()), await admin.hgetall(key)
    ends = [int(text.split(b" ", 3)[2]) for number, text in held.items() if number.isdigit()]
    return sum(end <= now for end in ends)


async def stuck(servers: Sequence[Server], namespace: str) -> list[str]:
    """Records of jobs that have not ended."""
    found = []
    for server in servers:
        async with server.admin(PATIENCE_S) as admin:
            found += await _stuck_in(admin, namespace)
    return found


async def _stuck_in(admin: Redis, namespace: str, most: int = 20) -> list[str]:
    found = []
    async for key in admin.scan_iter(match=f"{namespace}:{{*}}:job:*", count=5000):
        state = await admin.hget(key, "state")
        if state is None or state.decode() not in TERMINAL:
            record = {k.decode(): v.decode("utf-8", "replace")[:120] for k, v in (await admin.hgetall(key)).items()}
            found.append(f"{key.decode()}: {record}")
            if len(found) == most:
                break
    return found


async def said_of_themselves(servers: Sequence[Server]) -> dict[str, Any]:
    """INFO of each, by its name."""
    found = {}
    for server in servers:
        async with server.admin(PATIENCE_S) as admin:
            found[server.name] = _plain(await admin.info())
    return found


async def dump(servers: Sequence[Server], namespace: str, before: dict[str, Any]) -> dict[str, Any]:
    """Every key of the bus with its type, what is left of its life (ms) and its value; bytes as latin-1."""
    keys: dict[str, Any] = {}
    now: dict[str, int] = {}
    for server in servers:
        async with server.admin(PATIENCE_S) as admin:
            keys |= await _keys_of(admin, namespace)
            now[server.name] = _ms(await admin.time())
    return {"server_ms": now, "info_before": before, "info": await said_of_themselves(servers), "keys": keys}


async def _keys_of(admin: Redis, namespace: str) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    names = [key async for key in admin.scan_iter(match=f"{namespace}:*", count=5000)]
    for key in sorted(names):
        kind = (await admin.type(key)).decode()
        keys[_text(key)] = {"type": kind, "pttl": await admin.pttl(key), "value": await _value(admin, key, kind)}
    return keys


async def _value(admin: Redis, key: bytes, kind: str) -> Any:
    if kind == "hash":
        return {_text(name): _text(value) for name, value in (await admin.hgetall(key)).items()}
    if kind == "zset":
        return [[_text(member), score] for member, score in await admin.zrange(key, 0, -1, withscores=True)]
    if kind == "set":
        return sorted(_text(member) for member in await admin.smembers(key))
    if kind == "stream":
        return await _stream(admin, key)
    return _text(await admin.get(key))


async def _stream(admin: Redis, key: bytes) -> Any:
    if key.endswith(b":events"):  # the append-only file tells all of it
        return {"length": await admin.xlen(key)}
    entries = [
        [_text(entry), {_text(k): _text(v) for k, v in fields.items()}] for entry, fields in await admin.xrange(key)
    ]
    groups = _plain(await admin.xinfo_groups(key))
    for group in groups:
        group["consumers"] = _plain(await admin.xinfo_consumers(key, group["name"].encode("latin-1")))
    return {"length": len(entries), "entries": entries, "groups": groups}


def _ms(time_of_server: Any) -> int:
    seconds, micro = time_of_server
    return int(seconds) * 1000 + int(micro) // 1000


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(_text(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return _text(value)
