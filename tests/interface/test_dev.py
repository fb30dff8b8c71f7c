"""`busq dev` as a process: an application runs on it, jobs come from outside, and it goes without a trace."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from redis import Redis

import busq
from tests.interface.leftovers import Traces

BUSQ = "from busq.cli import main; main()"
APP = """
import busq
bus = busq.Bus({url})

@bus.job
async def add(a: int, b: int) -> int:
    return a + b
"""
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for what is left")


class Dev:
    """A running `busq dev`; what it prints is read line by line."""

    def __init__(self, folder: Path, app: str) -> None:
        self.traces = Traces(folder)
        self.process = subprocess.Popen(
            [sys.executable, "-c", BUSQ, "dev", app],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.traces.environ,
        )
        self.output = ""

    @property
    def _lines(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def until(self, word: str) -> None:
        """Read on until a line holds this word."""
        for line in self._lines:
            self.output += line
            if word in line:
                return
        pytest.fail(f"it ended without {word!r}:\n{self.output}")

    @property
    def url(self) -> str:
        found = re.search(r"export BUSQ_URL=(\S+)", self.output)
        assert found is not None, self.output
        return found[1]

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if one is given, and read to the end. Return the exit status."""
        if number is not None:
            self.process.send_signal(number)
        self.output += self._lines.read()
        return self.process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP.format(url=""))
    (tmp_path / "settled.py").write_text(APP.format(url='"redis://me:hidden-words@elsewhere:6379/0"'))
    return tmp_path


@pytest.fixture
def dev(folder: Path, request: pytest.FixtureRequest) -> Iterator[Dev]:
    """`busq dev`, by default of an application that names no URL of its own."""
    dev = Dev(folder, getattr(request, "param", "shop:bus"))
    yield dev
    dev.process.kill()
    dev.process.wait()
    dev._lines.close()


@ON_LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_runs_a_job_from_outside_and_ends_without_a_trace(dev: Dev, number: signal.Signals) -> None:
    dev.until("worker.started")
    if "watchdog.started" not in dev.output:
        dev.until("watchdog.started")
    async with busq.Bus(dev.url) as bus:
        handle = await bus.enqueue("add", 2, 3)
        assert await handle.result(timeout=20) == 5
    assert dev.end(number) == 0, dev.output
    assert "Traceback" not in dev.output
    assert "worker.stopped" in dev.output
    assert "watchdog.stopped" in dev.output
    assert dev.traces.left_behind() == []


def test_it_says_which_server_it_took_before_anything_else(dev: Dev) -> None:
    dev.until("export BUSQ_URL=")
    assert "from PATH" in dev.output.splitlines()[0]


@pytest.mark.parametrize("dev", ["settled:bus"], indirect=True)
async def test_an_application_with_a_url_of_its_own_runs_on_the_embedded_server_and_it_says_so(dev: Dev) -> None:
    dev.until("worker.started")
    assert f"settled:bus names redis://me:***@elsewhere:6379/0; here it runs on {dev.url} instead" in dev.output
    assert "hidden-words" not in dev.output
    async with busq.Bus(dev.url) as bus:
        assert await (await bus.enqueue("add", 2, 3)).result(timeout=20) == 5


@ON_LINUX
@pytest.mark.parametrize("dev", ["nowhere:bus", "shop:buss"], indirect=True)
def test_an_app_that_is_not_there_ends_it_with_the_message_of_the_worker(dev: Dev) -> None:
    assert dev.end() == 2
    assert "nowhere" in dev.output or "did you mean shop:bus?" in dev.output
    assert "Traceback" not in dev.output
    assert dev.traces.left_behind() == []


@ON_LINUX
def test_a_server_that_dies_ends_it_with_exit_3_and_is_named(dev: Dev) -> None:
    dev.until("worker.started")
    with Redis.from_url(dev.url) as server:
        os.kill(server.info("server")["process_id"], signal.SIGKILL)
    assert dev.end() == 3
    assert "the server ended unasked (ended by SIGKILL)" in dev.output
    assert dev.traces.left_behind() == []


@ON_LINUX
def test_a_watchdog_that_dies_ends_it_and_is_named(dev: Dev) -> None:
    dev.until("watchdog.started")
    found = re.search(r'"watchdog": "[^"]*-(\d+)-[0-9a-f]+"', dev.output)
    assert found is not None, dev.output
    os.kill(int(found[1]), signal.SIGKILL)
    assert dev.end() == 1
    assert "the watchdog ended unasked" in dev.output
    assert dev.traces.left_behind() == []
