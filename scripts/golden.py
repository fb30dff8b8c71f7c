#!/usr/bin/env python3
"""
Write down what this busq puts on the wire, for a release: `python scripts/golden.py 0.1`

It fills `tests/golden/<version>` with the scripts as they are sent, and with payloads, records, entries, notices,
rules and frames together with what they mean. Done once, in the commit that a version is released from; from then on
the tests read the folder with the code of the day, and run workers with its scripts beside new ones. The folder of a
version that has been released is refused.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from busq.cli.embedded import embedded_server  # noqa: E402
from tests.golden import making  # noqa: E402


def main() -> int:
    if len(sys.argv) != 2 or not re.fullmatch(r"\d+\.\d+", sys.argv[1]):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    version = sys.argv[1]
    released = subprocess.run(
        ["git", "tag", "--list", f"v{version}.*"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if released:
        print(
            f"{version} has been released ({', '.join(released)}): what it sent cannot change any more", file=sys.stderr
        )
        return 1
    with embedded_server() as server:
        print(making.write(version, server.url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
