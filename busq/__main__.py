"""`python -m busq`: the command of this very interpreter, also where its script is not on the PATH."""

from __future__ import annotations

from busq.cli import main

main()
