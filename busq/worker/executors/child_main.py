"""
The whole life of a child process: find the handlers, run one job after another, end with the worker.

The main thread waits at the door while it is idle and runs the handler itself, so that the handler has the thread that
signals and many libraries want. A thread of its own hears `control` all the while. There is no connection to Redis
here and no word of where it is: whatever a job wants of the bus goes through the worker.

A child whose worker is gone must go too, with everything that it started. The kernel sees to that (`tie.py`); where
it cannot, the end of `control` says so and the child ends its own process group.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import os
import signal
import socket
import sys
import threading
from collections import deque
from time import monotonic

from busq.errors import BadPayload, BusqError, TooLarge
from busq.protocol.codec import ErrorInfo, describe_error, encode_result
from busq.worker import context
from busq.worker.context import CurrentJob
from busq.worker.executors import addresses
from busq.worker.executors.base import HandlerExit
from busq.worker.executors.child_job import ChildAttempt, ChildHands
from busq.worker.executors.door import TICKET
from busq.worker.executors.frames import (
    READ_BYTES,
    Born,
    ChildsInbox,
    Done,
    Failed,
    Frame,
    Hello,
    Ready,
    Refused,
    Run,
    Saved,
    Trip,
    Unfit,
    packed,
)
from busq.worker.outcome import is_cancellation

FIRST_FRAME_BYTES = 16 * 1024 * 1024
STDERR = 2


def main(work_fd: int, control_fd: int, door_fd: int, stderr_fd: int) -> None:
    """Be a child until the worker has no more work for it."""
    work, control, door = (socket.socket(fileno=fd) for fd in (work_fd, control_fd, door_fd))
    for end in (work, control, door):
        end.set_inheritable(False)  # what a handler starts must not look like us to the worker
    child = Child(work, control, door)
    hello = child.next_frame()
    if not isinstance(hello, Hello):
        return
    if not child.prepare(hello):
        sys.exit(1)
    os.dup2(stderr_fd, STDERR)  # until here it went to a file, so that the worker can say why a child did not start
    os.close(stderr_fd)
    threading.Thread(target=child.listen, name="busq-control", daemon=True).start()
    child.send(Ready())
    child.serve()


class Child:
    def __init__(self, work: socket.socket, control: socket.socket, door: socket.socket) -> None:
        self._work = work
        self._control = control
        self._door = door
        self._work_inbox = ChildsInbox(FIRST_FRAME_BYTES)
        self._frames: deque[Frame] = deque()  # read and not looked at yet
        self._ended_at = 0.0
        self._busy_since = 0.0
        self._sending = threading.Lock()  # handlers' threads say things, too
        self._plain = contextvars.copy_context()
        self._last_begun = 0
        self._current: ChildAttempt | None = None
        self._early: Trip | None = None  # heard before the run that it is meant for, which has its ticket already
        self._changing = threading.Lock()  # of the three above

    # Talking

    def send(self, frame: Frame) -> None:
        data = packed(frame)
        try:
            with self._sending:
                self._work.sendall(data)
        except OSError:
            os._exit(1)  # nobody is left who would want to know

    def next_frame(self) -> Frame | None:
        """What the worker wants next; None when it wants nothing more."""
        while not self._frames:
            data = self._work.recv(READ_BYTES)
            if not data:
                return None
            self._frames.extend(self._work_inbox.frames(data))
        return self._frames.popleft()

    # Beginning

    def prepare(self, hello: Hello) -> bool:
        """Find the handlers. When that fails, say why and return False."""
        self._work_inbox.most_bytes = hello.most_bytes
        self._result_bytes, self._traceback_bytes = hello.result_bytes, hello.traceback_bytes
        self._hands = ChildHands(self.send, result_bytes=hello.result_bytes)
        try:
            if hello.setup:
                module, _, function = hello.setup.partition(":")
                getattr(importlib.import_module(module), function)()
            self._handlers = addresses.load(hello.handlers, hello.main_name, hello.main_path)
        except BaseException as error:
            info = describe_error(error, hello.traceback_bytes)
            self.send(Refused(f"{info.type}: {info.message}", info.traceback))
            return False
        return True

    # The control thread

    def listen(self) -> None:
        inbox = ChildsInbox(FIRST_FRAME_BYTES)
        with contextlib.suppress(OSError):
            while data := self._control.recv(READ_BYTES):
                for frame in inbox.frames(data):
                    self._heard(frame)
        # Signals to a group reach ourselves as well.
        os.killpg(os.getpgrp(), signal.SIGKILL)

    def _heard(self, frame: Frame) -> None:
        if isinstance(frame, Saved):
            self._hands.saved(frame.number, frame.lost)
        elif isinstance(frame, Born):
            self._hands.born(frame.number, frame.word, frame.detail)
        elif isinstance(frame, Trip):
            with self._changing:
                attempt = self._current
                if frame.run > self._last_begun:  # what is late for the last one must not push it out
                    self._early = frame
            if attempt is not None and attempt.run == frame.run:
                self._trip(attempt, frame)

    def _trip(self, attempt: ChildAttempt, trip: Trip) -> None:
        if attempt.token.trip(trip.facts):
            for callback in attempt.token.take_callbacks():
                self._hands.run_callback(attempt, callback, trip.facts)

    # One job after another

    def serve(self) -> None:
        """Run what comes in at the door, until it is shut."""
        self._ended_at = monotonic()
        while True:
            asked_at = monotonic()
            ticket = self._door.recv(TICKET)
            if not ticket:
                return
            # What lies between the last answer and our question is work, too: so many more jobs would wait as long.
            self._busy_since = monotonic() - (asked_at - self._ended_at)
            run = self._run_for(int.from_bytes(ticket, "big"))
            if run is None:
                return
            self.run(run)

    def _run_for(self, number: int) -> Run | None:
        """The run of this number. What was sent before it and has not been run was taken back."""
        while isinstance(frame := self.next_frame(), Run):
            if frame.run == number:
                return frame
        return None

    def run(self, run: Run) -> None:
        attempt = ChildAttempt(run, self._handlers[run.kind], self.send)
        with self._changing:
            self._current, self._last_begun = attempt, run.run
            early = self._early
        if early is not None and early.run == run.run:
            self._trip(attempt, early)
        answer = self._plain.copy().run(self._answer, attempt, run.payload)
        attempt.end()
        with self._changing:
            self._current = None
        self.send(answer)

    def _took_us(self) -> int:
        self._ended_at = monotonic()
        return round((self._ended_at - self._busy_since) * 1e6)

    def _answer(self, attempt: ChildAttempt, payload: bytes) -> Done | Failed | Unfit:
        """Run the handler, and put into a frame what came of it. Raises nothing."""
        context.enter(CurrentJob(attempt, self._hands))
        try:
            args, kwargs = attempt.handler.unbind(payload)
        except BusqError as error:
            return self._unfit(attempt, "bad_payload" if isinstance(error, BadPayload) else "bad_arguments", error)
        try:
            value = attempt.handler.function(*args, **kwargs)
        except (SystemExit, KeyboardInterrupt) as error:
            exited = HandlerExit(f"the handler raised {type(error).__name__}: {error}")
            exited.__cause__ = error
            return self._failed(attempt, exited)
        except BaseException as error:
            return self._failed(attempt, error)
        if value is None:
            return Done(attempt.run, self._took_us(), attempt.token.observed_cause, b"")
        try:
            result = encode_result(value, self._result_bytes)
        except BusqError as error:
            return self._unfit(attempt, "result_too_large" if isinstance(error, TooLarge) else "bad_result", error)
        return Done(attempt.run, self._took_us(), attempt.token.observed_cause, result)

    def _failed(self, attempt: ChildAttempt, error: BaseException) -> Failed:
        info = describe_error(error, self._traceback_bytes)
        return Failed(attempt.run, self._took_us(), attempt.token.observed_cause, is_cancellation(error), info)

    def _unfit(self, attempt: ChildAttempt, cause: str, error: BusqError) -> Unfit:
        info = ErrorInfo(type(error).__name__, str(error))
        return Unfit(attempt.run, self._took_us(), attempt.token.observed_cause, cause, info)
