"""Running `busq` as people do: in a process of its own, in a pipe or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.roles import as_role

APPS = Path(__file__).parent / "apps"
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "busq"]
LIMIT_S = 60


def environ(url: str | None, **more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("BUSQ_") and name != "NO_COLOR"}
    own |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", **more}
    return own if url is None else own | {"BUSQ_URL": url}


def url_for(words: Sequence[str], url: str | None) -> str | None:
    """The URL of the user who may run this command, where the server has one for each role."""
    role = words[0] if words and words[0] in ("worker", "watchdog") else "admin"
    return None if url is None else as_role(url, role)


def busq(*words: str, url: str | None = None, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*COMMAND, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=APPS,
        env=environ(url_for(words, url), **more),
    )


def document(answer: subprocess.CompletedProcess[str]) -> Any:
    """What a command said with `-o json`: the whole of stdout is one document."""
    return json.loads(answer.stdout)


class Service:
    """A command that goes on: a worker, a watchdog. Its log lines are read as they come."""

    def __init__(self, *words: str, url: str, **more: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=APPS,
            env=environ(url_for(words, url), **more),
        )
        self.lines: list[dict[str, Any]] = []
        self.text = ""
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.text += line
                if line.startswith("{"):
                    self.lines.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def until(self, wanted: Callable[[dict[str, Any]], bool] | str) -> dict[str, Any]:
        """The first log line that is wanted, by its event or by a test."""
        fits = (lambda line: line["event"] == wanted) if isinstance(wanted, str) else wanted

        def found() -> dict[str, Any] | None:
            return next((line for line in self.lines if fits(line)), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None or self._ended, LIMIT_S)
            line = found()
        assert line is not None, f"never said: {self.text}"
        return line

    def ended(self) -> int:
        """Its exit code, once it has ended and every line of it has been read."""
        code = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return code


@contextmanager
def service(*words: str, url: str, **more: str) -> Iterator[Service]:
    running = Service(*words, url=url, **more)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        assert running.process.stderr is not None
        running._reader.join(LIMIT_S)
        running.process.stderr.close()


class Terminal:
    """A command on a terminal of its own; `read_until` gathers what the terminal shows."""

    def __init__(self, *words: str, url: str, columns: int = 80, **more: str) -> None:
        import fcntl
        import struct
        import termios

        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        # The first terminal that the leader of a session opens becomes its own: then Ctrl-C reaches whom it should.
        command = ["sh", "-c", 'exec "$@" <"$0"', os.ttyname(theirs), *COMMAND, *words]
        self.process = subprocess.Popen(
            command,
            stdout=theirs,
            stderr=theirs,
            cwd=APPS,
            env=environ(url_for(words, url), **more),
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def read_until(self, words: str | None) -> str:
        """Read until these words were shown; None: until the end."""
        while words is None or words not in self.shown:
            ready, _, _ = select.select([self._ours], [], [], LIMIT_S)
            assert ready, f"silent; shown so far: {self.shown}"
            try:
                chunk = os.read(self._ours, 65536)
            except OSError:  # the other side is closed
                chunk = b""
            if not chunk:
                assert words is None, f"ended; shown: {self.shown}"
                break
            self.shown += chunk.decode(errors="replace")
        return self.shown

    def press_ctrl_c(self) -> None:
        """As a person does: the terminal then signals every process of the foreground."""
        os.write(self._ours, b"\x03")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def terminal(*words: str, url: str, columns: int = 80, **more: str) -> Iterator[Terminal]:
    shown = Terminal(*words, url=url, columns=columns, **more)
    try:
        yield shown
    finally:
        shown.close()
