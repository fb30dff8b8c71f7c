"""
Who may do what in Redis: one ACL user for each role.

A script runs with the rights of whoever calls it, and one that is refused half-way leaves half of its change behind.
So a role is given every command, key and channel that any path of its scripts may touch: read off the scripts that are
sent, not written down a second time. What its Python code sends beside them stands in ROLES, and nothing else is given:
no role may send Lua of its own (EVAL), only the watchdog may load scripts, and it loads ours.

What this cannot do: scripts of several roles write the same record of a job, so whoever may write one can end that job
by hand, as any role but `reader` could. Roles keep a process inside its bus and away from all else on the server.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from enum import StrEnum

import msgspec

from busq.protocol import keys as bus_keys
from busq.protocol.keys import ShardKeys
from busq.store import scripts


class Role(StrEnum):
    PRODUCER = "producer"
    CANCELLER = "canceller"
    WORKER = "worker"
    WATCHDOG = "watchdog"
    READER = "reader"
    ADMIN = "admin"


class Channel(StrEnum):
    """Kinds of channels: notices to one job, endings, and what every worker hears."""

    CANCEL = "cancel"
    DONE = "done"
    RULES = "rules"


EVERYBODY = (
    "ping", "select", "client|setinfo", "hmget", "acl|whoami", "multi", "discard", "cluster|slots", "asking",
)  # fmt: skip
"""
Connecting, to a cluster too, meeting the bus, and what `busq doctor` finds out a role by: it queues commands and runs
none of them.
"""

LATER_THAN_7_0 = ("client|setinfo", "waitaof")
"""Commands that not every server has which we serve: one that does not know a command refuses a rule that names it."""

FENCE = "whole"
"""The key that never exists, which every script names first on a cluster."""

# Keys that scripts touch without declaring them are made from `prefix` (lib/names.lua). These two are only read so.
_ONLY_READ = {"rules", "hooks"}
_CALLED = re.compile(r"redis\.p?call\('([A-Z]+)'(?:, '(CREATE|DELCONSUMER|STREAM)')?")
_UNDECLARED = re.compile(r"prefix \.\. '([a-z_]+:?)")


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What a role's code sends: scripts by name; commands beside them, and the keys that those read and write."""

    does: str
    scripts: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    hears: tuple[Channel, ...] = ()
    rings: tuple[Channel, ...] = ()


_HEARS = ("subscribe", "unsubscribe")
_ALL_CHANNELS = (Channel.CANCEL, Channel.DONE, Channel.RULES)
_CONFIRMS = ("wait", "waitaof")

PARTS: dict[Role, Part] = {
    Role.PRODUCER: Part(
        does="enqueues jobs, waits for them and reads them by their jid",
        scripts=("enqueue", "look"),
        commands=("hgetall", *_HEARS, *_CONFIRMS),
        reads=("job:",),
        hears=(Channel.DONE,),
        rings=_ALL_CHANNELS,  # a job that supersedes another one cancels that
    ),
    Role.CANCELLER: Part(
        does="cancels jobs, by jid or by filter, waits for them and reads them by their jid",
        scripts=("cancel", "decide", "revoke", "survey", "look"),
        commands=("hgetall", "hget", "smembers", "time", *_HEARS, *_CONFIRMS),
        reads=("job:", "counters", "queues", "rules", "scope:", "walk"),
        hears=(Channel.DONE,),
        rings=_ALL_CHANNELS,
    ),
    Role.WORKER: Part(
        does="runs jobs",
        scripts=(
            "start", "finish", "retry", "release", "refuse", "renew", "declare", "note", "bury", "forget", "finalize",
            "enqueue",  # children of its jobs
            "drain",  # a pod that is taken down asks its own workers
        ),
        commands=(
            "info", "xgroup|create", "xreadgroup", "zrange", "zrem", "hget", "hgetall", "hsetnx", "hset", *_HEARS,
            "client|id", "client|unblock",  # on a cluster it calls its own reads back
        ),
        writes=("queue:", "suspects", "birth"),
        hears=(Channel.CANCEL, Channel.RULES),
        rings=(Channel.DONE, Channel.RULES),
    ),
    Role.WATCHDOG: Part(
        does="finalizes, reclaims, settles and prunes; loads scripts and makes the bus",
        scripts=(
            "finalize", "reclaim", "bury", "expire", "promote", "carry_out", "cascade", "prune", "renew", "forget",
            "rewind",
        ),
        commands=(
            "info", "time", "zrange", "zrem", "hgetall", "smembers", "exists", "xpending", "xrange", "hsetnx",
            "hset", "scan", "zscore",  # what lost its entry
            "script|load", "script|exists",
            "hget", "hkeys", "zcard", "zcount", "xlen", "xinfo|groups",  # its figures of the bus
        ),
        writes=("meta", "suspects", "birth"),
        reads=(
            "deadlines", "timers", "scheduled", "workers", "worker_info", "queues", "queue:", "job:", "waiting",
            "cancelled", "ended:", "rules", "dead", "counters",
        ),
        rings=_ALL_CHANNELS,
    ),
    Role.READER: Part(
        does="looks: one job, lists, numbers, dead letters, workers; changes nothing",
        scripts=("look", "survey"),
        commands=(
            "info", "time", "exists", "hget", "hgetall", "hkeys", "smembers", "xinfo|groups", "xlen", "xpending",
            "xrange", "xrevrange", "zcard", "zcount", "zrange", "zrevrange", *_HEARS,
        ),
        reads=(
            "job:", "queue:", "queues", "scheduled", "waiting", "cancelled", "deadlines", "ended:", "workers",
            "worker_info", "suspects", "rules", "walk", "scope:", "cascades", "dead", "events", "counters",
        ),
        hears=(Channel.DONE,),
    ),
    Role.ADMIN: Part(
        does="what people at the command line do: enqueues, cancels, looks, drains, empties dead letters, makes buses",
        scripts=("drain",),
        commands=("xdel", "config|get", "command|info", "acl|dryrun", "hsetnx", "script|load", "script|exists"),
        writes=("dead", "meta"),
        hears=(Channel.CANCEL,),
    ),
}  # fmt: skip

_INCLUDES = {Role.ADMIN: (Role.PRODUCER, Role.CANCELLER, Role.READER)}


class Grants(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a user of some roles gets; patterns as Redis matches them."""

    commands: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    """Keys that may be written and read; EVALSHA asks for both."""
    hears: tuple[str, ...]
    rings: tuple[str, ...]

    def rules(self) -> list[str]:
        """The words of an ACL rule. Publishing stands by itself: who hears a channel does not ring it for that."""
        words = ["resetchannels", *(f"%R~{each}" for each in self.reads), *(f"~{each}" for each in self.writes)]
        words += [f"&{each}" for each in self.hears]
        words += ["-@all", *(f"+{each}" for each in self.commands)]
        if self.rings:
            words.append(f"({' '.join(['-@all', '+publish', *(f'&{each}' for each in self.rings)])})")
        return words

    def without(self, commands: Collection[str]) -> Grants:
        """The same without commands that a server does not know."""
        return msgspec.structs.replace(self, commands=tuple(each for each in self.commands if each not in commands))


def grants(roles: Iterable[Role], namespace: str) -> Grants:
    """What a user of these roles gets on the bus of this name."""
    every = [each for role in roles for each in (*_INCLUDES.get(role, ()), role)]
    parts = [PARTS[role] for role in every]
    commands = {*EVERYBODY, *(command for part in parts for command in part.commands)}
    reads = {"meta", *(family for part in parts for family in part.reads)}
    writes = {family for part in parts for family in part.writes}
    for name in {name for part in parts for name in part.scripts}:
        script = scripts.load(name)
        commands |= {script.command.lower(), *_commands_of(script)}
        declared = {_family(key) for key in script.keys}
        undeclared = set(_UNDECLARED.findall(script.source)) - declared
        if script.writes:
            writes |= declared | (undeclared - _ONLY_READ)
            reads |= undeclared & _ONLY_READ
            writes.add(FENCE)
        else:
            reads.add(FENCE)
            reads |= declared | undeclared
    channels = {
        Channel.CANCEL: bus_keys.notice_prefix(namespace).decode() + "*",
        Channel.DONE: bus_keys.done_prefix(namespace).decode() + "*",
        Channel.RULES: bus_keys.rules_channel(namespace).decode(),
    }
    return Grants(
        commands=tuple(sorted(commands - {"publish"})),
        reads=tuple(sorted(_pattern(family, namespace) for family in reads - writes)),
        writes=tuple(sorted(_pattern(family, namespace) for family in writes)),
        hears=tuple(sorted({channels[channel] for part in parts for channel in part.hears})),
        rings=tuple(sorted({channels[channel] for part in parts for channel in part.rings})),
    )


def user_line(name: str, found: Grants, secrets: Iterable[str]) -> str:
    """
    A line for an aclfile; without its first word it is what ACL SETUSER takes.

    `secrets` are words of an ACL rule: `#…` for the SHA-256 of a password, `nopass`; none: nobody can log in.
    """
    return " ".join(["user", name, "reset", "on", *secrets, *found.rules()])


def _commands_of(script: scripts.Script) -> set[str]:
    called = {"|".join(part for part in names if part).lower() for names in _CALLED.findall(script.source)}
    return called if script.writes else called - {"publish"}  # in a library, and never reached


def _family(key: str) -> str:
    """The keys behind a name in a script's header: one key of each shard, or many that begin alike (`job:`)."""
    known = {"jobs...": "job:", "stream": "queue:", "streams...": "queue:"}
    return known.get(key) or _of_shard(getattr(ShardKeys("", 0), key))


def _of_shard(key: bytes) -> str:
    return key.removeprefix(ShardKeys("", 0).prefix).decode()


def _pattern(family: str, namespace: str) -> str:
    if family == "meta":
        return bus_keys.meta(namespace).decode()
    many = "*" if family.endswith(":") else ""
    return ShardKeys(namespace, 0).prefix.decode().replace("{0}", "{*}") + family + many
