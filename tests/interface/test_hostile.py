"""
Nothing that a job, a producer or Redis says reaches a terminal or a log as it is, and no secret does at all.

Every command is run on a bus whose every field was written over by somebody who means harm, in both forms of output.
The password of the user who runs them is a secret, too.
"""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from redis import Redis

import busq
from busq import redaction
from busq.cli import app, exits
from busq.store.roster import process_card
from tests.interface.commands import service, terminal
from tests.interface.hostile import CANARY, IN_A_URL, PASSWORD, SPELL, forged, revealed, steering
from tests.servers import RedisServer

FIELDS = (
    "kind", "queue", "group", "key", "parent", "cause", "reason", "source", "ended", "owner", "progress_note", "hook",
    "hook_of", "scope", "on_parent_cancel", "tag:a", "t:a",
)  # fmt: skip

COMMANDS = [
    ["get", "JID"], ["list"], ["list", "--state", "cancelled"], ["list", "--state", "failed"], ["history", "JID"],
    ["stats"], ["workers"], ["suspects"], ["rules", "list"], ["dead", "list"], ["top"], ["doctor"],
    ["cancel", "--group", "g", "--dry-run"], ["cancel", "JID", "--reason", SPELL], ["cancel", SPELL],
    ["cancel", "--where", SPELL], ["cancel", "--group", SPELL, "--dry-run"], ["get", SPELL], ["get", "not-there"],
    ["history", SPELL], ["enqueue", SPELL], ["enqueue", "k", SPELL], ["enqueue", "k", "--tag", SPELL],
    ["enqueue", "k", "--queue", SPELL], ["enqueue", "k", "--group", SPELL], ["dead", "retry", SPELL],
    ["dead", "purge", SPELL], ["rules", "revoke", SPELL], ["list", "--state", SPELL],
    ["acl", "worker", "--user", SPELL],
    ["acl", "producer"], ["enqueue", "k", "--parent", SPELL], [SPELL], ["list", SPELL],
]  # fmt: skip


@pytest.fixture
def url(server_with_users: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a user whose password must not be seen."""
    server_with_users.flush()
    monkeypatch.setattr(redaction, "_guarded", [])
    with server_with_users.client() as client:
        client.acl_setuser("careful", reset=True, enabled=True, passwords=["+" + PASSWORD], keys=["*"],
                           channels=["*"], categories=["+@all"])  # fmt: skip
        place = server_with_users.url.rpartition("@")[2]
        yield f"redis://careful:{quote(PASSWORD, safe='')}@{place}"
        client.acl_deluser("careful")


async def fill(url: str) -> str:
    """A bus on which every field that holds words holds the spell; answers with a jid."""
    async with busq.Bus(url) as bus:
        handles = [await bus.options(group="g", tags={"a": "b"}).enqueue("k", IN_A_URL, SPELL) for _ in range(4)]
        await handles[1].cancel(reason=SPELL, source=SPELL)
        await bus.cancel_where(group=f"other {SPELL.isprintable()}", standing=True, reason=SPELL + IN_A_URL)
        with pytest.raises(busq.BusqError) as refused:
            await bus.enqueue(SPELL)
        assert steering(str(refused.value)) == []
    return handles[0].jid


def poison(redis: Redis, jid: str) -> None:
    """What no verb would write, and whoever may write to Redis can."""
    words = SPELL.encode() + IN_A_URL.encode()
    record = f"busq:{{0}}:job:{jid}"
    line = redis.hget(record, "h:1") or b""
    redis.hset(record, mapping=dict.fromkeys(FIELDS, words))
    redis.hset(record, "result", b"\x01" + msgspec.msgpack.encode({SPELL: [SPELL, IN_A_URL]}))
    redis.hset(record, "error", b"\x01" + msgspec.msgpack.encode([SPELL, SPELL + IN_A_URL, SPELL + IN_A_URL]))
    for name, value in redis.hgetall(record).items():
        if value == line or b"\t" in value:
            redis.hset(record, name, value + words.replace(b"\n", b" "))
    redis.xadd("busq:{0}:dead", {"reason": words, "jid": words, "kind": words, "queue": words, "raw": words, "at": "1"})
    redis.zadd("busq:{0}:suspects", {b"\t".join([words, b"1", words, words]): 1.0})
    redis.zadd("busq:{0}:workers", {words: 9e15, b"other" + words: 1.0})
    card = msgspec.structs.replace(process_card("worker"), role=SPELL, host=SPELL + IN_A_URL, queues=[SPELL])
    redis.hset("busq:{0}:worker_info", words, card.encoded())
    redis.sadd("busq:{0}:queues", words)
    redis.xadd(b"busq:{0}:queue:" + words, {"jid": words, "kind": words})
    redis.hset("busq:{0}:counters", words, 1)


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """One command in this process; all that it says."""
    code = exits.run(lambda: app.run(words))
    captured = capsys.readouterr()
    assert code != exits.OUR_MISTAKE, captured.err
    return captured.out + captured.err


def test_no_command_shows_what_steers_a_terminal_or_is_secret(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUSQ_URL", url)
    jid = asyncio.run(fill(url))
    with Redis.from_url(url) as redis:
        poison(redis, jid)
    seen = ""
    for command in COMMANDS:
        words = [jid if word == "JID" else word for word in command]
        for form in ([], ["-o", "json"]):
            said = run([*words, *form], capsys)
            assert steering(said) == [], (command, form, said)
            assert forged(said) == [], (command, form, said)
            assert revealed(said) == [], (command, form, said)
            assert said, command
            seen += said
    assert "\\x1b" in seen, "the fields are shown, and harmless"
    assert "***@elsewhere" in seen


def test_no_error_about_a_url_shows_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    """The server is not there, refuses the login, or the URL is none at all."""
    secret = quote(PASSWORD, safe="")
    for odd in (f"redis://:{secret}@127.0.0.1:1/0", f"http://u:{secret}@h/0", f"redis://u:{secret}@h:port/0",
                f"redis://u:{secret}@[h/0", f"redis://127.0.0.1:1/0?password={secret}"):  # fmt: skip
        said = run(["stats", "--url", odd], capsys)
        assert revealed(said) == [], said
        with pytest.raises(busq.BusqError) as refused:
            asyncio.run(_used(odd))
        assert revealed(f"{refused.value} {refused.value!r}") == []
        assert revealed(repr(busq.Bus(odd).settings)) == []


async def _used(url: str) -> None:
    async with busq.Bus(url) as bus:
        await bus.stats()


@pytest.mark.parametrize("form", ["json", "terminal"])
def test_no_log_line_of_a_worker_shows_what_steers_a_terminal_or_is_secret(url: str, form: str) -> None:
    """Handlers log it, raise it, and let a thread die of it; what is kept with the jobs is without secrets, too."""
    handles = asyncio.run(_enqueue_three(url))
    if form == "json":
        with service("worker", "hostile_app:bus", "--health-port", "0", url=url) as worker:
            port = worker.until("health.serving")["port"]
            jobs = asyncio.run(_ended(url, handles))
            page = _page(port) + _page(port, "/readyz")
            argv = _children(worker.process.pid)
            worker.process.terminate()
            assert worker.ended() == 0
        said = worker.text + page + argv
    else:
        with terminal("worker", "hostile_app:bus", url=url, NO_COLOR="1") as shown:
            jobs = asyncio.run(_ended(url, handles))
            shown.process.terminate()  # a Ctrl-C would make the terminal forget what nobody has read yet
            said = shown.read_until(None).replace("\r\n", "\n")
    assert "spoken" not in said, "results are not logged"
    for word in ("by logging", "caught", "job.failed", "thread.failed"):
        assert word in said, said
    assert steering(said) == []
    assert forged(said) == []
    assert revealed(said) == []
    for job in jobs:
        assert job.error is None or revealed(f"{job.error.message} {job.error.traceback}") == []
        assert job.error is None or "hunter2" not in job.error.traceback


async def _enqueue_three(url: str) -> list[str]:
    async with busq.Bus(url) as bus:
        kinds = ("speaks", "raises", "raises_in_a_child")
        return [(await bus.enqueue(kind, f"payload {CANARY}")).jid for kind in kinds]


async def _ended(url: str, jids: list[str]) -> list[busq.Job]:
    async with busq.Bus(url) as bus:
        return [await bus.wait(jid, timeout=60) for jid in jids]


def _page(port: Any, path: str = "/") -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())


def _children(pid: int, *, environment: bool = True) -> str:
    """Command lines of a process's children, as `ps` shows them to everybody; and their environments."""
    said = ""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                said += (process / "cmdline").read_text()
                said += (process / "environ").read_bytes().decode(errors="replace") if environment else ""
        except OSError:  # it has just ended
            continue
    return said.replace("\0", " ")


def test_a_supervised_worker_is_not_told_the_password_on_its_command_line(url: str) -> None:
    with service("worker", "hostile_app:bus", "--processes", "2", "--url", url, url=None) as supervisor:
        supervisor.until("worker.started")
        said = _children(supervisor.process.pid, environment=False)
        assert "busq.cli.line" in said
        assert revealed(said) == []
