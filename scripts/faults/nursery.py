"""
A process that has imported everything once and forks the roles of a run: a worker is up in a tenth of a second.

What it forks runs what the command line would run, `busq worker` and `busq watchdog` with their arguments, or the main
function of a producer or a canceller. It is talked to in lines of JSON: asked for a process with {"id", "argv", "env",
"log"} it answers {"id", "pid"}, and it says {"pid", "code"} of each that has ended, for it collects them.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from faults import cables

PR_SET_PDEATHSIG = 1
SKEW = "CHAOS_SKEW"
NETNS = "CHAOS_NETNS"

WARM = (
    "busq.cli.app", "busq.cli.worker", "busq.cli.watchdog", "busq.cli.application", "busq.cli.health", "busq.cli.logs",
    "busq.cli.loop", "busq.cli.serving", "busq.cli.line", "busq.worker.worker", "busq.watchdog.watchdog",
    "busq.store.fitness", "busq.worker.executors.process", "uvloop", "redis.asyncio", "faults.app", "faults.producer",
    "faults.canceller",
)  # fmt: skip


def main() -> None:
    for name in WARM:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _serve(wake_read, wake_write)


def _serve(wake_read: int, wake_write: int) -> None:
    import select

    asked = b""
    _say({"ready": os.getpid()})
    while True:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _collect()
        if 0 in ready:
            piece = os.read(0, 65536)
            if not piece:
                return
            *lines, asked = (asked + piece).split(b"\n")
            for line in lines:
                _bear(json.loads(line), (wake_read, wake_write))


def _collect() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(fact: dict[str, Any]) -> None:
    os.write(1, json.dumps(fact).encode() + b"\n")


def _bear(task: dict[str, Any], wake: tuple[int, int]) -> None:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        _say({"id": task["id"], "pid": pid})
        return
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in wake:
            os.close(each)
        _redirect(task["log"])
        os.environ.update(task["env"])
        if NETNS in os.environ:
            cables.enter(os.environ[NETNS])
        _shift_clock(os.environ.get(SKEW))
        code = _run(task["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _redirect(log: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(nothing, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)


def _shift_clock(path: str | None) -> None:
    """Let `time.time` of this process go by an offset that the nemesis may change at any moment."""
    if path is None:
        return
    with Path(path).open("rb") as file:
        offset = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + struct.unpack("q", offset[:8])[0]
    time.time_ns = lambda: real_ns() + struct.unpack("q", offset[:8])[0] * 1_000_000_000


def _run(argv: list[str]) -> int:
    mains: dict[str, Callable[[list[str]], None]] = {
        "producer": importlib.import_module("faults.producer").main,
        "canceller": importlib.import_module("faults.canceller").main,
    }
    if argv[0] in mains:
        mains[argv[0]](argv[1:])
        return 0
    return _command(argv)


def _command(argv: list[str]) -> int:
    sys.argv = ["busq", *argv]

    def console() -> NoReturn:
        from busq.cli import main as busq_main

        busq_main()

    try:
        console()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        return end.code if isinstance(end.code, int) else int(end.code is not None)


if __name__ == "__main__":
    main()
