"""What the stage writes down of itself, in the judge's format."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Recorder:
    def __init__(self, folder: Path) -> None:
        (folder / "history").mkdir(parents=True, exist_ok=True)
        (folder / "server").mkdir(exist_ok=True)
        self._folder = folder
        self._file = (folder / "history" / "stage.jsonl").open("a", buffering=1)
        self._seq = 0

    def tell(self, ev: str, kind: str, *, role: str = "client", **facts: Any) -> None:
        self._seq += 1
        line = {
            "v": 1, "run": "stage", "seq": self._seq, "mono": time.monotonic_ns(), "wall": time.time_ns() // 1_000_000,
            "proc": f"stage:{os.getpid()}", "role": role, "ev": ev, "type": kind, "op": None, "jid": None, "inc": 1,
            "attempt": None, "fence": None, "val": None, "err": None,
        }  # fmt: skip
        self._file.write(json.dumps(line | facts) + "\n")

    def keep(self, name: str, told: dict[str, Any]) -> None:
        """A document beside the histories."""
        (self._folder / name).write_text(json.dumps(told))

    def asked(self, ev: str, jid: str) -> str:
        op = f"{ev}-{self._seq}"
        self.tell(ev, "invoke", op=op, jid=jid)
        return op

    def answered(self, ev: str, op: str, jid: str, answer: str, *, kind: str = "ok") -> None:
        self.tell(ev, kind, op=op, jid=jid, val={"ret": answer})
