"""
Which roles the present Redis user can play, found out without doing anything.

Commands are queued behind a MULTI, where the server refuses at once what the user may not, and then discarded: nothing
of them is ever run. That is open to every user who has these two commands; ACL DRYRUN is for administrators.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from redis.exceptions import NoPermissionError, ResponseError

from busq.store import roles
from busq.store.connection import Client
from busq.store.fitness import Finding, Grade, Info
from busq.store.roles import Grants, Role

NAMED = 8  # of what is missing; a user of another bus lacks nearly everything

# Redis 7.0: "…to access one of the keys used as arguments", Redis 7.2 and later: "No permissions to access a key".
_NOT_THE_COMMAND = "permissions to access"

Words = tuple[str, ...]

# Arguments for commands whose keys do not stand first, and for those that take other words than keys; the server
# counts arguments before it asks who may send them.
_ARGUMENTS: dict[str, Words] = {
    "evalsha": ("0" * 40, "1", "KEY"),
    "evalsha_ro": ("0" * 40, "1", "KEY"),
    "xreadgroup": ("GROUP", "g", "c", "STREAMS", "KEY", ">"),
    "xgroup|create": ("KEY", "g", "0"),
    "xgroup|delconsumer": ("KEY", "g", "c"),
    "config|get": ("maxmemory",),
    "acl|dryrun": ("default", "PING"),
    "command|info": ("GET",),
    "script|load": ("return 1",),
    "script|exists": ("0" * 40,),
    "client|setinfo": ("LIB-NAME", "busq"),
    "select": ("0",),
    "client|unblock": ("0",),
    "wait": ("0", "1"),
    "waitaof": ("0", "0", "1"),
}
_NO_KEY = {"ping", "info", "time", "acl|whoami", "unsubscribe", "cluster|slots", "asking", "client|id"}
_MORE = {
    "hget": 1, "hmget": 1, "hset": 2, "hsetnx": 2, "hdel": 1, "hexists": 1, "hincrby": 2, "pexpire": 1, "sadd": 1,
    "set": 1, "spop": 0, "xack": 2, "xadd": 3, "xclaim": 4, "xdel": 1, "xpending": 1, "xrange": 2, "xrevrange": 2,
    "zadd": 2, "zcount": 2, "zrange": 2, "zrangebyscore": 2, "zrem": 1, "zrevrange": 2, "zscan": 1, "zscore": 1,
}  # fmt: skip
"""How many arguments these take behind their key; the others take none."""
_ASKING = {"multi", "discard", "subscribe", "publish"}


class Authority(msgspec.Struct, frozen=True):
    """What a user is called, what each role needs that it lacks, and whether it may send Lua of its own."""

    user: str
    lacks: dict[Role, list[str]]
    any_lua: bool


async def ask(server: Client, namespace: str) -> Authority | None:
    """What the present user can be on this bus; None where it may not even ask. Raises redis-py's errors."""
    async with _connection_of(server) as connection:
        user, began = await _answers(connection, [("ACL", "WHOAMI"), ("MULTI",)])
        if isinstance(began, Exception):
            return None
        needs = {role: _needs(roles.grants([role], namespace)) for role in Role}
        probes = list({words: None for wanted in needs.values() for words in wanted.values()})
        *heard, lua, _ = await _answers(connection, [*probes, ("EVAL", "return 1", "0"), ("DISCARD",)])
    said = dict(zip(probes, heard, strict=True))
    lacks = {
        role: [need for need, words in wanted.items() if _is_lacking(need, said[words])]
        for role, wanted in needs.items()
    }
    name = user.decode("utf-8", "replace") if isinstance(user, bytes) else "this user"
    return Authority(name, lacks, any_lua=not _is_refused(lua))


async def may_ring_and_hear(server: Client, channel: bytes) -> bool:
    """Whether this user may publish on a channel and hear it; True where it may not ask. Raises as `ask`."""
    asked = [("MULTI",), ("SUBSCRIBE", channel), ("PUBLISH", channel, ""), ("DISCARD",)]
    async with _connection_of(server) as connection:
        began, *heard = await _answers(connection, asked)
    return isinstance(began, Exception) or not any(map(_is_refused, heard))


async def unknown_commands(server: Client, found: Grants) -> list[str] | None:
    """Those of a role's commands that the server does not know; None where this user may not ask."""
    async with _connection_of(server) as connection:
        (told,) = await _answers(connection, [("COMMAND", "INFO", *found.commands)])
    if isinstance(told, Exception):
        return None
    return [name for name, about in zip(found.commands, told, strict=True) if about is None]


def judge(found: Authority | None) -> Finding:
    """What is to be said of it."""
    if found is None:
        return Finding(
            check="acl",
            grade=Grade.WARN,
            found="this user may not MULTI, so what it may do cannot be asked without doing it",
            advice="Grant it +multi and +discard; `busq acl ROLE` prints all that a role needs.",
        )
    able = [role for role in Role if not found.lacks[role]]
    if able:
        lua = ", and may run any Lua" if found.any_lua else ""
        return Finding(check="acl", grade=Grade.OK, found=f"{found.user} can be {', '.join(able)}{lua}")
    nearest = min(Role, key=lambda role: len(found.lacks[role]))
    missing = found.lacks[nearest]
    shown = " ".join(missing[:NAMED]) + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")
    return Finding(
        check="acl",
        grade=Grade.FAIL,
        found=f"{found.user} can be none of {', '.join(Role)}; to be a {nearest} it lacks {shown}",
        advice=f"`busq acl ROLE --user {found.user}` prints the whole rule.",
    )


async def of_default(server: Client, info: Info) -> list[Finding]:
    """
    Whether the server will find its data again: it loads its append-only file as the user `default`.

    Seen with Redis 7.0: where that user has no rights, every transaction in the file is dropped without a word, and a
    script's writes are one. That is what a bare `user default off` in an aclfile brings about.
    """
    if str(info.get("aof_enabled", "0")) != "1":
        return []
    async with _connection_of(server) as connection:
        (told,) = await _answers(connection, [("ACL", "LIST")])
    if isinstance(told, Exception):
        return []  # only an administrator may look
    lines = [line.decode("utf-8", "replace") if isinstance(line, bytes) else str(line) for line in told]
    rule = next((line.split() for line in lines if line.startswith("user default ")), [])
    if not rule or {"+@all", "~*"} <= set(rule):
        return []
    return [
        Finding(
            check="default user",
            grade=Grade.FAIL,
            found="the user `default` lacks rights: at its next start the server may drop what scripts have written",
            advice="Switch it off and let it keep them: ACL SETUSER default off ~* &* +@all; the same in the aclfile.",
        )
    ]


@asynccontextmanager
async def _connection_of(server: Client) -> AsyncIterator[Any]:
    """A connection of a client's pool for ourselves; it is closed behind us, whatever state it is in."""
    connection = await server.connection_pool.get_connection()
    try:
        yield connection
    finally:
        await connection.disconnect()
        await server.connection_pool.release(connection)


async def _answers(connection: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
    await connection.send_packed_command(connection.pack_commands(commands))
    heard: list[Any] = []
    for _ in commands:
        try:
            heard.append(await connection.read_response())
        except ResponseError as error:
            heard.append(error)
    return heard


def _is_refused(answer: Any) -> bool:
    return isinstance(answer, NoPermissionError) or (isinstance(answer, ResponseError) and "NOPERM" in str(answer))


def _is_lacking(need: str, answer: Any) -> bool:
    # A command may be refused for its key only; that key is a need by itself.
    is_command = need.startswith("+") and " " not in need
    return _is_refused(answer) and (not is_command or _NOT_THE_COMMAND not in str(answer))


def _needs(found: Grants) -> dict[str, Words]:
    """Everything that a role needs, as a rule says it, and a command that tells by its refusal whether it is there."""
    some = (*found.writes, *found.reads)[0]
    needs: dict[str, Words] = {}
    for command in found.commands:
        if command not in _ASKING and command not in roles.LATER_THAN_7_0:
            needs[f"+{command}"] = _probe(command, _key(some))
    for pattern in found.reads:
        needs[f"%R~{pattern}"] = _probe("hmget", _key(pattern))
    for pattern in found.writes:
        needs[f"~{pattern}"] = _probe("evalsha", _key(pattern))
    for channel in found.hears:
        needs[f"&{channel}"] = ("SUBSCRIBE", _key(channel))
    for channel in found.rings:
        needs[f"+publish &{channel}"] = ("PUBLISH", _key(channel), "")
    return needs


def _probe(command: str, key: str) -> Words:
    name = tuple(command.upper().split("|"))
    if command in _ARGUMENTS:
        return (*name, *(key if word == "KEY" else word for word in _ARGUMENTS[command]))
    if command in _NO_KEY:
        return name
    return (*name, key, *["1"] * _MORE.get(command, 0))


def _key(pattern: str) -> str:
    return pattern.replace("{*}", "{0}").replace("*", "doctor")
