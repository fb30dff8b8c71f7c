"""
The counts of a run, and whether it holds.

The judge is `scripts/check_history.py`, a program of its own that shares no code with busq or with this. What is added
here is what only the run itself knows: what did not come to rest, what clients were surprised by, which processes ended
by themselves although nobody had touched them.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from faults.client import SURPRISE
from faults.history import read
from faults.plan import KILLS, STOPS
from faults.tally import Tally

JUDGE = Path(__file__).resolve().parents[1] / "check_history.py"
UNREACHABLE = 3
"""The exit code of a process that could not reach the server when it began."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the run knows of itself. `crashes`: how processes ended that nobody had ended, by role and exit code."""

    faults: Counter[str]
    missed: Counter[str]
    crashes: Counter[tuple[str, int]]
    restarts: int
    left: list[str]
    seconds: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `chaos.py` prints and writes to faults.json."""

    seed: int
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


def judge(folder: Path, seed: int, facts: Facts, keys: dict[str, Any], tally: Tally) -> Report:
    """Count, have the judge look at the folder, and say what is wrong."""
    lines = list(read(folder))
    judged = _judged(folder)
    violations = [f"not at rest: {each}" for each in facts.left]
    violations += _surprises(lines) + _mistakes(facts.crashes) + _words(judged)
    report = Report(
        seed=seed, jobs=tally.total("accepted"), cancels=tally.total("cancelled"), scopes=tally.total("scopes"),
        reads=tally.total("reads"), kills=sum(facts.faults[name] for name in (*KILLS, *STOPS)),
        server_restarts=facts.restarts, pubsub_kills=facts.faults["kill_pubsub"],
        faults=dict(sorted(facts.faults.items())), missed=dict(facts.missed),
        crashes={f"{role} ended with {code}": count for (role, code), count in facts.crashes.items()},
        endings=dict(Counter(_ending(each["value"]) for key, each in keys.items() if "}:job:" in key)),
        verdicts=dict(Counter(_verdict(line) for line in lines if line["ev"] == "cancel" and line["type"] == "ok")),
        transitions=judged["figures"].get("moves", {}), seconds=round(facts.seconds, 1), violations=violations,
    )  # fmt: skip
    (folder / "faults.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    return report


def _judged(folder: Path) -> dict[str, Any]:
    """What the judge says of the folder; `judge.json` keeps all of it."""
    done = subprocess.run([sys.executable, str(JUDGE), "--json", str(folder)], capture_output=True, check=False)
    (folder / "judge.json").write_bytes(done.stdout)
    try:
        found: dict[str, Any] = msgspec.json.decode(done.stdout)
    except msgspec.DecodeError:
        words = done.stderr.decode(errors="replace").strip()[-2000:]
        return {
            "verdict": "void",
            "violations": [],
            "void": [f"the judge did not come to an end: {words}"],
            "figures": {},
        }
    return found


def _words(judged: dict[str, Any]) -> list[str]:
    found = [f"{each['check']} {each['jid']}: {each['words']} [{each['place']}]" for each in judged["violations"]]
    return found + [f"void: {each}" for each in judged["void"]]


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


def _mistakes(crashes: Counter[tuple[str, int]]) -> list[str]:
    """Processes that ended by themselves, and not because they could not reach the server when they began."""
    return [f"a {role} ended with {code}: see logs/" for role, code in crashes if code != UNREACHABLE]
