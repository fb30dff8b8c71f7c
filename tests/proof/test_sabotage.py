"""
Every sabotage is noticed: a guard that is taken out of a copy of the tree is missed by the judge or by a test.

The catalogue is scripts/sabotages/catalogue.py; each is tried out by itself, so that they can be spread over the cores.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from busq.store import scripts

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from sabotages.catalogue import JUDGE, SABOTAGES  # noqa: E402
from sabotages.trial import ROOT  # noqa: E402


def sabotage(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "sabotage.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["sound-tree", *(each.name for each in SABOTAGES)])
def test_a_sabotage_is_noticed_and_a_sound_tree_is_not_accused(name: str) -> None:
    done = sabotage("--only", name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_enough_of_them_and_each_stands_for_something_of_its_own() -> None:
    names = [each.name for each in SABOTAGES]
    assert len(set(names)) == len(names) >= 20
    assert len({each.edits for each in SABOTAGES}) == len(names)
    assert sum(each.by == JUDGE for each in SABOTAGES) >= 8
    assert sabotage("--list").stdout.splitlines() == [f"{each.name}: {each.says}" for each in SABOTAGES]


def test_every_script_loses_a_guard() -> None:
    edited = {Path(edit.path).stem for each in SABOTAGES for edit in each.edits if edit.path.endswith(".lua")}
    assert set(scripts.names()) <= edited


def test_each_text_that_is_taken_out_is_there_once() -> None:
    for each in SABOTAGES:
        for edit in each.edits:
            count = (ROOT / edit.path).read_text().count(edit.old)
            assert count == 1, f"{each.name}: {edit.path} has it {count} times: {edit.old!r}"


def test_a_sabotage_that_does_not_exist_is_named() -> None:
    done = sabotage("--only", "nonsense")
    assert (done.returncode, "nonsense" in done.stderr) == (2, True)
