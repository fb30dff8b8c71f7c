"""A program that a handler runs, where the system behaves oddly: somebody else collects it, it leaves its group."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from busq.worker.subprocesses import Program

SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")


class Job:
    cancelled = False

    def on_trip(self, callback: Any) -> None: ...


def test_a_program_that_somebody_else_collects_is_signalled_no_more_and_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its number may mean another group by then. Who waits for it is not left waiting."""
    signalled: list[tuple[int, int]] = []
    real = os.killpg

    def killpg(group: int, number: int) -> None:
        signalled.append((group, number))
        real(group, number)

    def collected_elsewhere(kind: int, pid: int, options: int) -> None:
        os.waitpid(pid, 0)
        raise ChildProcessError

    monkeypatch.setattr(os, "waitid", collected_elsewhere)
    monkeypatch.setattr(os, "killpg", killpg)
    program = Program(Job(), SLEEPER, {})
    program.stop()
    assert program.wait(timeout=20) == 0
    assert signalled == [(program.pid, signal.SIGTERM)]


def test_a_program_that_went_into_another_group_is_stopped_all_the_same() -> None:
    code = "import os, time; os.setpgid(0, os.getppid()); print(1, flush=True); time.sleep(60)"
    code = code.replace("os.getppid()", str(os.getpgrp()))
    program = Program(Job(), (sys.executable, "-c", code), {"stdout": -1})
    assert program.stdout is not None
    assert program.stdout.readline() == b"1\n"
    program.stop()
    assert program.wait(timeout=20) == -signal.SIGTERM
    program.close_pipes()
