"""
Everything at once, for some minutes: the counts that a run must reach, and no violation.

`scripts/chaos.py` does it, and `scripts/check_history.py` judges it; here stands only how much of it one run of the
tests is to see. It takes as long as it takes: the counts are asked for, not the time.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.servers import RedisServer

ROOT = Path(__file__).parents[2]
SEED = 20261122
MINUTES = 3.4
JOBS, CANCELS, KILLS, SERVER_RESTARTS, PUBSUB_KILLS = 20_000, 5_000, 300, 30, 100
KINDS_OF_FAULTS = 25
MOVES = 14  # of a job from one state to another that a run must have shown


@pytest.mark.timeout(1500)
def test_chaos_breaks_no_promise(redis_server: RedisServer, tmp_path: Path) -> None:
    """`redis_server` is asked for because a missing one is told in words there; the run starts one of its own."""
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "scripts" / "chaos.py"), "--seed", str(SEED), "--minutes", str(MINUTES)]
    command += ["--jobs", str(round(JOBS * 1.02)), "--cancels", str(round(CANCELS * 1.02)), "--out", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    report: dict[str, Any] = msgspec.json.decode((folder / "faults.json").read_bytes())
    assert report["violations"] == []
    assert report["jobs"] >= JOBS
    assert report["cancels"] >= CANCELS
    assert report["kills"] >= KILLS
    assert report["server_restarts"] >= SERVER_RESTARTS
    assert report["pubsub_kills"] >= PUBSUB_KILLS
    assert len(report["faults"]) >= KINDS_OF_FAULTS, report["faults"]
    assert len(report["transitions"]) >= MOVES, report["transitions"]
