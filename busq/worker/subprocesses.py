"""
`job.subprocess(...)`: a program that a handler runs, such as ffmpeg, which stops when the job does.

It leads a process group of its own, and all of it is stopped together: SIGTERM when the token is tripped, SIGKILL when
half of the grace is over, so that the other half is left for the handler's clean-up. Leaving the `with` by an exception
stops it too; leaving it quietly waits for its end. It is tied to the process that the handler runs in (`tie.py`), and
so ends with that one however it ends.

Only a group whose first process has not been collected is signalled: its number cannot have been used again. So the
program is waited for without collecting it, and what is left of a stopped group is killed before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from types import TracebackType
from typing import IO, Any, Protocol, Self, TypeVar

from busq.errors import UsageError
from busq.protocol.cancel import TripFacts
from busq.worker.tie import Tie

STOP_WITHIN_S = 2.0  # from SIGTERM to SIGKILL where no grace says how long
PART_OF_GRACE = 0.5

T = TypeVar("T")


class Stoppable(Protocol):
    """As much of a `CurrentJob` as matters here."""

    @property
    def cancelled(self) -> bool: ...
    def on_trip(self, callback: Callable[[TripFacts], object]) -> None: ...


class Program:
    """A running program; the blocking face, for `def` handlers. `pid` and `returncode` are those of `Popen`."""

    def __init__(self, job: Stoppable, argv: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._job = job
        self._argv = argv
        self._options = options
        self._lock = threading.Lock()  # between signalling and collecting
        self._process: subprocess.Popen[Any] | None = None
        self._kill: threading.Timer | None = None
        self._stopping = False
        self._ended: Future[int] = Future()

    # What it is

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def returncode(self) -> int | None:
        return self._running.returncode

    @property
    def stdin(self) -> IO[Any] | None:
        return self._running.stdin

    @property
    def stdout(self) -> IO[Any] | None:
        return self._running.stdout

    @property
    def stderr(self) -> IO[Any] | None:
        return self._running.stderr

    @property
    def _running(self) -> subprocess.Popen[Any]:
        if self._process is None:
            raise UsageError("job.subprocess(...) has not been started: use it in a `with`, or call its start()")
        return self._process

    # Its life

    def start(self) -> Self:
        """Start the program. Raises what `subprocess.Popen` raises. `with` does it by itself."""
        tie = Tie()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the handler's own command
                self._argv, **{
                    **self._options, "process_group": 0, "pass_fds": (*self._options.get("pass_fds", ()), tie.far_end),
                },
            )  # fmt: skip
            tie.hold(self._process.pid)
        except BaseException:
            tie.cut()
            raise
        self._tie = tie
        threading.Thread(target=self._wait_and_collect, name="busq-program", daemon=True).start()
        self._job.on_trip(self._tripped)
        return self

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raise `TimeoutError` after `timeout` seconds; it runs on then."""
        return self._ended.result(timeout)

    def communicate(self, data: Any = None) -> tuple[Any, Any]:
        """Feed it, read what it says to the end, and wait: (stdout, stderr), None for what is no pipe."""
        answer = _communicate(self._running, data)
        self.wait()
        return answer

    def stop(self, within: float = STOP_WITHIN_S) -> None:
        """SIGTERM to the whole group now, SIGKILL when it has not ended `within` seconds. Does not wait."""
        with self._lock:
            if self._stopping or self._ended.done():
                return
            self._stopping = True
            os.killpg(self.pid, signal.SIGTERM)
            self._kill = threading.Timer(within, self._kill_group)
            self._kill.daemon = True
            self._kill.start()

    def _tripped(self, facts: TripFacts) -> None:
        self.stop(facts.grace_s * PART_OF_GRACE)

    def _kill_group(self) -> None:
        with self._lock:
            if not self._ended.done():
                os.killpg(self.pid, signal.SIGKILL)

    def _wait_and_collect(self) -> None:
        process = self._running
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):  # collected by somebody else: Popen says it ended with 0
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        else:
            process.wait()
        with self._lock:
            if self._stopping and process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            if self._kill is not None:
                self._kill.cancel()
            self._ended.set_result(code)
        self._tie.cut()

    # with

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.stop()
        self.wait()
        _close_pipes(self._running)


class AwaitedProgram(Program):
    """The same in a coroutine: `await job.subprocess(...)` or `async with`; `wait` and `communicate` are awaited."""

    def __await__(self) -> Generator[Any, None, AwaitedProgram]:
        yield from ()  # starting takes a millisecond or two and is not worth a thread
        return self.start()

    async def wait(self, timeout: float | None = None) -> int:  # type: ignore[override]
        """Its exit code, once it has ended. Giving up waiting does not stop it."""
        async with asyncio.timeout(timeout):
            return await asyncio.shield(asyncio.wrap_future(self._ended))

    async def communicate(self, data: Any = None) -> tuple[Any, Any]:  # type: ignore[override]
        """Feed it, read what it says to the end, and wait: (stdout, stderr), None for what is no pipe."""
        answer = await asyncio.shield(_in_thread(lambda: _communicate(self._running, data)))
        await self.wait()
        return answer

    async def __aenter__(self) -> AwaitedProgram:
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.stop()
        await self.wait()
        _close_pipes(self._running)


def _communicate(process: subprocess.Popen[Any], data: Any) -> tuple[Any, Any]:
    """`Popen.communicate` without its waiting for the end, which is ours."""
    found: dict[str, Any] = {}

    def read(name: str, pipe: IO[Any]) -> None:
        found[name] = pipe.read()

    pipes = [(name, pipe) for name in ("stdout", "stderr") if (pipe := getattr(process, name)) is not None]
    readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in pipes]
    for reader in readers:
        reader.start()
    if process.stdin is not None:
        try:
            if data is not None:
                process.stdin.write(data)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended without reading all of it
    for reader in readers:
        reader.join()
    return found.get("stdout"), found.get("stderr")


def _in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run it in a thread that keeps nobody from exiting."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="busq-program-pipes", daemon=True).start()
    return asyncio.wrap_future(answer)


def _close_pipes(process: subprocess.Popen[Any]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
