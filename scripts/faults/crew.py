"""
The processes of a run: workers, watchdogs, producers and cancellers, each with a place that is filled again.

They are born in the nursery, which collects them too, so nobody here holds a pid that may mean somebody else by now:
a process is only signalled while the nursery has not said that it ended.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from busq.cli.tied import end_process

AGAIN_S = 0.05  # until a place is filled again
CRASHED_S = 0.5  # the same for a process that ended badly by itself


class Place:
    """One process of the crew, and its successors."""

    def __init__(self, name: str, role: str) -> None:
        self.name = name
        self.role = role
        self.pid: int | None = None
        self.lives = 0
        self.frozen = False
        self.wanted = True
        self.done = False  # it has nothing more to do, and said so by exit code 0
        self.killed = False  # its present process was ended by us
        self.ended = asyncio.Event()


class Crew:
    """`command(place)` gives arguments and environment of the next process of a place."""

    def __init__(self, folder: Path, command: Any) -> None:
        self._folder = folder
        self._command = command
        self._asked: dict[int, Place] = {}
        self._ids = itertools.count(1)
        self._by_pid: dict[int, Place] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.places: list[Place] = []
        self.crashes: Counter[tuple[str, int]] = Counter()  # ends that nobody here brought about
        (folder / "logs").mkdir()
        self._root = Path(__file__).resolve().parents[2]

    async def open(self) -> None:
        ours, theirs = os.pipe()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self._root), str(self._root / "scripts")])}
        task_read, task_write = os.pipe()
        self._process = subprocess.Popen(  # noqa: ASYNC220 - there is nothing else to do meanwhile
            [sys.executable, "-m", "faults.nursery"], stdin=task_read, stdout=theirs, env=env, process_group=0,
            stderr=(self._folder / "logs" / "nursery.log").open("ab"),
        )  # fmt: skip
        os.close(task_read)
        os.close(theirs)
        self._to = task_write
        self._from = asyncio.StreamReader(limit=1 << 20)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(self._from), os.fdopen(ours, "rb"))
        first = await asyncio.wait_for(self._from.readline(), 60)
        if b"ready" not in first:
            raise RuntimeError(f"the nursery does not start; see {self._folder / 'logs' / 'nursery.log'}")
        self._start(self._hear())

    def add(self, name: str, role: str) -> Place:
        place = Place(name, role)
        self.places.append(place)
        self._bear(place)
        return place

    def of(self, role: str) -> list[Place]:
        """Places of a role whose process is there and not frozen."""
        return [each for each in self.places if each.role == role and each.pid is not None and not each.frozen]

    def is_over(self, role: str) -> bool:
        """Whether all of a role have done what they had to do."""
        return all(each.done for each in self.places if each.role == role)

    def signal(self, place: Place, number: int) -> bool:
        """Whether there was a process to be signalled."""
        if place.pid is None:
            return False
        if number == signal.SIGKILL:
            place.killed = True
        with suppress(ProcessLookupError):
            os.kill(place.pid, number)
        return True

    async def close(self) -> None:
        for place in self.places:
            place.wanted = False
        for task in self._tasks:
            task.cancel()
        os.close(self._to)
        end_process(self._process)

    def _bear(self, place: Place) -> None:
        place.lives += 1
        place.ended = asyncio.Event()
        place.killed = place.frozen = False
        argv, env = self._command(place)
        number = next(self._ids)
        self._asked[number] = place
        task = {"id": number, "argv": argv, "env": env, "log": str(self._folder / "logs" / f"{place.name}.log")}
        os.write(self._to, json.dumps(task).encode() + b"\n")

    async def _hear(self) -> None:
        while line := await self._from.readline():
            fact = json.loads(line)
            if "id" in fact:
                place = self._asked.pop(fact["id"])
                place.pid = fact["pid"]
                self._by_pid[fact["pid"]] = place
            elif (gone := self._by_pid.pop(fact["pid"], None)) is not None:
                self._over(gone, fact["code"])

    def _over(self, place: Place, code: int) -> None:
        place.pid = None
        place.ended.set()
        place.done = code == 0 and place.role in ("producer", "canceller")
        if code != 0 and not place.killed:
            self.crashes[place.role, code] += 1
        if place.wanted and not place.done:
            self._start(self._again(place, AGAIN_S if place.killed or code == 0 else CRASHED_S))

    async def _again(self, place: Place, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if place.wanted:
            self._bear(place)

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def children_of(pid: int) -> list[int]:
    """The processes that this one has started and that are still there; empty where /proc is not."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
