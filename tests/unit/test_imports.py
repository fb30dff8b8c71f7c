"""busq can be imported on every system, also where only clients of it can run."""

from __future__ import annotations

import subprocess
import sys

EVERYTHING = """
import sys
for missing in ("fcntl", "resource", "termios"):
    sys.modules[missing] = None
import importlib, pkgutil
import busq
for module in pkgutil.walk_packages(busq.__path__, "busq."):
    if ".__main__" not in module.name and not module.name.startswith("busq.cli"):
        importlib.import_module(module.name)
"""


def test_busq_can_be_imported_where_fcntl_does_not_exist() -> None:
    done = subprocess.run([sys.executable, "-c", EVERYTHING], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
