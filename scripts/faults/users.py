"""
The users of a run: one for each role, as `busq acl` makes them, one that may do all for the nemesis, no `default`.

What a role may not do shows in a run as a process that cannot work, long before anybody reads a table of rights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

PLAYS = {
    "producer": ("producer", "reader"),  # it looks at the backlog
    "canceller": ("canceller", "reader"),
    "worker": ("worker",),
    "watchdog": ("watchdog",),
}
ADMIN = "nemesis"

DEFAULT_OFF = "user default off ~* &* +@all"
"""It keeps its rights, for the server loads its append-only file as this user; but nobody can log in as it."""


class Users:
    """`folder` gets the file that every server of the run reads, and for each user one with its password."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._passwords = {name: secrets.token_hex(16) for name in (*PLAYS, ADMIN)}
        self.file = folder / "users.acl"
        digest = hashlib.sha256(self._passwords[ADMIN].encode()).hexdigest()
        lines = [DEFAULT_OFF, f"user {ADMIN} on #{digest} ~* &* +@all"]
        with ThreadPoolExecutor() as pool:
            lines += pool.map(lambda name: self._line(name, folder), PLAYS)
        self.file.write_text("\n".join(lines) + "\n")

    def login(self, name: str) -> str:
        """What stands before the hosts in this user's URL."""
        return f"{name}:{self._passwords[name]}@"

    def _line(self, name: str, folder: Path) -> str:
        password = folder / f"{name}.password"
        password.write_text(self._passwords[name])
        busq = [sys.executable, "-c", "from busq.cli import main; main()"]
        command = [*busq, "acl", *PLAYS[name], "--user", name, "--password-file", str(password), "-o", "json"]
        done = subprocess.run(command, capture_output=True, check=True, cwd=Path(__file__).resolve().parents[2])
        line: str = msgspec.json.decode(done.stdout)["line"]
        return line


def can_be_made() -> bool:
    """Whether this busq has a command that makes them."""
    return importlib.util.find_spec("busq.cli.acl") is not None
