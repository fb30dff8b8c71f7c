"""The benchmark runs and reports every figure that is required of the project. What the figures are is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench.py"
STARTED = "matching handlers started afterwards"  # the one figure that is to be zero
# A worker beats once a second: it is heard at least once.
TINY = ("--quick", "--pairs", "1", "--jobs", "200", "--samples", "10", "--idle-s", "1.5")
TINY += ("--backlog", "400", "--settled", "300", "--running", "40", "--listed", "300")


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("benchmark", "compared"),
    [
        ("drain", "busq / floor"),
        ("enqueue", "busq / floor"),
        ("cancel", "p99: ratio"),
        ("observe", "process, wait_cancelled: p99"),
        ("start", "p99: ratio"),
        ("replace", "cancel to finalized, deaf to SIGTERM"),
        ("idle", "commands an idle worker sends"),
        ("scope", "400 queued: group / one"),
        ("settle", "all match: records"),
        ("settle", "1 in 100 matches: longest script call"),
        ("tell", "40 handlers: the last one"),
        ("rules", "ten standing / no rule, time"),
        ("listed", "list --kind rare: slowest calls"),
        ("rules", "ten, jobs came first / no rule, time"),
    ],
)
def test_a_benchmark_reports_its_figure_with_the_requirement_beside_it(
    redis_url: str, benchmark: str, compared: str
) -> None:
    told: dict[str, Any] = json.loads(_run(*TINY, "--url", redis_url, "--only", benchmark, "-o", "json"))
    figures = {figure["what"]: figure for figure in told["figures"]}
    assert figures[compared]["requirement"]
    assert figures[compared]["ok"] in (True, False)
    assert all(figure["spread"]["min"] > 0 for figure in told["figures"] if figure["what"] != STARTED)


def test_a_wide_cancel_over_a_backlog_keeps_every_matching_handler_from_starting(redis_url: str) -> None:
    """Four jobs of another group stand among the 400, and those do start."""
    told: dict[str, Any] = json.loads(_run(*TINY, "--url", redis_url, "--only", "scope", "-o", "json"))
    figures = {figure["what"]: figure["spread"]["max"] for figure in told["figures"]}
    assert figures[STARTED] == 0
    assert figures["other handlers started afterwards"] == 4


def test_the_benchmark_starts_its_own_server_and_prints_a_table() -> None:
    assert "at least 0.4" in _run(*TINY, "--only", "enqueue")


def test_the_benchmark_leaves_nothing_behind_on_a_server_that_it_was_given(redis_url: str) -> None:
    from redis import Redis

    with Redis.from_url(redis_url) as redis:
        before = redis.keys("*")
        _run(*TINY, "--url", redis_url, "--only", "start")
        assert redis.keys("*") == before
