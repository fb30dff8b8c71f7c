"""
One child process, as its worker sees it: started, talked to, signalled, collected.

Right victim: a child is signalled only while it is certain that its number still means this very process. It leads
a process group of the same number, and neither can be used again before we have collected it: so the group gets its
signals before that and never after. Where the system has pidfds, the kernel is asked through one whether the child is
still uncollected; elsewhere its start time is compared.

When the first process of the group has ended, whatever else is in the group is killed with it.
"""

from __future__ import annotations

import asyncio
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
from busq.worker.tie import Tie

STDERR = 2
STDERR_KEPT = 4000  # bytes of what a child said that did not start
LEAVE_WITHIN_S = 1.0  # an idle child that was told to leave

# A child finds modules where we find them, also what was added to our path while we ran; busq itself among them.
_PROGRAM = (
    "import sys; w, c, e = map(int, sys.argv[1:4]); sys.path[:] = sys.argv[4:]; "
    "from busq.worker.executors.child_main import main; main(w, c, e)"
)


class Victim:
    """A process that may be signalled: its number, and what tells it from a later one with the same number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.started = start_time(pid)
        self.pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1

    def is_ours(self) -> bool:
        """Whether the number still means this process, alive or ended and not collected."""
        if self.pidfd == -1:
            return self.started is not None and start_time(self.pid) == self.started
        try:
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError:
            return False  # collected already, by whomever
        return True

    def signal_group(self, number: int) -> bool:
        """Send a signal to the group that this process leads; False when that was not done."""
        if not self.is_ours():
            return False
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def close(self) -> None:
        if self.pidfd != -1:
            os.close(self.pidfd)
            self.pidfd = -1
        self.started = None


def start_time(pid: int) -> str | None:
    """When this process started, in the kernel's own ticks; None when there is none, or the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


class Child:
    """
    Made by starting it. `heard(child, frame)` and `ended(child)` are called in the handlers' loop; nothing else is
    heard of a child that has ended.

    `attempt` is what runs in it. `ready`: it has found its handlers. `doomed`: it was signalled or told to leave and
    takes no more work.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, hello: Hello, environ: Mapping[str, str],
        heard: Callable[[Child, FromChild], None], ended: Callable[[Child], None],
    ) -> None:  # fmt: skip
        self.attempt: Attempt | None = None
        self.ready = False
        self.doomed = False
        self.runs = 0
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
        work, theirs = socket.socketpair()
        control, theirs_control = socket.socketpair()
        self._tie = tie = Tie()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives until the child is ready
        stderr = os.dup(STDERR)
        ends = (theirs.fileno(), theirs_control.fileno(), stderr)
        # A group of its own: Ctrl-C in a terminal is for the worker, and what the handler starts goes with the child.
        self._process = subprocess.Popen(  # noqa: S603 - the command is ours
            [sys.executable, "-c", _PROGRAM, *map(str, ends), *(folder or os.getcwd() for folder in sys.path)],
            stdin=subprocess.DEVNULL, stderr=self._stderr, pass_fds=(*ends, tie.far_end), env=dict(environ),
            process_group=0,
        )  # fmt: skip
        self.victim = Victim(self._process.pid)
        tie.hold(self._process.pid)
        os.close(stderr)
        theirs.close()
        theirs_control.close()
        self._work, self._control = _Outgoing(self._loop, work), _Outgoing(self._loop, control)
        self._loop.add_reader(work.fileno(), self._read)
        self._watch_end()

    def _watch_end(self) -> None:
        if self.victim.pidfd != -1:
            self._loop.add_reader(self.victim.pidfd, self._gone)
            return

        def wait() -> None:
            self._process.wait()
            self._loop.call_soon_threadsafe(self._gone)

        threading.Thread(target=wait, name="busq-child", daemon=True).start()

    # Talking

    def run(self, attempt: Attempt, payload: bytes) -> bool:
        """
        Run the handler of this attempt; the child is ready and has nothing else to do.

        False: it has ended, though we have not been told yet, and not a byte of this has reached it.
        """
        self.runs += 1
        run = Run(self.runs, attempt.handler.kind, attempt.jid, attempt.number, payload, attempt.saved)
        if not self._work.write(packed(run)):
            self.doomed = True
            return False
        self.attempt = attempt
        return True

    def trip(self, facts: TripFacts) -> None:
        self._control.write(packed(Trip(self.runs, facts)))

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
        self._work.end()
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
        self.last_words = self.last_words or self._early_words().decode("utf-8", "replace").strip()
        self._loop.remove_reader(self._work.sock.fileno())
        for part in (self._work, self._control, self._stderr, self.victim):
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


class _Outgoing:
    """Bytes on their way into one socket, without ever making the loop wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._loop = loop
        self._left = bytearray()
        self._closed = False

    def write(self, data: bytes) -> bool:
        """Write as much as fits now and the rest when it fits. False when there is nobody left to read it."""
        if self._closed:
            return False
        if not self._left:
            try:
                sent = self.sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                return False  # the child has ended, which is told elsewhere
            if sent == len(data):
                return True
            data = data[sent:]
            self._loop.add_writer(self.sock.fileno(), self._write_more)
        self._left += data
        return True

    def _write_more(self) -> None:
        try:
            del self._left[: self.sock.send(self._left)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._left.clear()
        if not self._left:
            self._loop.remove_writer(self.sock.fileno())

    def end(self) -> None:
        """Nothing more will be written."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_writer(self.sock.fileno())
            self.sock.close()
