"""
`current_job()`: what a handler knows about its own job, and how it watches its token.

The same names serve coroutines, threads and child processes. In a coroutine `save`, `wait_cancelled` and `shield`
are awaited; in a `def` handler the same calls block, and `with job.shield(...)` takes the place of `async with`. No
call here talks to Redis inside the handler's own task: a cancel that hits it must not leave a connection with a stray
reply.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextvars import Context, ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, Self, TypeVar, cast

from busq.callables import Pool
from busq.errors import Cancelled, JidInUse, NoCurrentJob, TooDeep, UsageError
from busq.protocol.cancel import Cause, TripFacts
from busq.protocol.codec import decode_result, encode_result
from busq.protocol.states import State
from busq.protocol.tree import DEEPEST
from busq.store.forms import NewJob
from busq.worker.subprocesses import Argument, Launch

if TYPE_CHECKING:
    from busq.handlers import Handler
    from busq.worker.token import CancelToken

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_current: ContextVar[CurrentJob | None] = ContextVar("busq_current_job", default=None)


class Watched(Protocol):
    """
    As much of an attempt as its handler sees. In a child process this is not the worker's own `Attempt`.

    `progress` is written here and read by whoever tells the store.
    """

    jid: str
    handler: Handler
    number: int
    token: CancelToken
    saved: bytes

    @property
    def shields(self) -> int: ...
    @property
    def progress(self) -> tuple[str, str] | None: ...
    @progress.setter
    def progress(self, told: tuple[str, str]) -> None: ...


class Hands(Protocol):
    """
    What a handler's context needs of the worker; called from any thread unless said otherwise.

    Each takes attempts of its own sort back, the ones that it was given to `CurrentJob` with.
    """

    loop: asyncio.AbstractEventLoop
    result_bytes: int

    def save(self, attempt: Any, data: bytes) -> Future[None]: ...

    def spawn(self, attempt: Any, job: NewJob) -> Future[tuple[str, str]]:
        """
        Have a child admitted: enqueued, tombstoned, fenced or in_use with its state; orphan, a cause; too_deep; refused
        and why.
        """
        ...

    def shield_opened(self, attempt: Any, shield: Shield) -> None: ...
    def shield_closed(self, attempt: Any, shield: Shield) -> None: ...
    def run_callback(self, attempt: Any, callback: Callable[[TripFacts], object], facts: TripFacts) -> None: ...


class Spec(Protocol):
    """A job not yet sent, as a client makes it."""

    @property
    def job(self) -> NewJob: ...


class Spawnable(Protocol[P]):
    """A handler as `@bus.job` leaves it, or its `options(...)`."""

    def options(self, *, parent: str) -> Spawnable[P]: ...
    def spec(self, *args: P.args, **kwargs: P.kwargs) -> Spec: ...
    def handle_of(self, jid: str, state: State, *, blocking: bool) -> Any: ...


class CurrentJob:
    """The running job, seen from inside its handler."""

    __slots__ = ("_attempt", "_hands", "_saved")

    def __init__(self, attempt: Watched, hands: Hands) -> None:
        self._attempt = attempt
        self._hands = hands
        self._saved: Any = _UNREAD

    @property
    def jid(self) -> str:
        return self._attempt.jid

    @property
    def kind(self) -> str:
        return self._attempt.handler.kind

    @property
    def attempt(self) -> int:
        """Which run of the handler this is, counted from 1."""
        return self._attempt.number

    @property
    def cancelled(self) -> bool:
        """Whether the token is tripped; `cause` says whether the job is cancelled or only this attempt stops."""
        return self._attempt.token.observe() is not None

    @property
    def cause(self) -> Cause | None:
        """
        Why the token is tripped, None when it is not.

        `shutdown`, `timeout` and `lease_lost` stop this attempt only. A cancel that comes after one of them takes its
        place: clean-up that looks again can tell one from the other.
        """
        facts = self._attempt.token.observe()
        return None if facts is None else facts.cause

    @property
    def reason(self) -> str:
        """The words of whoever asked for the cancel; "" when there are none."""
        facts = self._attempt.token.facts
        return "" if facts is None else facts.reason

    @property
    def saved(self) -> Any:
        """What an earlier `save` of this job kept, in this attempt or one before; None when nothing was."""
        if self._saved is _UNREAD:
            self._saved = decode_result(self._attempt.saved) if self._attempt.saved else None
        return self._saved

    def check_cancelled(self) -> None:
        """Raise `busq.Cancelled` when the token is tripped, every time. Inside a shield the answer waits outside."""
        if not self._attempt.shields:
            self._attempt.token.check()

    def progress(self, fraction: float, note: str = "") -> None:
        """
        Say how far the job is, 0 to 1, and what it is doing (at most 200 characters are kept). A checkpoint too.

        Costs nothing but memory: the newest word travels with the next beat. Raise `UsageError` for anything that
        is not a number from 0 to 1, `busq.Cancelled` when the token is tripped.
        """
        if not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
            raise UsageError(f"progress takes a number from 0 to 1, not {fraction!r}")
        words = "".join(c if c.isprintable() else " " for c in note[:200])
        self._attempt.progress = (format(float(fraction), ".6g"), words)
        self.check_cancelled()

    def on_trip(self, callback: Callable[[TripFacts], object]) -> None:
        """
        Have `callback(facts)` called once when the token is tripped; at once when it is tripped already.

        A coroutine handler's callback runs in its loop, that of a `def` handler in a thread of its own. It must be
        quick; what it raises is logged and changes nothing. A cancel that later takes the place of a shutdown or a
        timeout does not call it again: `cause` shows it.
        """
        if inspect.iscoroutinefunction(callback):
            raise UsageError(
                f"on_trip takes a plain function, and {callback!r} is an `async def` that nobody would await"
            )
        token = self._attempt.token
        if not token.on_trip(callback) and token.facts is not None:
            self._hands.run_callback(self._attempt, callback, token.facts)

    def drop_on_trip(self, callback: Callable[[TripFacts], object]) -> None:
        """Take a callback back that has not been called yet; nothing happens when there is none."""
        self._attempt.token.drop(callback)

    def wait_cancelled(self, timeout: float | None = None) -> Answer[bool]:
        """Wait until the token is tripped, at most `timeout` seconds; True when it is. Await it in a coroutine."""
        token = self._attempt.token
        if self._blocks:
            return cast("Answer[bool]", token.wait(timeout))
        return _WaitTripped(self, self._hands, timeout)

    def save(self, data: Any) -> Answer[None]:
        """
        Keep `data` with the job's record: the next attempt finds it in `saved`. Await it in a coroutine.

        Anything that MessagePack can write, up to the result limit. Raise `TooLarge` or `BadResult` at once, and
        `busq.Cancelled` when nothing was kept because another attempt owns the job.
        """
        encoded = encode_result(data, self._hands.result_bytes) or _NOTHING
        kept = self._hands.save(self._attempt, encoded)
        self._attempt.saved = encoded
        self._saved = data
        if self._blocks:
            return Done(kept.result())
        return Pending(kept)

    def spawn(self, handler: Spawnable[P], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """
        Enqueue a child of this job: `await job.spawn(upload, part)`, or `job.spawn(upload.options(delay=5), part)`.

        What comes is the child's `JobHandle`; in a `def` handler nothing is awaited and it is a `BlockingHandle`. Raise
        what `enqueue` raises, and `busq.Cancelled` when this attempt was asked to stop: then there is no child. This
        job has not ended before its children have; `options(on_parent_cancel=...)` says what they do when it is
        cancelled.
        """
        heir = handler.options(parent=self.jid)
        job = heir.spec(*args, **kwargs).job
        if job.most:
            raise UsageError(
                "max_queue is for producers outside: a child is part of a job that has been let in. Leave it out, or "
                "enqueue the job by itself"
            )
        told = self._hands.spawn(self._attempt, job)
        if self._blocks:
            return self._spawned(heir, job.jid, *told.result())
        return _Spawning(lambda word, detail: self._spawned(heir, job.jid, word, detail), told)

    def _spawned(self, heir: Spawnable[Any], jid: str, word: str, detail: str) -> Any:
        if word == "in_use":
            raise JidInUse(jid, State(detail) if detail else None)
        if word == "orphan":
            self._attempt.token.observe()
            facts = self._attempt.token.facts
            cause, reason = (facts.cause, facts.reason) if facts else (Cause.of(detail), "")
            raise Cancelled(cause, reason)
        if word == "too_deep":
            raise TooDeep(self.jid, DEEPEST)
        if word == "refused":
            raise UsageError(detail)
        return heir.handle_of(jid, State(detail), blocking=self._blocks)

    def shield(self, limit: float | None = None) -> Shield:
        """
        A stretch that a cancel does not interrupt: it waits outside, within the grace, for `limit` seconds at most.

        `async with` in a coroutine, `with` in a `def` handler. The job's deadline stands, whatever the shield does.
        """
        return Shield(self._attempt, self._hands, limit)

    def subprocess(self, *argv: Argument, **popen_options: Any) -> Launch:
        """
        Run a program that stops when this job does, together with all that it starts; options are those of `Popen`.

        `async with job.subprocess("ffmpeg", "-i", path) as ffmpeg: code = await ffmpeg.wait()`; in a `def` handler
        `with`, and nothing is awaited. SIGTERM when the token is tripped, SIGKILL when half of the grace is over.
        """
        return Launch(self, argv, popen_options, blocks=self._blocks)

    @property
    def _blocks(self) -> bool:
        return self._attempt.handler.pool is not Pool.COROUTINE

    def __repr__(self) -> str:
        return f"<CurrentJob {self.jid} ({self.kind}), attempt {self.attempt}>"


class Answer(Protocol[T_co]):
    """Something that may be awaited; in a `def` handler it is there already and need not be."""

    def __await__(self) -> Generator[Any, None, T_co]: ...


class Shield:
    """What `job.shield()` gives; see there."""

    def __init__(self, attempt: Watched, hands: Hands, limit_s: float | None) -> None:
        self._attempt = attempt
        self._hands = hands
        self.limit_s = limit_s
        self.holds = False
        self.timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._hands.shield_opened(self._attempt, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hands.shield_closed(self._attempt, self)
        if error is None and not self._attempt.shields:
            self._attempt.token.check()

    async def __aenter__(self) -> Self:
        self._hands.shield_opened(self._attempt, self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hands.shield_closed(self._attempt, self)
        if error is None and not self._attempt.shields and self._attempt.token.tripped:
            await asyncio.sleep(0)  # the cancel that waited outside is delivered here


def current_job() -> CurrentJob:
    """The job whose handler is running here. Raise `NoCurrentJob` anywhere else."""
    job = _current.get()
    if job is None:
        raise NoCurrentJob("current_job() was called outside a handler: it works in code that a worker runs as a job")
    return job


def current_job_or_none() -> CurrentJob | None:
    """The same for code that may run anywhere, such as a log processor."""
    return _current.get()


def job_in(there: Context) -> CurrentJob | None:
    """The job whose handler runs in that context, seen from outside."""
    return there.get(_current)


def enter(job: CurrentJob | None) -> None:
    """Make `job` the current one of this context."""
    _current.set(job)


# How answers arrive --------------------------------------------------------------------------------------

_UNREAD: Any = object()
_NOTHING = encode_result([], 64)[:1] + b"\xc0"  # a saved None is not the same as nothing saved


class Done(Generic[T]):
    """An answer that is there."""

    def __init__(self, value: T) -> None:
        self._value = value

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()  # a generator that never stops at anything
        return self._value


class Pending(Generic[T]):
    """An answer that another thread or task will bring; giving up waiting for it does not undo it."""

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.shield(asyncio.wrap_future(self._future)).__await__()


class _Spawning:
    """A child on its way; giving up waiting for it does not undo it."""

    def __init__(self, arrived: Callable[[str, str], Any], told: Future[tuple[str, str]]) -> None:
        self._arrived = arrived
        self._told = told

    def __await__(self) -> Generator[Any, None, Any]:
        word, detail = yield from asyncio.shield(asyncio.wrap_future(self._told)).__await__()
        return self._arrived(word, detail)


class _WaitTripped:
    def __init__(self, job: CurrentJob, hands: Hands, timeout_s: float | None) -> None:
        self._job = job
        self._loop = hands.loop
        self._timeout_s = timeout_s

    def __await__(self) -> Generator[Any, None, bool]:
        return self._wait().__await__()

    async def _wait(self) -> bool:
        tripped = asyncio.Event()

        def wake(facts: TripFacts) -> None:
            self._loop.call_soon_threadsafe(tripped.set)

        self._job.on_trip(wake)
        try:
            async with asyncio.timeout(self._timeout_s):
                await tripped.wait()
        except TimeoutError:
            return False
        finally:
            self._job.drop_on_trip(wake)
        return self._job.cancelled
