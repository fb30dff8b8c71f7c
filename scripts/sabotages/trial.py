"""
One sabotage, tried out in a copy of the tree: is it noticed, and by whom?

What fails for another reason than the sabotage would look like a success: so a stage that does not come to its end, a
test that is not there and a text that does not match are errors and never a kill.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from enum import Enum
from pathlib import Path

from sabotages.catalogue import JUDGE, Sabotage

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("busq", "tests", "scripts", "pyproject.toml", "README.md")
STAGE_LIMIT_S = 240
TESTS_LIMIT_S = 400
FAILED = 1  # pytest's exit code for a run in which tests failed, and the judge's for violations


class Outcome(Enum):
    KILLED = "killed"
    SURVIVED = "survived"


class Broken(Exception):
    """It could not be tried out."""


def try_out(sabotage: Sabotage) -> tuple[Outcome, str]:
    """Returns by what it was killed, or what it has survived."""
    with tempfile.TemporaryDirectory(prefix="busq-sabotage-") as folder:
        tree = Path(folder) / "tree"
        _copy(tree)
        _commit(sabotage, tree)
        if sabotage.by == JUDGE:
            return _judged(tree, Path(folder) / "run")
        return _tested(tree, sabotage.by)


def _copy(tree: Path) -> None:
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)


def _commit(sabotage: Sabotage, tree: Path) -> None:
    for edit in sabotage.edits:
        path = tree / edit.path
        text = path.read_text()
        if text.count(edit.old) != 1:
            raise Broken(f"{edit.path} has this {text.count(edit.old)} times instead of once: {edit.old!r}")
        path.write_text(text.replace(edit.old, edit.new))


def _judged(tree: Path, run: Path) -> tuple[Outcome, str]:
    staged = _run([sys.executable, str(tree / "scripts/sabotages/stage.py"), str(run)], tree, STAGE_LIMIT_S)
    if staged.returncode != 0:
        raise Broken(f"the stage did not come to its end: {staged.stdout[-2000:]}")
    judged = _run([sys.executable, str(ROOT / "scripts/check_history.py"), "--json", str(run)], ROOT, STAGE_LIMIT_S)
    if judged.returncode not in (0, FAILED):
        raise Broken(f"the run cannot be judged: {judged.stdout[-2000:]}")
    verdict = json.loads(judged.stdout.splitlines()[-1])
    if judged.returncode == 0:
        return Outcome.SURVIVED, "the judge"
    first = verdict["violations"][0]
    return Outcome.KILLED, f"the judge, {' '.join(sorted(verdict['counts']))}: {first['jid']} {first['words']}"


def _tested(tree: Path, tests: tuple[str, ...]) -> tuple[Outcome, str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", *tests]
    tested = _run(command, tree, TESTS_LIMIT_S)
    if tested.returncode not in (0, FAILED):
        raise Broken(f"the tests could not be run: {tested.stdout[-2000:]}")
    if tested.returncode == 0:
        return Outcome.SURVIVED, ", ".join(tests)
    failed = [line for line in tested.stdout.splitlines() if line.startswith("FAILED ")]
    if not failed:
        raise Broken(f"no test failed, and yet: {tested.stdout[-2000:]}")
    return Outcome.KILLED, failed[0].removeprefix("FAILED ").partition(" - ")[0]


def _run(command: list[str], tree: Path, limit_s: int) -> subprocess.CompletedProcess[str]:
    ours = ("PYTEST_XDIST", "PYTEST_CURRENT_TEST", "BUSQ_")  # of the test run that we may be a part of
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    server = os.environ.get("BUSQ_REDIS_SERVER")
    environ = {**kept, "PYTHONPATH": str(tree), **({"BUSQ_REDIS_SERVER": server} if server else {})}
    try:
        return subprocess.run(
            command, cwd=tree, env=environ, text=True, timeout=limit_s, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Broken(f"it took longer than {limit_s} s: {str(error.stdout)[-2000:]}") from None
