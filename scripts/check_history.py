#!/usr/bin/env python3
"""
The judge: was what a bus did in a run what it promises?

    python scripts/check_history.py RUN_FOLDER…           what was found, for people
    python scripts/check_history.py --json RUN_FOLDER…    one JSON document for each run, one a line

It reads Redis's append-only file, which is the order of all writes, and the logs of clients and handlers. It imports
nothing of busq, and knows only names on the wire (judge/schema.py) and what the contract says (judge/contract.py).

Exit code: 0 every run is valid, 1 a promise was broken, 2 a run cannot be judged.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from judge.run import judge_run
from judge.verdict import NAMES, Unusable, Verdict

SHOWN = 10  # violations of one check that people are shown


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Judge what a bus did, from its server's log and its handlers' own.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    parser.add_argument("--json", action="store_true", help="one JSON document for each run")
    asked = parser.parse_args(arguments)
    codes = []
    for folder in asked.folders:
        began = time.monotonic()
        try:
            verdict = judge_run(folder)
        except Unusable as error:
            verdict = Verdict(void=[str(error)])
        verdict.figures["judged_in_s"] = round(time.monotonic() - began, 2)
        if asked.json:
            print(json.dumps({"run": str(folder), **verdict.as_json()}))
        else:
            _tell(folder, verdict)
        codes.append(verdict.exit_code)
    return 1 if 1 in codes else max(codes)


def _tell(folder: Path, verdict: Verdict) -> None:
    print(f"{folder}: {verdict.word}")
    for check, name in NAMES.items():
        found = [each for each in verdict.violations if each.check == check]
        if found:
            print(f"  {check} {name}: {verdict.counts[check]}")
        for each in found[:SHOWN]:
            print(f"    {each.jid or '-'}  {each.words}  [{each.place or 'histories'}]")
        if len(found) > SHOWN:
            print(f"    and {verdict.counts[check] - SHOWN} more")
    for words in verdict.void:
        print(f"  void: {words}")
    for words in verdict.remarks:
        print(f"  note: {words}")
    for name, figure in verdict.figures.items():
        print(f"  {name}: {_shown(figure)}")


def _shown(figure: object) -> str:
    if isinstance(figure, dict):
        return ", ".join(f"{name} {_shown(value)}" for name, value in figure.items()) or "none"
    if isinstance(figure, list):
        return "; ".join(_shown(each) for each in figure)
    return str(figure)


if __name__ == "__main__":
    raise SystemExit(main())
