"""
Real Redis servers for tests: started on a free port, and ended, paused or restarted at will.

The binary is `BUSQ_REDIS_SERVER`, else redis-server on PATH. Like every server we start, it dies with the process
that started it, so an aborted test run leaves nothing behind.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache

from redis import Redis

from busq.cli.embedded import HOST, THROW_AWAY, _wait_until, free_port
from busq.cli.tied import end_process, tied_process
from busq.store.roles import LATER_THAN_7_0
from tests import roles

PORT_TRIES = 5


def find_redis_server() -> str | None:
    """The redis-server that tests shall use, or None."""
    return os.environ.get("BUSQ_REDIS_SERVER") or shutil.which("redis-server")


@cache
def _lacking(executable: str) -> tuple[str, ...]:
    """What roles name and this server does not know; an aclfile with such a word in it keeps it from starting."""
    told = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)\.(\d+)", told)
    assert found, told
    return LATER_THAN_7_0 if (int(found[1]), int(found[2])) < (7, 2) else ()


class RedisServer:
    """
    One server. `aof=True` makes it keep its data over `kill` and `restart`; without, it comes back empty. Such a server
    never waits for its disk: with `everysec` it puts off writes while an fsync lasts, and a kill then loses them.

    The port stays the same for its whole life. `options` go to redis-server as they are. `users=True` lets in a user
    for each role and nobody else (`tests/roles.py`): `url` is the tester's then, `url_for` that of a role.
    """

    def __init__(self, executable: str, *, aof: bool = False, options: Sequence[str] = (), users: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="busq-test-redis-")
        self._users = users
        if users:
            file = os.path.join(self._folder.name, "users.acl")
            with open(file, "w") as lines:
                lines.write("\n".join(roles.acl_lines(lacking=_lacking(executable))) + "\n")
            login = ["--masteruser", roles.TESTER, "--masterauth", roles.password_of(roles.TESTER)]
            options = [*options, "--aclfile", file, *login]
        keep = ("--appendonly", "yes", "--appendfsync", "no") if aof else ()
        self._command = [executable, "--dir", self._folder.name, *THROW_AWAY, *keep, *options]
        self._process = self._start_on_free_port()

    @property
    def url(self) -> str:
        return self._url(self.port)

    def url_for(self, user: str) -> str:
        """The URL of a role's user, of `client` or `tester`; the same for all where there are no users."""
        return roles.as_role(self.url, user)

    def _url(self, port: int) -> str:
        place = f"{HOST}:{port}/0"
        return roles.url_of(roles.TESTER, place) if self._users else f"redis://{place}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def folder(self) -> str:
        """Where it keeps its files."""
        return self._folder.name

    @property
    def aof_folder(self) -> str:
        """Where the append-only files are, for a test that reads the order of all writes."""
        return os.path.join(self._folder.name, "appendonlydir")

    def kill(self) -> None:
        """SIGKILL, and wait for the end. Whatever the server had answered before is in the AOF, if it has one."""
        end_process(self._process)

    def start(self) -> None:
        """Start it again after `kill`, on the same port, and wait until it answers."""
        process = self._start_on(self.port)
        if process is None:
            raise RuntimeError(f"redis-server did not come back on port {self.port}")
        self._process = process

    def restart(self) -> None:
        """Kill and start; connections are cut, scripts forgotten, and the data too unless there is an AOF."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a `pause`. Harmless without one."""
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> Redis:
        """A plain blocking client, to look from outside."""
        return Redis.from_url(self.url)

    def flush(self) -> None:
        """Make it empty, as a test expects to find it, whatever the last one did to it."""
        self.resume()
        if not self.alive:
            self.start()
        with self.client() as client:
            client.flushall()

    def close(self) -> None:
        """End it and remove its folder. Safe to repeat."""
        self.kill()
        self._folder.cleanup()

    def _start_on_free_port(self) -> subprocess.Popen[bytes]:
        for _ in range(PORT_TRIES):
            self.port = free_port()
            process = self._start_on(self.port)
            if process is not None:
                return process
        raise RuntimeError(f"does not start: {' '.join(self._command)}")

    def _start_on(self, port: int) -> subprocess.Popen[bytes] | None:
        process = tied_process([*self._command, "--port", str(port)])
        if _wait_until(process, lambda: self._process_id(port) == process.pid):
            return process
        end_process(process)
        return None

    def _process_id(self, port: int) -> int:
        with Redis.from_url(self._url(port), socket_timeout=1.0) as client:
            return int(client.info("server")["process_id"])
