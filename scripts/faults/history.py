"""
What each process of a run writes down: lines of JSON, in a file of its own, so that SIGKILL loses none of them.

Every line is one write to a file opened for appending: it is in the kernel's hands before the next step is taken. Only
the last line of a process that was killed in the middle of it can be torn; `read` leaves that one out.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

RUN = "CHAOS_RUN"
FOLDER = "CHAOS_FOLDER"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class History:
    """The lines of one process in one role. Opened by the first line, and again in a child that was forked."""

    def __init__(self, name: str, role: str) -> None:
        self._name = name
        self._role = role
        self._pid = 0
        self._file = -1

    def tell(self, ev: str, kind: str, **facts: Any) -> None:
        """Write one line. `facts`: op, jid, inc, attempt, fence, val, err."""
        self.tell_all(ev, kind, [facts])

    def tell_all(self, ev: str, kind: str, each: list[dict[str, Any]]) -> None:
        """Write a line for each; what is common to them is the same moment."""
        if self._pid != os.getpid():
            self._open()
        mono, wall = time.monotonic_ns(), time.time_ns() // 1_000_000
        lines = []
        for facts in each:
            line: dict[str, Any] = {
                "v": 1, "run": self._run, "seq": next(self._seq), "mono": mono, "wall": wall, "proc": self._proc,
                "role": self._role, "ev": ev, "type": kind, "op": None, "jid": None, "inc": 1, "attempt": None,
                "fence": None, "val": None, "err": None,
            }  # fmt: skip
            line.update(facts)
            lines.append(_encode(line) + b"\n")
        # Many lines may go in one write: it is the file's end alone that a kill can tear.
        os.write(self._file, b"".join(lines))

    def _open(self) -> None:
        self._pid = os.getpid()
        self._run = os.environ.get(RUN, "")
        self._seq = itertools.count(1)
        self._proc = f"{self._name}:{self._pid}"
        folder = Path(os.environ[FOLDER]) / "history"
        path = folder / f"{self._role}-{self._name}-{self._pid}-{time.monotonic_ns()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of every file of a run, file by file."""
    for path in sorted((folder / "history").glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield _decode(line)
