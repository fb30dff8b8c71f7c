"""
Processes that end with us, however we end.

On Linux the kernel sees to it: it kills them when the thread ends that started them, so they are started in the main
thread. Elsewhere a SIGKILL of ours leaves them running.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from typing import IO

# Runs between fork and the program: safe in a program with threads, which `preexec_fn` is not. The second check is for
# a parent that died before the first line took effect.
_TIE = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def tied_process(
    command: Sequence[str],
    *,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    env: dict[str, str] | None = None,
    pass_fds: Collection[int] = (),
) -> subprocess.Popen[bytes]:
    """
    Start a command (by its full path) that the kernel kills when the calling thread ends.

    It gets a process group of its own, so that Ctrl-C in the terminal reaches us first and not both at once.
    """
    tied = [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *command]
    return subprocess.Popen(  # noqa: S603 - the command is ours
        tied, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env, process_group=0, pass_fds=pass_fds
    )


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and collect it. Safe to repeat."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
