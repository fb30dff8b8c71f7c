"""
One run from begin to end: servers, proxies, crew, nemesis; then healing, the drain, the dump, the counts and the
verdict.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from faults import drain, verdict
from faults.app import GRANDCHILD
from faults.cables import Cable, lay
from faults.client import Task
from faults.crew import Crew, Place
from faults.history import FOLDER, RUN
from faults.nemesis import Nemesis
from faults.nursery import NETNS, SKEW
from faults.plan import Plan
from faults.tally import CANCELLERS, PRODUCERS, Tally
from faults.topology import Alone, Cluster, Topology
from faults.users import Users, can_be_made

NAMESPACE = "busq"
WORKERS = (("co", 3, 60), ("th", 1, 12), ("pr", 2, 2))  # queue, how many, concurrency of each
WATCHDOGS = 3
BY_PROXY = 0.5  # of all processes
SHARE_S = 900.0  # for the clients to do their share after the last fault, however slow the machine is
SLACK_S = 10.0  # what a busy machine may add to a bound: this run proves what happens, and a benchmark when


class Campaign:
    def __init__(self, plan: Plan, folder: Path) -> None:
        executable = os.environ.get("BUSQ_REDIS_SERVER") or shutil.which("redis-server")
        if executable is None:
            raise RuntimeError("no redis-server on PATH and BUSQ_REDIS_SERVER is not set; `sh scripts/test` brings one")
        self.plan = plan
        self._cables = self._laid()
        folder.mkdir(parents=True)
        (folder / "history").mkdir()
        self.folder = folder
        self.run = f"r{plan.seed}-{os.getpid()}"  # two runs of one seed may go on at once
        os.environ |= {RUN: self.run, FOLDER: str(folder)}
        self._skew = folder / "skew"
        self._set_skew(0)
        self._topology = self._made(executable)
        self._crew = Crew(folder, self._command)
        self._tally = Tally(folder)
        self._chance = random.Random(plan.seed + 1)

    async def carry_out(self) -> verdict.Report:
        try:
            await self._topology.start()
            await self._crew.open()
            return await self._whole()
        finally:
            await self._crew.close()
            await self._topology.close()
            for cable in self._cables.values():
                cable.close()

    def _laid(self) -> dict[str, Cable]:
        """The cables of workers and watchdogs, by their names. Raise `Impossible`."""
        if not self.plan.cables:
            return {}
        names = [name for name, role in _places() if role in ("worker", "watchdog")]
        return dict(zip(names, lay(len(names)), strict=True))

    def _made(self, executable: str) -> Topology:
        users = Users(self.folder / "users") if can_be_made() else None
        if self.plan.nodes:
            return Cluster(executable, self.folder, users, self.plan.nodes)
        return Alone(executable, self.folder, users, [cable.near for cable in self._cables.values()])

    async def _whole(self) -> verdict.Report:
        nemesis = Nemesis(self._topology, self._crew, self._set_skew, self.plan, self._cables)
        self._write_run()
        before = await drain.said_of_themselves(self._topology.servers)
        self._began = time.monotonic()
        self._fill()
        await nemesis.carry_out()
        late = await self._until_clients_are_done()
        self._heal()
        servers = self._topology.servers
        left = await drain.until_quiet(servers, NAMESPACE, self.plan.drain_s)
        stuck = await drain.stuck(servers, NAMESPACE)
        survivors = _survivors(self.run)
        final = await drain.dump(servers, NAMESPACE, before)
        self._write("final.json", final)
        facts = verdict.Facts(
            faults=nemesis.counts, missed=nemesis.missed, crashes=self._crew.crashes, restarts=self._topology.restarts,
            left=late + left + stuck + survivors, seconds=time.monotonic() - self._began,
        )  # fmt: skip
        return verdict.judge(self.folder, self.plan.seed, facts, final["keys"], self._tally)

    # The crew --------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        for name, role in _places():
            self._crew.add(name, role)

    def _command(self, place: Place) -> tuple[list[str], dict[str, str]]:
        """What the next process of a place runs, and its environment."""
        by_proxy = self._chance.random() < BY_PROXY
        cable = self._cables.get(place.name)
        url = self._topology.url(place.role, by_proxy=by_proxy, cable=cable)
        env = {f"BUSQ_{name.upper()}": str(value) for name, value in self.plan.settings.items()}
        env |= {"BUSQ_URL": url, "BUSQ_LOG_LEVEL": "warning", SKEW: str(self._skew)}
        if cable is not None:
            env[NETNS] = cable.namespace
        if place.role == "worker":
            queue, _, concurrency = next(each for each in WORKERS if place.name.startswith(f"w-{each[0]}"))
            return ["worker", "faults.app:bus", "--queue", queue, "--concurrency", str(concurrency)], env
        if place.role == "watchdog":
            return ["watchdog"], env
        return [place.role, msgspec.json.encode(self._task(place, url)).decode()], env

    def _task(self, place: Place, url: str) -> Task:
        producer, number = place.role == "producer", int(place.name[1:])
        whole, parts = (self.plan.jobs, PRODUCERS) if producer else (self.plan.cancels, CANCELLERS)
        return Task(
            name=place.name, url=url, row=number if producer else PRODUCERS + number, share=-(-whole // parts),
            seed=self._chance.getrandbits(32), began=self._began, seconds=self.plan.minutes * 60,
            settings=self.plan.settings,
        )  # fmt: skip

    def _set_skew(self, seconds: int) -> None:
        mode = "r+b" if self._skew.exists() else "wb"
        with self._skew.open(mode) as file:
            file.write(struct.pack("q", seconds))

    # The end ---------------------------------------------------------------------------------------------

    async def _until_clients_are_done(self) -> list[str]:
        end = time.monotonic() + SHARE_S
        clients = [each for each in self._crew.places if each.role in ("producer", "canceller")]
        while time.monotonic() < end:
            if self._crew.is_over("producer") and self._crew.is_over("canceller"):
                return []
            await asyncio.sleep(0.1)
        return [f"{each.name} has not done its share" for each in clients if not each.done]

    def _heal(self) -> None:
        for link in self._topology.links:
            link.heal()
        for place in self._crew.places:
            if place.role in ("producer", "canceller"):
                place.wanted = False

    def _write_run(self) -> None:
        whole = {
            "run": self.run, "seed": self.plan.seed, "namespace": NAMESPACE, "shards": self.plan.shards,
            "settings": self.plan.settings, "expect_drained": True, "dump": "final.json", "keep_kinds": ["keeps"],
            "slack_s": SLACK_S,
        }  # fmt: skip
        self._write("run.json", whole)

    def _write(self, name: str, whole: dict[str, Any]) -> None:
        (self.folder / name).write_bytes(msgspec.json.encode(whole))


def _places() -> Iterator[tuple[str, str]]:
    """Everybody of the crew, as name and role."""
    for queue, count, _ in WORKERS:
        yield from ((f"w-{queue}{i}", "worker") for i in range(count))
    for letter, role, count in (
        ("d", "watchdog", WATCHDOGS), ("p", "producer", PRODUCERS), ("c", "canceller", CANCELLERS),
    ):  # fmt: skip
        yield from ((f"{letter}{i}", role) for i in range(count))


def _survivors(run: str) -> list[str]:
    """Programs that handlers started and nobody ended, as lines for people; they are ended here."""
    wanted = f"{GRANDCHILD}={run}".encode()
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            theirs = wanted in environ.read_bytes().split(b"\0")
        except OSError:
            continue
        if theirs:
            pid = int(environ.parent.name)
            found.append(f"process {pid} outlived the job that started it")
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
    return found
