"""
The line between a supervisor and one of its workers: a socket pair that nobody else can reach.

    supervisor ── "?" ──> a thread in the worker ──> the handlers' loop: its health
               <── one line of JSON ──
               ── "m" ──> the same, and the worker's figures for Prometheus with it
               ── "d" ──> the worker drains, as its other workers do

The thread answers even when the loop does not, and says so; thus the supervisor can tell a loop that is busy for a
while from one that is past help (`lifeless`), and both from a process that is frozen. The line breaks when either side
has ended: a worker whose supervisor is gone drains, where the kernel has not ended it already.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import msgspec

from busq.cli.health import Report, document
from busq.store.drains import Whole

ASK = b"?"
ASK_MEASURED = b"m"
DRAIN = b"d"
POD_EMPTIED = 75
"""How a supervised worker exits that has drained with its whole pod: it may be gone before it is asked again."""
ANSWER_S = 0.5  # for the loop to answer; then it is said to be late
MOST_BYTES = 4 * 1024 * 1024

SERVE = "from busq.cli.line import serve; serve()"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """
    What comes back. `health` is the worker's own document; empty when its loop is `late` with it.

    `lifeless` is what the worker's own watch over that loop says of it. `empties_pod`: the bus has asked all workers of
    this host to drain. `figures` are there only when they were asked for and the loop is not late.
    """

    health: msgspec.Raw = msgspec.Raw(b"null")
    late: bool = False
    lifeless: str = ""
    empties_pod: bool = False
    figures: str = ""


class Answering(Protocol):
    """As much of a worker as matters here."""

    @property
    def lifeless(self) -> str: ...
    @property
    def empties_pod(self) -> bool: ...
    def asked_to_drain(self, whole: Whole) -> None: ...
    def health(self) -> Report: ...


def answer(line: socket.socket, worker: Answering, figures: Callable[[], str] = str) -> None:
    """Answer for this worker until the line breaks. Call it in the handlers' loop."""
    loop = asyncio.get_running_loop()
    waiting = _Waiting(loop, lambda: msgspec.json.encode(document(worker.health())), figures)

    def serve() -> None:
        try:
            while said := line.recv(1):
                if said == DRAIN:
                    worker.asked_to_drain(Whole.POD)
                else:
                    answered = waiting.answer(worker, measured=said == ASK_MEASURED)
                    line.sendall(msgspec.json.encode(answered) + b"\n")
        except OSError:
            pass  # the supervisor is gone, as it is when it has nothing more to ask
        except RuntimeError:
            return  # the loop is closed, so we are about to end
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=serve, name="busq-line", daemon=True).start()


class _Waiting:
    """A question to the loop; asked once, however often it is looked at before the loop answers."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, report: Callable[[], bytes], figures: Callable[[], str]
    ) -> None:
        self._loop = loop
        self._report = report
        self._figures = figures
        self._asked: Future[tuple[bytes, str]] | None = None

    def answer(self, worker: Answering, *, measured: bool) -> Answer:
        if self._asked is None:
            self._asked = Future()
            self._loop.call_soon_threadsafe(self._say, self._asked, measured)
        try:
            health, figures = self._asked.result(ANSWER_S)
        except TimeoutError:
            return Answer(late=True, lifeless=worker.lifeless, empties_pod=worker.empties_pod)
        self._asked = None
        return Answer(
            health=msgspec.Raw(health), lifeless=worker.lifeless, empties_pod=worker.empties_pod, figures=figures
        )

    def _say(self, asked: Future[tuple[bytes, str]], measured: bool) -> None:
        try:
            asked.set_result((self._report(), self._figures() if measured else ""))
        except Exception as error:
            asked.set_exception(error)


# In the worker's process ------------------------------------------------------------------------------------


def serve() -> None:
    """Run the worker that the first line on the line describes; its descriptor is the only word of ours."""
    from busq.cli import exits
    from busq.cli.worker import Work, run

    def work() -> Any:
        number = int(sys.argv[1])
        os.set_inheritable(number, False)
        line = socket.socket(fileno=number)
        with line.makefile("rb", buffering=0) as words:
            told = words.readline()
        return run(msgspec.json.decode(told, type=Work), line=line) if told else exits.NO

    sys.exit(exits.run(work))
