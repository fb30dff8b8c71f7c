"""
The `busq` command.

Everything is imported when it is needed and not before: `busq cancel --help` must not wait for a worker's imports.
"""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """The console script: run the command on the command line, and exit as the contract says."""
    import sys

    from busq.cli import app, exits

    sys.exit(exits.run(lambda: app.run(sys.argv[1:])))
