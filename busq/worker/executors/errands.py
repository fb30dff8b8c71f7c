"""
What a job in a child process has done for it in the worker, and the word that its child gets of how it went.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from busq.store.forms import NewJob
from busq.worker.attempt import Attempt
from busq.worker.executors.children import Child
from busq.worker.executors.frames import Save, Spawn


class Errands(Protocol):
    """Who does it."""

    def save(self, attempt: Attempt, data: bytes) -> Future[None]: ...
    def spawn(self, attempt: Attempt, job: NewJob) -> Future[tuple[str, str]]: ...


def run_errand(errands: Errands, child: Child, attempt: Attempt, frame: Save | Spawn) -> None:
    """Have it done, and tell the child when it is."""
    number = frame.number
    if isinstance(frame, Save):
        errands.save(attempt, frame.data).add_done_callback(lambda kept: child.saved(number, lost(kept)))
    else:
        errands.spawn(attempt, frame.job).add_done_callback(lambda told: child.born(number, *birth(told)))


def birth(told: Future[tuple[str, str]]) -> tuple[str, str]:
    """What became of a child that was asked for: a word and its detail, see `Hands.spawn`."""
    if told.cancelled():
        return "refused", "the worker is stopping"
    error = told.exception()
    return told.result() if error is None else ("refused", str(error) or repr(error))


def lost(kept: Future[None]) -> str:
    """Why nothing was kept; "" when it was."""
    error = kept.exception()
    return "" if error is None else getattr(error, "reason", "") or str(error)
