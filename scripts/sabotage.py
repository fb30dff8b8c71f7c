#!/usr/bin/env python3
"""
Is every guard needed, and would anybody notice? Each is taken out of a copy of the tree, and must be missed.

    python scripts/sabotage.py --list            what there is, one a line
    python scripts/sabotage.py                   all of them, and the sound tree first
    python scripts/sabotage.py --only no-fence   one of them; may be repeated

The judge watches the stage (sabotages/stage.py), or named tests are run; sabotages/catalogue.py says which. The judge
is always that of this tree. Exit code: 0 all were noticed, 1 one survived, 2 something could not be tried at all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from sabotages.catalogue import JUDGE, SABOTAGES, Sabotage
from sabotages.trial import Broken, Outcome, try_out

SOUND = Sabotage("sound-tree", "nothing is taken out: the judge finds nothing", (), JUDGE)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _read(arguments)
    if asked.list:
        for each in SABOTAGES:
            print(f"{each.name}: {each.says}")
        return 0
    chosen = [each for each in [SOUND, *SABOTAGES] if not asked.only or each.name in asked.only]
    unknown = set(asked.only or ()) - {each.name for each in chosen}
    if unknown:
        print(f"sabotage: no such sabotage: {', '.join(sorted(unknown))}; see --list", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(asked.jobs) as pool:
        codes = list(pool.map(_try, chosen))
    print(f"{codes.count(0)} of {len(codes)} as they should be")
    return max(codes)


def _try(sabotage: Sabotage) -> int:
    began = time.monotonic()
    try:
        outcome, by = try_out(sabotage)
    except Broken as error:
        print(f"ERROR     {sabotage.name}: {error}", flush=True)
        return 2
    took = f"{time.monotonic() - began:.1f} s"
    if sabotage is SOUND:
        code = 1 if outcome is Outcome.KILLED else 0
        word = "REJECTED" if code else "valid"
    else:
        code = 0 if outcome is Outcome.KILLED else 1
        word = "SURVIVED" if code else "killed"
    print(f"{word:<9} {sabotage.name}: {sabotage.says} [{by}; {took}]", flush=True)
    return code


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print them, one a line")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--jobs", type=int, default=4, help="so many at a time (4): mostly they wait")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
