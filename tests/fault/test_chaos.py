"""
Everything at once, for some minutes: the counts that a run must reach, and no violation.

`scripts/chaos.py` does it, and `scripts/check_history.py` judges it; here stands only how much of it one run of the
tests is to see: on one server with one shard and with several, and for a short while on a cluster, and with networks
that are cut. It takes as long as it takes: the counts are asked for, not the time.
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
sys.path.append(str(ROOT / "scripts"))

from faults import cables  # noqa: E402

SEED = 20261122
SHARDS = {1: 1.2, 3: 2.0}  # minutes with so many shards
JOBS, CANCELS, KILLS, SERVER_RESTARTS, PUBSUB_KILLS = 20_000, 5_000, 300, 30, 100
KINDS_OF_FAULTS = 25
MOVES = 14  # of a job from one state to another that a run must have shown
NETNS_MINUTES = 0.17
CLUSTER_MINUTES, CLUSTER_JOBS, CLUSTER_CANCELS, CLUSTER_KILLS = 0.15, 800, 200, 12


def carried_out(folder: Path, minutes: float, jobs: int, cancels: int, *options: str) -> dict[str, Any]:
    """The report of a run in which nothing was wrong."""
    command = [sys.executable, str(ROOT / "scripts" / "chaos.py"), "--seed", str(SEED), "--minutes", str(minutes)]
    command += ["--jobs", str(jobs), "--cancels", str(cancels), "--out", str(folder), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    report: dict[str, Any] = msgspec.json.decode((folder / "faults.json").read_bytes())
    assert report["violations"] == []
    return report


@pytest.mark.timeout(1500)
def test_chaos_breaks_no_promise(redis_server: RedisServer, tmp_path: Path) -> None:
    """`redis_server` is asked for because a missing one is told in words there; the runs start their own."""
    whole = sum(SHARDS.values())
    reports = [
        carried_out(
            tmp_path / f"shards-{shards}", minutes, round(1.02 * JOBS * minutes / whole),
            round(1.02 * CANCELS * minutes / whole), "--shards", str(shards),
        )
        for shards, minutes in SHARDS.items()
    ]  # fmt: skip

    def seen(name: str) -> int:
        return sum(report[name] for report in reports)

    assert seen("jobs") >= JOBS
    assert seen("cancels") >= CANCELS
    assert seen("kills") >= KILLS
    assert seen("server_restarts") >= SERVER_RESTARTS
    assert seen("pubsub_kills") >= PUBSUB_KILLS
    for report in reports:
        assert len(report["faults"]) >= KINDS_OF_FAULTS, report["faults"]
        assert len(report["transitions"]) >= MOVES, report["transitions"]


@pytest.mark.timeout(600)
def test_chaos_on_a_cluster_breaks_no_promise(redis_server: RedisServer, tmp_path: Path) -> None:
    report = carried_out(
        tmp_path / "cluster", CLUSTER_MINUTES, round(1.02 * CLUSTER_JOBS), round(1.02 * CLUSTER_CANCELS), "--cluster"
    )
    assert report["jobs"] >= CLUSTER_JOBS
    assert report["cancels"] >= CLUSTER_CANCELS
    assert report["kills"] >= CLUSTER_KILLS
    assert report["server_restarts"] >= 1
    assert report["pubsub_kills"] >= 1


@pytest.mark.timeout(600)
def test_chaos_of_cut_networks_breaks_no_promise(redis_server: RedisServer, tmp_path: Path) -> None:
    try:
        cables.lay(1).pop().close()
    except cables.Impossible as error:
        pytest.skip(str(error))
    report = carried_out(tmp_path / "netns", NETNS_MINUTES, 400, 100, "--netns", "--faults", "partition,kill_worker")
    assert report["faults"]["partition"] >= 2
