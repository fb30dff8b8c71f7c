"""
A worker behind a network of its own, whose link goes down: its loops go on, and no cancel is missed.

The link is a pair of virtual interfaces between two network namespaces. Nothing is reset and nothing refused: packets
are gone, as when a cable is pulled. `BUSQ_TEST_PARTITION_S` says for how long, 60 for what the kernel's own timers do.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import busq
from busq.cli.tied import end_process, tied_process
from tests.fault.process import ROOT
from tests.roles import deploy, elsewhere
from tests.runtime.bench import until
from tests.servers import RedisServer

PARTITION_S = float(os.environ.get("BUSQ_TEST_PARTITION_S", "6"))
LONGEST_GAP_S = 0.25


class Link:
    """Two ends of a cable: `near` on our side, the other one in a network namespace of its own."""

    def __init__(self) -> None:
        number = os.getpid() % 16_000  # parallel test processes have cables of their own
        self.namespace = f"busq-test-{number}"
        self._near, far = f"bqn{number}", f"bqf{number}"
        net = f"10.{200 + number // 8000}.{number // 64 % 125}.{number % 64 * 4}".rpartition(".")
        self.near, self.far = (f"{net[0]}.{int(net[2]) + host}" for host in (1, 2))
        self._ip("netns", "add", self.namespace)
        self._ip("link", "add", self._near, "type", "veth", "peer", "name", far, "netns", self.namespace)
        self._ip("addr", "add", f"{self.near}/30", "dev", self._near)
        self._ip("-n", self.namespace, "addr", "add", f"{self.far}/30", "dev", far)
        self._ip("-n", self.namespace, "link", "set", far, "up")
        self.up()

    def up(self) -> None:
        self._ip("link", "set", self._near, "up")

    def down(self) -> None:
        self._ip("link", "set", self._near, "down")

    def close(self) -> None:
        subprocess.run(["ip", "link", "del", self._near], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self.namespace], check=False, capture_output=True)

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            self.close()
            pytest.skip(
                f"no network namespaces here: `ip {' '.join(words)}` says {done.stderr.strip()!r}; it takes root"
            )


@pytest.fixture
def link() -> Iterator[Link]:
    if shutil.which("ip") is None:
        pytest.skip("no `ip` here; install iproute2")
    made = Link()
    yield made
    made.close()


@contextmanager
def worker_behind(link: Link, url: str, folder: Path, **settings: float) -> Iterator[subprocess.Popen[bytes]]:
    task = json.dumps({"url": url, "folder": str(folder), "settings": settings})
    with (folder / "worker.log").open("wb") as log:
        process = tied_process(
            [
                shutil.which("ip") or "ip",
                "netns",
                "exec",
                link.namespace,
                sys.executable,
                "-m",
                "tests.fault.partition_worker",
                task,
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        yield process
    finally:
        end_process(process)


def tripped(folder: Path, handles: list[busq.JobHandle[None]]) -> bool:
    return all((folder / f"{handle.jid}.tripped").exists() for handle in handles)


async def test_a_partition_freezes_no_loop_and_hides_no_cancel(
    link: Link, start_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = start_server(users=True, options=["--bind", "127.0.0.1", link.near, "--protected-mode", "no"])
    url = elsewhere(server.url_for("worker"), f"{link.near}:{server.port}/0")
    await deploy(server.url)
    patient = {"lease_s": 600.0, "grace_s": 600.0}
    with worker_behind(link, url, tmp_path, **patient) as worker:
        async with busq.Bus(server.url_for("client"), **patient) as bus:
            await until(lambda: (tmp_path / "ready").exists() or worker.poll() is not None)
            handles = await bus.enqueue_many(bus.spec("hold") for _ in range(20))
            before, during, after = handles[:5], handles[5:15], handles[15:]

            async def all_run() -> bool:
                return all([(await handle.get()).state == "running" for handle in handles])

            await until(all_run)
            await bus.cancel_many([handle.jid for handle in before])
            await until(lambda: tripped(tmp_path, before))
            link.down()
            for handle in during:
                answer = await handle.cancel()
                assert answer.verdict == "signalled"
            await _sleep(PARTITION_S)
            assert not any((tmp_path / f"{handle.jid}.tripped").exists() for handle in during), "the link was down"
            link.up()
            await until(lambda: tripped(tmp_path, during))
            await bus.cancel_many([handle.jid for handle in after])
            await until(lambda: tripped(tmp_path, after))
            jobs = [await handle.wait(timeout=30) for handle in handles]
            assert {(job.state, job.ended) for job in jobs} == {("cancelled", "confirmed")}
            worker.send_signal(signal.SIGTERM)
            await until(lambda: worker.poll() is not None)
            assert worker.returncode == 0
    server.close()
    gaps = json.loads((tmp_path / "gaps").read_text())
    print(f"longest gaps in seconds over a partition of {PARTITION_S:g} s: {gaps}")
    # A machine that is too busy holds up everybody, and a loop that has work to make up for a little longer than a
    # process that only sleeps: 2.8 s beside 2.5 s were seen. What freezes in a partition stands for as long as that is.
    allowed = LONGEST_GAP_S + 2 * gaps["machine"]
    assert gaps["handlers"] <= allowed, gaps
    assert gaps["control"] <= allowed, gaps


async def _sleep(seconds: float) -> None:
    """The partition's length is what this test is about, and no event ends it."""
    await asyncio.sleep(seconds)
