"""
The counts of a run, and whether it holds.

The judge proper is `scripts/check_history.py`, a program of its own that shares no code with busq or with this. What
is added here is what only the run itself knows: what did not come to rest, and what clients were surprised by.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import hiredis
import msgspec

from faults.client import SURPRISE
from faults.drain import TERMINAL
from faults.history import read
from faults.plan import KILLS, STOPS
from faults.tally import Tally

_STAMP = re.compile(rb"^(?:#TS:\d+\r\n)+(?=\*|\Z)", re.MULTILINE)

JUDGE = Path(__file__).resolve().parents[1] / "check_history.py"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the run knows of itself."""

    faults: Counter[str]
    missed: Counter[str]
    crashes: Counter[str]
    starts: int
    left: list[str]
    seconds: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `chaos.py` prints and writes to faults.json."""

    jobs: int
    cancels: int
    scopes: int
    reads: int
    kills: int
    server_restarts: int
    pubsub_kills: int
    faults: dict[str, int]
    missed: dict[str, int]
    crashes: dict[str, int]
    endings: dict[str, int]
    verdicts: dict[str, int]
    transitions: dict[str, int]
    seconds: float
    violations: list[str]

    @property
    def holds(self) -> bool:
        return not self.violations


def judge(folder: Path, facts: Facts, keys: dict[str, Any], tally: Tally) -> Report:
    """Count, have the judge look at the folder, and say what is wrong."""
    lines = list(read(folder))
    states = _states(keys)
    transitions, second_thoughts = _walk(folder)
    violations = [f"not at rest: {each}" for each in facts.left]
    violations += _surprises(lines) + _lost(lines, states) + second_thoughts + _judged(folder)
    report = Report(
        jobs=tally.total("accepted"), cancels=tally.total("cancelled"), scopes=tally.total("scopes"),
        reads=tally.total("reads"), kills=sum(facts.faults[name] for name in (*KILLS, *STOPS)),
        server_restarts=facts.starts - 1, pubsub_kills=facts.faults["kill_pubsub"],
        faults=dict(sorted(facts.faults.items())), missed=dict(facts.missed), crashes=dict(facts.crashes),
        endings=dict(Counter(_ending(each["value"]) for each in _records(keys).values())),
        verdicts=dict(Counter(_verdict(line) for line in lines if line["ev"] == "cancel" and line["type"] == "ok")),
        transitions=dict(sorted(transitions.items())), seconds=round(facts.seconds, 1), violations=violations,
    )  # fmt: skip
    (folder / "faults.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    return report


def _judged(folder: Path) -> list[str]:
    if not JUDGE.exists():
        return []
    done = subprocess.run([sys.executable, str(JUDGE), str(folder)], capture_output=True, text=True, check=False)
    (folder / "judge.txt").write_text(done.stdout + done.stderr)
    if done.returncode == 0:
        return []
    return [f"the judge: {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-20:]]


def _records(keys: dict[str, Any]) -> dict[str, Any]:
    return {key.partition(":job:")[2]: each for key, each in keys.items() if "}:job:" in key}


def _states(keys: dict[str, Any]) -> dict[str, str]:
    return {jid: each["value"].get("state", "") for jid, each in _records(keys).items()}


def _ending(record: dict[str, str]) -> str:
    return " ".join(filter(None, [record.get("state"), record.get("ended") or record.get("cause")]))


def _verdict(line: dict[str, Any]) -> str:
    return str((line["val"] or {}).get("verdict", "scope"))


def _surprises(lines: list[dict[str, Any]]) -> list[str]:
    return [
        f"{line['proc']} {line['ev']} {line['jid']}: {line['err']}"
        for line in lines
        if line["err"] and line["err"].startswith(SURPRISE)
    ]


def _lost(lines: list[dict[str, Any]], states: dict[str, str]) -> list[str]:
    accepted = {line["jid"] for line in lines if line["ev"] == "enqueue" and line["type"] == "ok"}
    return [
        f"accepted and not ended: {jid} ({states.get(jid, 'no record')})"
        for jid in sorted(accepted)
        if states.get(jid) not in TERMINAL
    ]


def _walk(folder: Path) -> tuple[Counter[str], list[str]]:
    """Every change of a job's state in the server's order: how often each was seen, and ended jobs that changed."""
    now: dict[bytes, bytes] = {}
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    for command in _commands(folder):
        if command[0].upper() == b"HSET" and b"}:job:" in command[1]:
            fields = dict(zip(command[2::2], command[3::2], strict=True))
            state = fields.get(b"state")
            before = now.get(command[1])
            if state is None or state == before:
                continue
            seen[f"{(before or b'-').decode()} > {state.decode()}"] += 1
            if before is not None and before.decode() in TERMINAL:
                wrong.append(f"final was not final: {command[1].decode()} {before.decode()} > {state.decode()}")
            now[command[1]] = state
        elif command[0].upper() in (b"DEL", b"UNLINK"):
            for key in command[1:]:
                now.pop(key, None)
    return seen, wrong


def _commands(folder: Path) -> Any:
    for path in sorted((folder / "server" / "appendonlydir").glob("*.aof"), key=_number):
        reader = hiredis.Reader()
        reader.feed(_STAMP.sub(b"", path.read_bytes()))
        while (command := reader.gets()) is not False:
            yield command


def _number(path: Path) -> int:
    found = re.search(r"\.(\d+)\.", path.name)
    return int(found[1]) if found else 0


def printed(report: Report) -> str:
    return json.dumps(msgspec.to_builtins(report), indent=2)
