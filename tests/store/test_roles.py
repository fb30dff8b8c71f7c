"""
What each role's Redis user may do: all of its job, and nothing else.

`roles_approved.txt` is the table that people have looked at: every command that the server knows, by role, on a key of
our own and on a foreign one; every key of the README's table; every channel. Where a change is meant, write it anew
with `python -m tests.store.test_roles` and read the difference.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis import exceptions as redis_errors

import busq
from busq.config import Settings
from busq.protocol.keys import KEY_TABLE
from busq.store import authority, roles, scripts
from busq.store.connection import Connections
from busq.store.fitness import Grade
from busq.store.roles import Role
from busq.store.store import Store
from tests.roles import DEFAULT_OFF, as_role, deploy
from tests.servers import RedisServer, find_redis_server

APPROVED = Path(__file__).with_name("roles_approved.txt")
WIDTH = 118

OWN, FOREIGN = "busq:{0}:job:one", "other:{0}:job:one"
OWN_CHANNEL, FOREIGN_CHANNEL = "busq:done:one", "other:done:one"
FOREIGN_KEYS = (FOREIGN, "busq2:{0}:job:one", "busq:one", "{0}:job:one", "one", "busq:{0}:one")
CHANNELS = ("cancel:one", "busq:done:one", "busq:rules", "other:cancel:one", "other:done:one", "other:rules", "one")

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "evalsha": ("0" * 40, "1", "KEY"),
    "evalsha_ro": ("0" * 40, "1", "KEY"),
    "xreadgroup": ("GROUP", "busq", "one", "STREAMS", "KEY", ">"),
    "publish": ("CHANNEL", "word"),
    "subscribe": ("CHANNEL",),
    "psubscribe": ("*",),
}
"""For commands that roles have and whose keys do not stand at a fixed place; for the others COMMAND INFO tells."""


# The matrix --------------------------------------------------------------------------------------------------


class Asked:
    """The server's own judgement, by ACL DRYRUN."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        client.response_callbacks.clear()
        listed = {name.decode() for name in client.execute_command("COMMAND", "LIST")}
        families = {name.partition("|")[0] for name in listed if "|" in name}  # no commands by themselves
        self.commands = sorted(listed - families)
        self._about = dict(zip(self.commands, client.execute_command("COMMAND", "INFO", *self.commands), strict=True))

    def with_arguments(self, command: str, key: str, channel: str) -> list[str]:
        """The command with as many arguments as it takes, this key where keys stand."""
        name = command.split("|")
        if command in ARGUMENTS:
            given = [{"KEY": key, "CHANNEL": channel}.get(each, each) for each in ARGUMENTS[command]]
            return [*name, *given]
        about = self._about[command]
        arity, first = int(about[1]), int(about[3])
        words = [*name, *["1"] * (abs(arity) - len(name))]
        if 0 < first < len(words):
            words[first] = key
        return words

    def may(self, user: str, commands: list[list[str]]) -> list[bool]:
        pipe = self._client.pipeline(transaction=False)
        for words in commands:
            pipe.execute_command("ACL", "DRYRUN", user, *words)
        pipe.response_callbacks = {}
        answers = pipe.execute(raise_on_error=False)
        for words, answer in zip(commands, answers, strict=True):
            assert isinstance(answer, bytes), (words, answer)
        return [answer == b"OK" for answer in answers]


def matrix(client: Redis) -> str:
    """Everything that each role may do, as it is approved: one paragraph for each role."""
    asked = Asked(client)
    lines: list[str] = []
    for role in Role:
        own, foreign, elsewhere = (
            asked.may(role, [asked.with_arguments(command, key, channel) for command in asked.commands])
            for key, channel in ((OWN, OWN_CHANNEL), (FOREIGN, FOREIGN_CHANNEL), (OWN, FOREIGN_CHANNEL))
        )
        everywhere = [
            name for name, may in zip(asked.commands, foreign, strict=True) if may and name not in roles.LATER_THAN_7_0
        ]
        ours = [
            name
            for name, may in zip(asked.commands, own, strict=True)
            if may and name not in (*everywhere, *roles.LATER_THAN_7_0)
        ]
        assert [
            n for n, may in zip(asked.commands, elsewhere, strict=True) if may and n in ("publish", "subscribe")
        ] == []
        lines += [str(role), *_wrapped("on own keys and channels", ours), *_wrapped("touching no key", everywhere)]
        keys = [_example(name) for name, *_ in KEY_TABLE]
        reads = asked.may(role, [["HMGET", key, "1"] for key in keys])
        writes = asked.may(role, [["EVALSHA", "0" * 40, "1", key] for key in keys])
        of = list(zip((name for name, *_ in KEY_TABLE), reads, writes, strict=True))
        lines += _wrapped("reads only", [name for name, read, write in of if read and not write])
        lines += _wrapped("reads and writes", [name for name, _, write in of if write])
        hears = asked.may(role, [["SUBSCRIBE", channel] for channel in CHANNELS])
        rings = asked.may(role, [["PUBLISH", channel, "1"] for channel in CHANNELS])
        lines += _wrapped("hears", [channel for channel, may in zip(CHANNELS, hears, strict=True) if may])
        lines += _wrapped("rings", [channel for channel, may in zip(CHANNELS, rings, strict=True) if may])
        lines.append("")
    return "\n".join(lines)


def _example(name: str) -> str:
    return "busq:" + name.replace("{s}", "{0}").replace("<state>", "failed").replace("<", "").replace(">", "")


def _wrapped(title: str, words: list[str]) -> list[str]:
    lines, line = [], f"  {title}:"
    for word in words or ["nothing"]:
        if len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = "   "
        line += f" {word}"
    return [*lines, line]


@pytest.fixture
def server(server_with_users: RedisServer) -> RedisServer:
    server_with_users.flush()
    return server_with_users


def test_every_role_may_do_what_was_approved_and_nothing_else(server: RedisServer) -> None:
    """
    Commands that this server has and the one of the approved table had not are no matter: none may be sent, but for
    those that roles name and Redis 7.0 does not know.
    """
    with server.client() as client:
        assert matrix(client) == APPROVED.read_text()


@pytest.mark.parametrize("role", Role)
def test_no_role_may_use_a_key_or_channel_of_another_bus(server: RedisServer, role: Role) -> None:
    with server.client() as client:
        asked = Asked(client)
        for key in FOREIGN_KEYS:
            for command in asked.commands:
                words = asked.with_arguments(command, key, OWN_CHANNEL)
                if key in words:
                    assert asked.may(role, [words]) == [False], words


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    "words",
    [
        ("EVAL", "return 1", "0"), ("EVAL_RO", "return 1", "0"), ("FCALL", "f", "0"), ("FUNCTION", "LOAD", "x"),
        ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("SCAN", "0"), ("CONFIG", "SET", "maxmemory", "1"), ("SHUTDOWN",),
        ("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"), ("ACL", "LIST"), ("ACL", "SETUSER", "u"),
        ("CLIENT", "KILL", "ID", "1"), ("REPLICAOF", "NO", "ONE"),
        ("MONITOR",), ("PSUBSCRIBE", "*"), ("PUBSUB", "CHANNELS"), ("EXEC",),
        ("RENAME", OWN, "busq:{0}:job:two"), ("COPY", OWN, FOREIGN), ("RESTORE", OWN, "0", ""),
        ("HSET", FOREIGN, "a", "1"), ("HGETALL", FOREIGN), ("PUBLISH", FOREIGN_CHANNEL, "1"),
    ],
)  # fmt: skip
def test_what_no_role_may_do_is_refused(server: RedisServer, role: Role, words: tuple[str, ...]) -> None:
    with Redis.from_url(server.url_for(role)) as client:
        client.response_callbacks.clear()
        if words[0] == "SCAN" and role is Role.WATCHDOG:
            return  # it looks for jobs whose queue was removed under them; see the README
        with pytest.raises((redis_errors.NoPermissionError, redis_errors.ExecAbortError)):
            client.execute_command(*words)


@pytest.mark.parametrize("role", [Role.PRODUCER, Role.CANCELLER, Role.WORKER, Role.READER])
def test_only_watchdogs_and_people_may_load_scripts(server: RedisServer, role: Role) -> None:
    with Redis.from_url(server.url_for(role)) as client, pytest.raises(redis_errors.NoPermissionError):
        client.script_load("return 1")


def test_a_worker_rings_no_notices(server: RedisServer) -> None:
    with Redis.from_url(server.url_for("worker")) as client:
        with pytest.raises(redis_errors.NoPermissionError):
            client.publish("cancel:one", "cancel")
        assert client.publish("busq:done:one", "succeeded") == 0


@pytest.mark.parametrize("role", Role)
def test_a_forged_hash_runs_nothing(server: RedisServer, role: Role) -> None:
    sha = "f" * 40
    with Redis.from_url(server.url_for(role)) as client, pytest.raises(redis_errors.NoScriptError):
        client.execute_command("EVALSHA_RO" if role is Role.READER else "EVALSHA", sha, 1, OWN)


async def test_a_script_of_somebody_else_does_no_more_than_its_caller_may(server: RedisServer) -> None:
    with server.client() as tester:
        sha = tester.script_load("return redis.call('XADD', KEYS[1], '*', 'a', '1')")
        foreign = tester.script_load(f"return redis.call('HSET', '{FOREIGN}', 'a', '1')")
    with Redis.from_url(server.url_for("reader")) as client, pytest.raises(redis_errors.NoPermissionError):
        client.evalsha(sha, 1, "busq:{0}:queue:default")
    with Redis.from_url(server.url_for("worker")) as client, pytest.raises(redis_errors.ResponseError, match="access"):
        client.evalsha(foreign, 1, OWN)


# Meeting a server that has forgotten the scripts -------------------------------------------------------------


def settings_for(server: RedisServer, role: str, **more: Any) -> Settings:
    return Settings.load(url=as_role(server.url, role), **more)


@pytest.mark.parametrize("durability", [None, "replicated"])
async def test_who_may_not_load_scripts_waits_for_a_watchdog_that_does(
    server: RedisServer, durability: str | None
) -> None:
    await deploy(server.url)
    with server.client() as tester:
        tester.script_flush()
    async with busq.Bus(server.url_for("producer")) as bus:
        enqueueing = asyncio.create_task(bus.options(durability=durability).enqueue("short"))
        refused = 0
        while not refused:  # it has been told that there is no such script, and may not load it
            with server.client() as tester:
                refused = sum(entry["object"] == "script|load" for entry in tester.acl_log())
            await asyncio.sleep(0)
        await deploy(server.url)
        handle = await enqueueing
        assert handle.jid
        assert (handle.confirmed is not None) == (durability is not None)


async def test_without_a_watchdog_it_is_said_that_one_is_needed(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(server.url)
    with server.client() as tester:
        tester.script_flush()
    monkeypatch.setattr(scripts, "BROUGHT_WITHIN_S", 0.05)
    async with busq.Bus(server.url_for("producer")) as bus:
        with pytest.raises(busq.BusUnavailable, match=r"script 'enqueue'.*start a watchdog"):
            await bus.enqueue("short")


@pytest.mark.parametrize("role", [Role.PRODUCER, Role.CANCELLER, Role.WORKER, Role.READER])
async def test_who_may_not_make_the_bus_says_who_does(server: RedisServer, role: Role) -> None:
    store = Store(settings_for(server, role), by="one")
    with pytest.raises(busq.BusUnavailable, match="start a watchdog first"):
        await store.open()
    await store.close()


async def test_a_watchdog_makes_the_bus_again_and_brings_back_the_scripts(server: RedisServer) -> None:
    store = Store(settings_for(server, "watchdog", shards=3), by="one")
    await store.open()
    with server.client() as tester:
        tester.flushall()
        tester.script_flush()
        await store.keep_able()
        assert tester.hget("busq:meta", "shards") == b"3"
        assert all(tester.script_exists(*[scripts.load(name).sha for name in scripts.names()]))
    await store.close()


# What busq doctor says of a user -----------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
async def test_the_doctor_tells_which_roles_a_user_can_play(server: RedisServer, role: Role) -> None:
    connections = Connections(settings_for(server, role))
    found = await authority.ask(connections.commands, "busq")
    assert found is not None
    able = {each for each in Role if not found.lacks[each]}
    too = {Role.ADMIN: {Role.PRODUCER, Role.CANCELLER, Role.READER}}
    assert (found.user, able, found.any_lua) == (role, {role, *too.get(role, ())}, False)
    other = await authority.ask(connections.commands, "another")
    assert other is not None
    assert authority.judge(other).grade is Grade.FAIL
    await connections.close()
    with server.client() as tester:
        assert tester.dbsize() == 0, "nothing of what was asked about has been done"


async def test_the_doctor_tells_of_a_user_who_may_do_everything(server: RedisServer) -> None:
    connections = Connections(settings_for(server, "tester"))
    finding = authority.judge(await authority.ask(connections.commands, "busq"))
    assert finding.found == f"tester can be {', '.join(Role)}, and may run any Lua"
    await connections.close()


async def test_every_question_of_the_doctor_is_one_that_the_server_understands(server: RedisServer) -> None:
    """A command with too few arguments is refused before anybody asks who may send it."""
    connections = Connections(settings_for(server, "tester"))
    asked = [words for role in Role for words in authority._needs(roles.grants([role], "busq")).values()]
    async with authority._connection_of(connections.commands) as connection:
        _, *answers, _ = await authority._answers(connection, [("MULTI",), *asked, ("DISCARD",)])
    assert [words for words, answer in zip(asked, answers, strict=True) if answer != b"QUEUED"] == []
    await connections.close()


async def test_the_doctor_tells_what_is_missing(server: RedisServer) -> None:
    found = roles.grants([Role.WORKER], "busq").without(roles.LATER_THAN_7_0)
    line = roles.user_line("nearly", found, ["nopass"])
    with server.client() as tester:
        tester.execute_command("ACL", "SETUSER", *line.split()[1:], "-xack", "resetkeys", "~busq:{*}:job:*")
        try:
            connections = Connections(Settings.load(url=f"redis://nearly:x@{server.url.rpartition('@')[2]}"))
            told = await authority.ask(connections.commands, "busq")
            assert told is not None
            assert {"+xack", "%R~busq:meta", "~busq:{*}:workers"} <= set(told.lacks[Role.WORKER])
            assert not {"+xadd", "~busq:{*}:job:*", "&cancel:*"} & set(told.lacks[Role.WORKER])
            assert await authority.may_ring_and_hear(connections.commands, b"busq:rules")
            assert not await authority.may_ring_and_hear(connections.commands, b"busq:done:one")
            await connections.close()
        finally:
            tester.acl_deluser("nearly")


@pytest.mark.parametrize(("rule", "warns"), [("off ~* &* +@all", False), ("off -@all resetkeys", True)])
async def test_the_doctor_warns_of_a_default_user_without_the_rights_to_load_an_append_only_file(
    server: RedisServer, rule: str, warns: bool
) -> None:
    connections = Connections(settings_for(server, "tester"))
    with server.client() as tester:
        tester.execute_command("ACL", "SETUSER", "default", *rule.split())
        assert bool(await authority.of_default(connections.commands, {"aof_enabled": 1})) is warns
        tester.execute_command("ACL", "SETUSER", "default", "off", "~*", "&*", "+@all")
    await connections.close()


@pytest.mark.parametrize("own_server", [{"aof": True, "users": True}], indirect=True)
@pytest.mark.parametrize(("rule", "kept"), [("~* &* +@all", True), ("-@all resetkeys", False)])
async def test_why_the_default_user_keeps_its_rights(own_server: RedisServer, rule: str, kept: bool) -> None:
    """What scripts have written stands in the append-only file as transactions, which `default` has to run again."""
    with own_server.client() as client:
        if not kept and not client.info("server")["redis_version"].startswith("7.0."):
            pytest.skip("only Redis 7.0 loads its append-only file with the rights of the user `default`")
    acl_file = Path(own_server.aof_folder).with_name("users.acl")
    acl_file.write_text(acl_file.read_text().replace(DEFAULT_OFF, f"user default off {rule}"))
    with own_server.client() as client:
        client.pipeline().set("one", 1).set("two", 2).execute()
    own_server.restart()
    with own_server.client() as client:
        assert bool(client.exists("one", "two")) is kept


# Rules as they are printed -----------------------------------------------------------------------------------


def test_a_namespace_has_its_own_keys_and_channels() -> None:
    found = roles.grants([Role.WORKER], "shop")
    assert all(key.startswith(("shop:{*}:", "shop:meta")) for key in (*found.reads, *found.writes))
    assert (found.hears, found.rings) == (("shop:cancel:*", "shop:rules"), ("shop:done:*", "shop:rules"))


def test_a_user_of_two_roles_may_do_what_either_may(server: RedisServer) -> None:
    both = roles.grants([Role.PRODUCER, Role.CANCELLER], "busq")
    for role in (Role.PRODUCER, Role.CANCELLER):
        one = roles.grants([role], "busq")
        assert set(one.commands) <= set(both.commands)
        assert set(one.writes) <= set(both.writes)
        assert set(one.reads) <= {*both.reads, *both.writes}


if __name__ == "__main__":
    executable = find_redis_server()
    assert executable is not None
    started = RedisServer(executable, users=True)
    try:
        with started.client() as looker:
            APPROVED.write_text(matrix(looker))
    finally:
        started.close()
    sys.stdout.write(APPROVED.read_text())
