"""
One child process, as its worker sees it: started, talked to, signalled, collected.

Its jobs run one at a time, in the order in which they were given. Those behind the first may wait at its door, and can
be taken back for as long as they have not begun; what could not be taken back has begun, or has ended already.

When the first process of the group has ended, whatever else is in the group is killed with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping

from busq.protocol.cancel import TripFacts
from busq.worker.attempt import Attempt
from busq.worker.executors.door import Door
from busq.worker.executors.frames import (
    READ_BYTES,
    Born,
    BrokenFrames,
    FromChild,
    Hello,
    Run,
    Saved,
    ToChild,
    Trip,
    WorkersInbox,
    packed,
)
from busq.worker.executors.outgoing import Outgoing
from busq.worker.executors.victim import Victim
from busq.worker.tie import Tie

STDERR = 2
STDERR_KEPT = 4000  # bytes of what a child said that did not start
LEAVE_WITHIN_S = 1.0  # an idle child that was told to leave

# A child finds modules where we find them, also what was added to our path while we ran; busq itself among them.
_PROGRAM = (
    "import sys; ends = map(int, sys.argv[1:5]); sys.path[:] = sys.argv[5:]; "
    "from busq.worker.executors.child_main import main; main(*ends)"
)


class Child:
    """
    Made by starting it. `heard(child, frame)` and `ended(child)` are called in the handlers' loop; nothing else is
    heard of a child that has ended.

    `given`: its jobs that have not ended, by the number of their run; the first one runs, or is about to. `ready`: it
    has found its handlers. `doomed`: it was signalled or told to leave and takes no more work.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, hello: Hello, environ: Mapping[str, str],
        heard: Callable[[Child, FromChild], None], ended: Callable[[Child], None],
    ) -> None:  # fmt: skip
        self.given: dict[int, Attempt] = {}
        self.first_since = 0.0  # when the first of them became the first
        self.held_up = False  # the first should be short, and is not
        self.ready = False
        self.doomed = False
        self._runs = 0
        self._unsent: list[bytes] = []  # frames of runs, and
        self._to_let_in: list[int] = []  # their numbers
        self.not_begun: list[Attempt] = []  # of a child that has ended: what it was given in vain
        self.last_words = ""  # what a child that ended before it was ready had to say
        self._loop = loop
        self._heard = heard
        self._ended = ended
        self._inbox = WorkersInbox(hello.most_bytes)
        self._start(environ)
        self.send(hello)

    @property
    def pid(self) -> int:
        return self.victim.pid

    def _start(self, environ: Mapping[str, str]) -> None:
        """Raise `OSError`, and leave nothing open, when there is no process to be had."""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            work, their_work = socket.socketpair()
            ours.callback(work.close)
            theirs.callback(their_work.close)
            control, their_control = socket.socketpair()
            ours.callback(control.close)
            theirs.callback(their_control.close)
            self._door = Door()
            ours.callback(self._door.close)
            self._tie = Tie()
            ours.callback(self._tie.cut)
            self._stderr = ours.enter_context(tempfile.TemporaryFile())  # it lives until the child is ready
            stderr = os.dup(STDERR)
            theirs.callback(os.close, stderr)
            self._process = self._popen(
                environ, their_work.fileno(), their_control.fileno(), self._door.far_end.fileno(), stderr
            )
            self.victim = Victim(self._process.pid)
            self._tie.hold(self._process.pid)
            ours.pop_all()  # they are closed when the process has ended
        self._work, self._control = Outgoing(self._loop, work), Outgoing(self._loop, control)
        self._loop.add_reader(work.fileno(), self._read)
        self._watch_end()

    def _popen(self, environ: Mapping[str, str], *ends: int) -> subprocess.Popen[bytes]:
        # A group of its own: Ctrl-C in a terminal is for the worker, and what the handler starts goes with the child.
        return subprocess.Popen(  # noqa: S603 - the command is ours
            [sys.executable, "-c", _PROGRAM, *map(str, ends), *(folder or os.getcwd() for folder in sys.path)],
            stdin=subprocess.DEVNULL, stderr=self._stderr, pass_fds=(*ends, self._tie.far_end), env=dict(environ),
            process_group=0,
        )  # fmt: skip

    def _watch_end(self) -> None:
        if self.victim.pidfd != -1:
            self._loop.add_reader(self.victim.pidfd, self._gone)
            return

        def wait() -> None:
            if hasattr(os, "waitid"):  # it is collected in the loop, or its number might change hands under a signal
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            else:
                self._process.wait()
            self._loop.call_soon_threadsafe(self._gone)

        threading.Thread(target=wait, name="busq-child", daemon=True).start()

    # Talking

    @property
    def attempt(self) -> Attempt | None:
        """What runs in it, or is about to."""
        return next(iter(self.given.values()), None)

    @property
    def newest(self) -> Attempt | None:
        """What it was given last; None when it has nothing to do."""
        return next(reversed(self.given.values()), None)

    def give(self, attempt: Attempt, payload: bytes) -> None:
        """Run the handler of this attempt after those that were given before. Nothing is sent before `flush`."""
        self._runs += 1
        self.given[self._runs] = attempt
        run = Run(self._runs, attempt.handler.kind, attempt.jid, attempt.number, payload, attempt.saved)
        self._unsent.append(packed(run))
        self._to_let_in.append(self._runs)

    def flush(self) -> None:
        """Send what was given."""
        if self._to_let_in:
            self._work.write(b"".join(self._unsent) if len(self._unsent) > 1 else self._unsent[0])
            self._door.let_in(self._to_let_in)
            self._unsent.clear()
            self._to_let_in.clear()

    def take_back(self) -> dict[int, Attempt]:
        """Whatever has not begun, by its run; none of it will begin here unless it is let in again."""
        self.flush()
        left = self._door.take_back()
        return {run: self.given.pop(run) for run in sorted(left)}

    def let_in_again(self, taken_back: Mapping[int, Attempt]) -> None:
        """Some of what was taken back may begin after all, in the same order. Nothing was given in between."""
        if taken_back:
            self.given.update(taken_back)
            self._door.let_in(taken_back)

    def trip(self, attempt: Attempt, facts: TripFacts) -> None:
        """Tell the handler of an attempt that has begun."""
        for run, each in self.given.items():
            if each is attempt:
                self._control.write(packed(Trip(run, facts)))

    def saved(self, number: int, lost: str) -> None:
        self._control.write(packed(Saved(number, lost)))

    def born(self, number: int, word: str, detail: str) -> None:
        self._control.write(packed(Born(number, word, detail)))

    def send(self, frame: ToChild) -> None:
        self._work.write(packed(frame))

    def release_stderr(self) -> None:
        """The child has taken our stderr for its own: what it said before is handed on."""
        said = self._early_words()
        self._stderr.close()
        if said:
            os.write(STDERR, said)

    def _early_words(self) -> bytes:
        if self._stderr.closed:
            return b""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - STDERR_KEPT))
        return self._stderr.read()

    def _read(self) -> None:
        try:
            data = self._work.sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._work.sock.fileno())
            return  # its end is told by the process itself
        try:
            for frame in self._inbox.frames(data):
                self._heard(self, frame)
        except BrokenFrames as error:
            self.last_words = str(error)
            self._loop.remove_reader(self._work.sock.fileno())
            self.signal(signal.SIGKILL)

    # Ending

    def signal(self, number: int) -> bool:
        """Send a signal to this child and to all that it started in its group. It takes no more work."""
        self.doomed = True
        return self.victim.signal_group(number)

    def leave(self) -> None:
        """Tell an idle child that there is no more work. It is killed when it has not left in time."""
        self.doomed = True
        self._door.shut()
        self._loop.call_later(LEAVE_WITHIN_S, self.signal, signal.SIGKILL)

    @property
    def how_it_ended(self) -> str:
        """In words, once it has ended."""
        code = self._process.returncode
        if code is not None and code < 0:
            try:
                return f"was ended by {signal.Signals(-code).name}"
            except ValueError:
                return f"was ended by signal {-code}"
        return f"exited with code {code}"

    def _gone(self) -> None:
        """The process has ended: hear its last words, take its group along, collect it."""
        if self.victim.pidfd != -1:
            self._loop.remove_reader(self.victim.pidfd)
        self._hear_last_words()
        self.doomed = True
        self.victim.signal_group(signal.SIGKILL)
        self._process.wait()
        self.not_begun = list(self.take_back().values())
        self.last_words = self.last_words or self._early_words().decode("utf-8", "replace").strip()
        self._loop.remove_reader(self._work.sock.fileno())
        for part in (self._work, self._control, self._door, self._stderr, self.victim):
            part.close()
        self._tie.cut()
        self._ended(self)

    def _hear_last_words(self) -> None:
        try:
            while data := self._work.sock.recv(READ_BYTES):
                for frame in self._inbox.frames(data):
                    self._heard(self, frame)
        except (OSError, BrokenFrames):
            return
