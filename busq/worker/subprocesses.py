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
from typing import IO, Any, Protocol, TypeVar

from busq.errors import UsageError
from busq.protocol.cancel import TripFacts
from busq.worker.tie import Tie

STOP_WITHIN_S = 2.0  # from SIGTERM to SIGKILL where no grace says how long
PART_OF_GRACE = 0.5

T = TypeVar("T")

Argument = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""One of a program's arguments, as `Popen` takes it."""


class Stoppable(Protocol):
    """As much of a `CurrentJob` as matters here."""

    @property
    def cancelled(self) -> bool: ...
    def on_trip(self, callback: Callable[[TripFacts], object]) -> None: ...


class Launch:
    """
    What `job.subprocess(...)` gives: a program that is not running yet.

    How it is started says which face it shows: `with` and `start()` give a `Program`, whose methods block; `async with`
    and `await` give an `AwaitedProgram`. `blocks` says which of the two suits the handler.
    """

    def __init__(self, job: Stoppable, argv: tuple[Argument, ...], options: dict[str, Any], *, blocks: bool) -> None:
        self._job = job
        self._argv = argv
        self._options = options
        self._blocks = blocks
        self._program: _Running | None = None

    def start(self) -> Program:
        """Start the program. Raises what `subprocess.Popen` raises. Nobody stops it before the job is cancelled."""
        if not self._blocks:
            raise UsageError(
                "in a coroutine a program is started with `async with job.subprocess(...)` or `await "
                "job.subprocess(...)`: what blocks would stop every other job of the worker"
            )
        program = self._program = Program(self._job, self._argv, self._options)
        return program

    async def _start_awaited(self) -> AwaitedProgram:
        # Starting takes a millisecond or two and is not worth a thread.
        program = self._program = AwaitedProgram(self._job, self._argv, self._options)
        return program

    def __await__(self) -> Generator[Any, None, AwaitedProgram]:
        return self._start_awaited().__await__()

    def __enter__(self) -> Program:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._program is not None:
            if error is not None:
                self._program.stop()
            self._program.ended.result()
            self._program.close_pipes()

    async def __aenter__(self) -> AwaitedProgram:
        return await self._start_awaited()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._program is not None:
            if error is not None:
                self._program.stop()
            await asyncio.shield(asyncio.wrap_future(self._program.ended))
            self._program.close_pipes()


class _Running:
    """A running program; made by starting it. `pid`, `returncode` and the pipes are those of `Popen`."""

    def __init__(self, job: Stoppable, argv: tuple[Argument, ...], options: dict[str, Any]) -> None:
        self._lock = threading.Lock()  # between signalling and collecting
        self._kill: threading.Timer | None = None
        self._stopping = False
        self._collected = False
        self.ended: Future[int] = Future()
        self._tie = tie = Tie()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the handler's own command
                argv, **{**options, "process_group": 0, "pass_fds": (*options.get("pass_fds", ()), tie.far_end)},
            )  # fmt: skip
            tie.hold(self._process.pid)
        except BaseException:
            tie.cut()
            raise
        threading.Thread(target=self._wait_and_collect, name="busq-program", daemon=True).start()
        job.on_trip(self._tripped)

    # What it is

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    @property
    def stdin(self) -> IO[Any] | None:
        return self._process.stdin

    @property
    def stdout(self) -> IO[Any] | None:
        return self._process.stdout

    @property
    def stderr(self) -> IO[Any] | None:
        return self._process.stderr

    # Its end

    def stop(self, within: float = STOP_WITHIN_S) -> None:
        """SIGTERM to the whole group now, SIGKILL when it has not ended `within` seconds. Does not wait."""
        with self._lock:
            if self._stopping or self.ended.done():
                return
            self._stopping = True
            self._signal_group(signal.SIGTERM)
            self._kill = threading.Timer(within, self._kill_group)
            self._kill.daemon = True
            self._kill.start()

    def close_pipes(self) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()

    def _tripped(self, facts: TripFacts) -> None:
        self.stop(facts.grace_s * PART_OF_GRACE)

    def _kill_group(self) -> None:
        with self._lock:
            if not self.ended.done():
                self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        if self._collected:
            return
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # it went into another group, or is another user's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def _wait_and_collect(self) -> None:
        process = self._process
        if hasattr(os, "waitid"):
            try:
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                # By somebody else: its number may mean another process, and Popen says that it ended with 0.
                self._collected = True
        else:
            process.wait()
            self._collected = True
        with self._lock:
            if self._stopping:
                self._signal_group(signal.SIGKILL)
            code = process.wait()
            if self._kill is not None:
                self._kill.cancel()
            self.ended.set_result(code)
        self._tie.cut()


class Program(_Running):
    """The blocking face, for `def` handlers."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raise `TimeoutError` after `timeout` seconds; it runs on then."""
        return self.ended.result(timeout)

    def communicate(self, data: Any = None) -> tuple[Any, Any]:
        """Feed it, read what it says to the end, and wait: (stdout, stderr), None for what is no pipe."""
        answer = _communicate(self._process, data)
        self.wait()
        return answer


class AwaitedProgram(_Running):
    """The same in a coroutine: `wait` and `communicate` are awaited."""

    async def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Giving up waiting does not stop it."""
        async with asyncio.timeout(timeout):
            return await asyncio.shield(asyncio.wrap_future(self.ended))

    async def communicate(self, data: Any = None) -> tuple[Any, Any]:
        """Feed it, read what it says to the end, and wait: (stdout, stderr), None for what is no pipe."""
        answer = await asyncio.shield(_in_thread(lambda: _communicate(self._process, data)))
        await self.wait()
        return answer


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
