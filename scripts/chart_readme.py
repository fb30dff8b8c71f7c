"""
The table of values in the chart's README, made from the comments in its values.yaml.

    python scripts/chart_readme.py           say whether the README is up to date; exit 1 if it is not
    python scripts/chart_readme.py --write   put the table in

A value is described by the lines that begin with `# --` right above it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[1] / "helm" / "busq"
BEGIN, END = "<!-- values: made by scripts/chart_readme.py -->", "<!-- end of values -->"

_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):")


def described(text: str) -> dict[str, str]:
    """What is said of each value, by its path."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    words: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# -- "):
            words.append(stripped[5:])
            continue
        match = _KEY.match(line)
        if match is None or stripped.startswith("#"):
            words = []
            continue
        indent = len(match["indent"])
        path = [*(each for each in path if each[0] < indent), (indent, match["key"])]
        if words:
            found[".".join(key for _, key in path)] = " ".join(words)
        words = []
    return found


def values(tree: Any, said: dict[str, str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that a user would set, with its default: what is described, and leaves."""
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value and here not in said:
            yield from values(value, said, here)
        else:
            yield here, value


def table() -> str:
    """The table, as Markdown. Raise `SystemExit` when a value is not described."""
    text = (CHART / "values.yaml").read_text()
    said, rows = described(text), []
    for path, default in values(yaml.safe_load(text), said):
        if path not in said:
            raise SystemExit(f"values.yaml: {path} is not described: put a line `# -- …` above it")
        rows.append(f"| `{path}` | `{json.dumps(default)}` | {said[path]} |")
    return "\n".join(["| value | default | |", "|---|---|---|", *rows])


def with_table(page: str) -> str:
    """The page with the table in its place."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    page = CHART / "README.md"
    now = page.read_text()
    wanted = with_table(now)
    if "--write" in sys.argv[1:]:
        page.write_text(wanted)
    elif now != wanted:
        print("helm/busq/README.md is not up to date: python scripts/chart_readme.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
