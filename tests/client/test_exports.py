"""The public names, listed again: a name that comes or goes is a decision, not an accident."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import busq

PUBLIC = [
    "BadArguments",
    "BadJid",
    "BadWhere",
    "BlockingCallInLoop",
    "BlockingHandle",
    "BlockingScope",
    "Bus",
    "BusUnavailable",
    "BusqError",
    "CancelAnswer",
    "Cancelled",
    "CancelledJob",
    "Cause",
    "ConfigError",
    "CurrentJob",
    "Ended",
    "Event",
    "FinishedJob",
    "JidInUse",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobHandle",
    "JobNotFound",
    "JobSpec",
    "NoCurrentJob",
    "ParentClosed",
    "PictureChanged",
    "QueueFull",
    "RateLimited",
    "Rule",
    "Scope",
    "ScopeNotFound",
    "State",
    "Survey",
    "TooDeep",
    "TooLarge",
    "TooManyRules",
    "UnfitServer",
    "UsageError",
    "Verdict",
    "cancel",
    "cancel_where",
    "current_job",
    "enqueue",
]


def test_the_public_names_are_these() -> None:
    assert sorted(busq.__all__) == sorted(PUBLIC)
    assert all(getattr(busq, name) is not None for name in PUBLIC)


def test_nothing_else_is_in_reach_but_the_parts_themselves() -> None:
    parts = {part.name for part in pkgutil.iter_modules(busq.__path__)}
    assert {name for name in vars(busq) if not name.startswith("_")} - parts == set(PUBLIC)


def test_importing_busq_connects_to_nothing_and_needs_no_settings() -> None:
    """Not even a malformed BUSQ_URL is looked at."""
    code = "import busq, threading; bus = busq.Bus(); bus.job(print, ) if 0 else None; print(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"BUSQ_URL": "nonsense", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
