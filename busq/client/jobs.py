"""
What `@bus.job` makes of a function: still callable as before, and a way to enqueue it that type checkers follow.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from busq.client.handle import BlockingHandle, JobHandle
from busq.client.spec import JobOptions, JobSpec, make_spec
from busq.errors import ConfigError
from busq.finalizers import Finalizer
from busq.handlers import Handler
from busq.hooks import RETRIES, Hook
from busq.protocol.durability import DurabilityWord
from busq.protocol.hook import CancelledJob
from busq.protocol.states import State
from busq.protocol.tree import FinishedJob, OnParentCancel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from busq.client.bus import Bus

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F = TypeVar("F", bound=Callable[[CancelledJob], object])
G = TypeVar("G", bound=Callable[[FinishedJob], object])


class Enqueuer(Generic[P, R_co]):
    """A handler together with what its next jobs shall say for themselves."""

    def __init__(self, bus: Bus, handler: Handler, options: JobOptions) -> None:
        self.handler = handler
        self._bus = bus
        self._options = options

    @property
    def kind(self) -> str:
        return self.handler.kind

    def spec(self, *args: P.args, **kwargs: P.kwargs) -> JobSpec[R_co]:
        """A job not yet sent, for `enqueue_many`. Raise `BadArguments` or `TooLarge`."""
        return make_spec(self._bus.settings, self.kind, self.handler, self._options, args, kwargs)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R_co]:
        """
        Put a job of this kind on its queue. The arguments are the handler's own.

        Raise `BadArguments`, `TooLarge`, `BadJid`, `JidInUse` or `BusUnavailable`; with a parent also `ParentClosed` or
        `TooDeep`; where limits are set `QueueFull` or `RateLimited`.
        """
        return (await self._bus.enqueue_many([self.spec(*args, **kwargs)]))[0]

    def handle_of(self, jid: str, state: State, *, blocking: bool) -> JobHandle[R_co] | BlockingHandle[R_co]:
        """The handle of a job of this kind that has been sent already."""
        if blocking:
            return BlockingHandle(self._bus.blocking, jid, state, self.handler.result_type)
        return JobHandle(self._bus, jid, state, self.handler.result_type)

    @property
    def blocking(self) -> BlockingEnqueuer[P, R_co]:
        """The same for code without an event loop."""
        return BlockingEnqueuer(self)

    def options(
        self,
        *,
        jid: str | None = None,
        queue: str | None = None,
        delay: float | None = None,
        group: str | None = None,
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        on_parent_cancel: OnParentCancel | None = None,
        key: str | None = None,
        supersede: bool | None = None,
        retries: int | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        backoff: float | None = None,
        backoff_max: float | None = None,
        max_losses: int | None = None,
        expires: float | None = None,
        deadline: float | None = None,
        max_queue: int | None = None,
        durability: DurabilityWord = None,
    ) -> Enqueuer[P, R_co]:
        """The same handler, whose next jobs say this for themselves; see `JobOptions`. Lengths of time in seconds."""
        given = {name: value for name, value in locals().items() if name != "self" and value is not None}
        return Enqueuer(self._bus, self.handler, self._options.over(given))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.kind} ({self.handler.pool})>"


class Declared(Enqueuer[P, R_co]):
    """What `@bus.job` gives: an enqueuer that can be told more about its handler."""

    @overload
    def on_cancel(self, function: F, /) -> F: ...
    @overload
    def on_cancel(
        self, *, timeout: float | None = None, retries: int = RETRIES, never_started: bool = True
    ) -> Callable[[F], F]: ...

    def on_cancel(
        self,
        function: Callable[[CancelledJob], object] | None = None,
        *,
        timeout: float | None = None,
        retries: int = RETRIES,
        never_started: bool = True,
    ) -> Any:
        """
        Declare what cleans up after a cancelled job: `@transcode.on_cancel`, or `@transcode.on_cancel(timeout=10)`.

        The function gets one argument, a `busq.CancelledJob`, and stays callable. It runs at least once, after the
        handler has stopped or was abandoned, as a job of its own: when its worker dies, another one runs it.
        `timeout` is its limit in seconds (10 unless set otherwise: `hook_limit_s`), `retries` counts its failures;
        `never_started=False` spares jobs that had no attempt. A job that succeeded or failed runs no hook. Raise
        `ConfigError` for a function that will not do, or when the handler has a hook already.
        """

        def declare(declared: Callable[[CancelledJob], object]) -> Callable[[CancelledJob], object]:
            self._refuse_handler(declared, Hook.ROLE)
            hook = Hook(declared, self.handler, timeout_s=timeout, retries=retries, never_started=never_started)
            self._bus.handlers.add(hook)
            self.handler.hook = hook
            return declared

        return declare if function is None else declare(function)

    @overload
    def finalize(self, function: G, /) -> G: ...
    @overload
    def finalize(self, *, timeout: float | None = None, retries: int = 0) -> Callable[[G], G]: ...

    def finalize(
        self,
        function: Callable[[FinishedJob], object] | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
    ) -> Any:
        """
        Declare what runs when a job and all of its children have ended: `@sync.finalize`, or with options.

        The function gets one argument, a `busq.FinishedJob`, and stays callable. It runs as a job of its own in the
        queue of the first one, which waits for it and keeps its own result: it is `failed` when this fails. Failed
        children are told and keep nothing from running; after a cancelled one it does not run and the job is
        cancelled. Without any children it runs when the handler has returned. `timeout` in seconds (None: no limit),
        `retries` counts its failures. Raise `ConfigError` for a function that will not do, or when there is one.
        """

        def declare(declared: Callable[[FinishedJob], object]) -> Callable[[FinishedJob], object]:
            self._refuse_handler(declared, Finalizer.ROLE)
            finalizer = Finalizer(declared, self.handler, timeout_s=timeout, retries=retries)
            self._bus.handlers.add(finalizer)
            self.handler.finalizer = finalizer
            return declared

        return declare if function is None else declare(function)

    def _refuse_handler(self, declared: object, role: str) -> None:
        if isinstance(declared, Enqueuer):
            raise ConfigError(f"{role} of {self.kind!r} is a function, and {declared!r} is a handler; call it in one")


class AsyncJob(Declared[P, R_co]):
    """An `async def` handler."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Call the function itself, here and now; no job is made."""
        return self.handler.function(*args, **kwargs)  # type: ignore[no-any-return]


class SyncJob(Declared[P, R_co]):
    """A `def` handler."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the function itself, here and now; no job is made."""
        return self.handler.function(*args, **kwargs)  # type: ignore[no-any-return]


class BlockingEnqueuer(Generic[P, R_co]):
    """`handler.blocking`."""

    def __init__(self, enqueuer: Enqueuer[P, R_co]) -> None:
        self._enqueuer = enqueuer

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> BlockingHandle[R_co]:
        """See `Enqueuer.enqueue`. Raise `BlockingCallInLoop` inside a running event loop."""
        bus = self._enqueuer._bus.blocking
        return bus.enqueue_many([self._enqueuer.spec(*args, **kwargs)])[0]


class KindOptions:
    """`bus.options(...)`: options for jobs of handlers whose code is elsewhere."""

    def __init__(self, bus: Bus, options: JobOptions) -> None:
        self._bus = bus
        self._options = options

    def spec(self, kind: str, /, *args: Any, **kwargs: Any) -> JobSpec[Any]:
        """A job not yet sent. If this bus knows the kind, its arguments are checked as by the handler itself."""
        return make_spec(self._bus.settings, kind, self._bus.handlers.get(kind), self._options, args, kwargs)

    async def enqueue(self, kind: str, /, *args: Any, **kwargs: Any) -> JobHandle[Any]:
        """See `Bus.enqueue`."""
        return (await self._bus.enqueue_many([self.spec(kind, *args, **kwargs)]))[0]

    @property
    def blocking(self) -> BlockingKindOptions:
        return BlockingKindOptions(self)


class BlockingKindOptions:
    """`bus.options(...).blocking`."""

    def __init__(self, options: KindOptions) -> None:
        self._options = options

    def enqueue(self, kind: str, /, *args: Any, **kwargs: Any) -> BlockingHandle[Any]:
        bus = self._options._bus.blocking
        return bus.enqueue_many([self._options.spec(kind, *args, **kwargs)])[0]
