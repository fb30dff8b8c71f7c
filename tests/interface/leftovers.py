"""What a command leaves behind: processes that carry its mark, files in the folder that it took for temporary ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.servers import find_redis_server

NAME = "BUSQ_TEST_MARK"


class Traces:
    """Give `environ` to a command; when it has ended, ask what is `left_behind`. Linux only."""

    def __init__(self, folder: Path) -> None:
        self._temporary = folder / "temporary"
        self._temporary.mkdir()
        self._mark = f"{NAME}={folder}".encode()
        executable = find_redis_server()
        path = [os.path.dirname(executable)] if executable else []
        self.environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PATH": os.pathsep.join([*path, os.environ["PATH"]]),
            "TMPDIR": str(self._temporary),
            NAME: str(folder),
        }

    def left_behind(self) -> list[str]:
        running = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark in (process / "environ").read_bytes().split(b"\0"):
                    running.append(str(process))
            except OSError:
                continue  # it has ended, or is not ours
        return running + [str(path) for path in self._temporary.iterdir()]
