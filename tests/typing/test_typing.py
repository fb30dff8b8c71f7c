"""
The types that a user sees, checked by mypy: what fits is inferred exactly, what does not fit is refused.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytest.importorskip("mypy", reason="mypy comes with the extra `dev`")


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[tuple[int, str]]]:
    """File -> the lines and codes that mypy --strict complains about."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", "--no-pretty",
         "--follow-imports=silent", "--cache-dir", str(tmp_path_factory.mktemp("mypy")),
         str(HERE / "good.py"), str(HERE / "bad.py")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, set[tuple[int, str]]] = {"good.py": set(), "bad.py": set()}
    for line in done.stdout.splitlines():
        match = re.match(r".*?(\w+\.py):(\d+): error: .*\[([\w-]+)\]$", line)
        if match:
            found[match[1]].add((int(match[2]), match[3]))
    return found


@pytest.mark.timeout(120)
def test_what_fits_is_inferred_exactly(findings: dict[str, set[tuple[int, str]]]) -> None:
    assert findings["good.py"] == set()


@pytest.mark.timeout(120)
def test_what_does_not_fit_is_refused(findings: dict[str, set[tuple[int, str]]]) -> None:
    expected = set()
    for number, line in enumerate((HERE / "bad.py").read_text().splitlines(), 1):
        if match := re.search(r"# error: ([\w, -]+)$", line):
            expected |= {(number, code) for code in match[1].split(", ")}
    assert findings["bad.py"] == expected
