"""The `busq` command as a process of a release: today's Python, and the scripts that the release sent."""

from __future__ import annotations

from busq.cli import main
from busq.store import scripts
from tests.golden.making import read_scripts


def run(version: str) -> None:
    sent = read_scripts(version)
    scripts.load = lambda name, *, flags_line=True: sent[name]  # type: ignore[assignment]
    main()
