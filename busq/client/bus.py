"""
The bus as a program sees it: declare handlers, enqueue, cancel, wait, look.

Nothing connects at import. The first use opens a link for the running event loop; `close`, or leaving
`async with`, closes the link of that loop.
"""

from __future__ import annotations

import asyncio
import secrets
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import cached_property
from typing import Any, Literal, ParamSpec, Protocol, Self, TypeVar, overload

import msgspec

from busq.callables import Pool
from busq.client.blocking import BlockingBus
from busq.client.handle import JobHandle
from busq.client.jobs import AsyncJob, KindOptions, SyncJob
from busq.client.link import Link, rung
from busq.client.scope_calls import ScopeCalls
from busq.client.spec import JobOptions, JobSpec, over_limit
from busq.config import Settings
from busq.errors import ConfigError, JidInUse, ParentClosed, TooDeep, UsageError
from busq.handlers import Handler, HandlerOptions, Handlers
from busq.protocol.cancel import CancelAnswer, CancelRequest, checked_seconds, clean_words
from busq.protocol.durability import Confirmed, DurabilityWord, checked_durability, together
from busq.protocol.jids import check_jid
from busq.protocol.job import Event, Job
from busq.protocol.states import State
from busq.protocol.tree import DEEPEST
from busq.store.counts import Stats
from busq.store.roster import Member

P = ParamSpec("P")
R = TypeVar("R")


class _JobDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncJob[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncJob[P, R]: ...


class Bus(ScopeCalls):
    """
    A bus on Redis.

    `url` is redis://, rediss:// or unix://; left out it is BUSQ_URL, read at the first use. Other settings can be
    given by name (`namespace="x"`, `beat_s=2`), see `busq.config.Settings`. Usable from several event loops and
    threads: each loop gets connections of its own.
    """

    def __init__(self, url: str | None = None, **settings: Any) -> None:
        self.handlers = Handlers()
        self._given = {"url": url, **settings}
        if settings:
            Settings.load(**self._given)  # a bad value is told where it stands, not at the first use
        self._links: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Link] = weakref.WeakKeyDictionary()

    @cached_property
    def settings(self) -> Settings:
        """The settings, read once and frozen. Raise `ConfigError`."""
        return Settings.load(**self._given)

    @cached_property
    def blocking(self) -> BlockingBus:
        """The same calls for code without an event loop; usable from any thread, and after a fork."""
        return BlockingBus(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections of this event loop. The bus opens them again when it is used again."""
        link = self._links.pop(asyncio.get_running_loop(), None)
        if link is not None:
            await link.close()

    # Handlers ----------------------------------------------------------------------------------------------

    @overload
    def job(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncJob[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def job(self, function: Callable[P, R], /) -> SyncJob[P, R]: ...
    @overload
    def job(
        self,
        *,
        kind: str | None = None,
        queue: str | None = None,
        pool: Pool | Literal["coroutine", "thread", "process"] | None = None,
        retries: int | None = None,
        timeout: float | None = None,
        grace: float | None = None,
        backoff: float | None = None,
        backoff_max: float | None = None,
        max_losses: int | None = None,
        expires: float | None = None,
        deadline: float | None = None,
        late_success: Literal["cancel", "keep"] = "cancel",
        raise_in_thread: bool = False,
    ) -> _JobDecorator: ...

    def job(self, function: Callable[..., Any] | None = None, *, kind: str | None = None, **options: Any) -> Any:
        """
        Declare a handler: `@bus.job`, or `@bus.job(queue="media", retries=2, timeout=600, grace=5.0)`.

        `async def` runs as a coroutine, `def` in a thread, `def` with `pool="process"` in a child process. `kind` is
        the function's name unless given. Lengths of time in seconds; `retries` counts handler failures. Raise
        `ConfigError` for a setting that will not do, or a kind that is taken.

        `raise_in_thread=True`, for a `def` handler in a thread: force, after the grace, raises `busq.Cancelled` in that
        thread, every 50 ms until the force time is over. It reaches Python code only: not a sleep, a wait for a socket
        or a lock, or C code, before that returns; a bare `except` swallows it; and it may cut a `finally` short.
        """
        own = _handler_options(options)

        def declare(declared: Callable[..., Any]) -> Any:
            handler = self.handlers.add(Handler(declared, kind=kind, options=own))
            made = AsyncJob if handler.pool is Pool.COROUTINE else SyncJob
            return made(self, handler, JobOptions())

        return declare if function is None else declare(function)

    # Enqueueing --------------------------------------------------------------------------------------------

    async def enqueue(self, kind: str, /, *args: Any, **kwargs: Any) -> JobHandle[Any]:
        """
        Put a job on its queue without having the handler's code; positional and keyword arguments are the handler's.

        Raise `BadArguments`, `TooLarge` or `BusUnavailable`.
        """
        return await self.options().enqueue(kind, *args, **kwargs)

    def options(self, **given: Any) -> KindOptions:
        """Options for the next jobs, as `bus.options(queue="media", delay=30).enqueue("transcode", "a.mp4")`."""
        return KindOptions(self, JobOptions().over(given))

    def spec(self, kind: str, /, *args: Any, **kwargs: Any) -> JobSpec[Any]:
        """A job not yet sent, for `enqueue_many`."""
        return self.options().spec(kind, *args, **kwargs)

    async def enqueue_many(self, specs: Iterable[JobSpec[R]]) -> list[JobHandle[R]]:
        """
        Put many jobs on their queues, a batch in each round trip; handles come in the order of the specs.

        Raise `JidInUse` for the first jid that another job holds, `ParentClosed` or `TooDeep` for the first job whose
        parent gains no such child, `QueueFull` or `RateLimited` for the first that is over a limit; the other jobs have
        been enqueued then, but for those that the error names. Raise `UsageError` before anything is sent when one jid
        is given twice.
        """
        return [
            JobHandle(self, spec.jid, state, spec.result_type, confirmed)
            for spec, state, confirmed in await self.send(list(specs))
        ]

    async def send(self, specs: Sequence[JobSpec[R]]) -> list[tuple[JobSpec[R], State, Confirmed | None]]:
        """What `enqueue_many` does, with each job's first state and what was confirmed instead of a handle."""
        jids = {spec.jid for spec in specs}
        if len(jids) != len(specs):
            twice = next(spec.jid for i, spec in enumerate(specs) if any(spec.jid == s.jid for s in specs[:i]))
            raise UsageError(f"jid {twice!r} is given to two jobs of one call; nothing was enqueued")
        link = await self._link()
        for spec in specs:
            spec.job.check_shard(link.store.shards)
        confirming = link.confirming(together(spec.durability for spec in specs))
        jobs = [spec.job for spec in specs]
        answers = await link.store.enqueue(jobs, call=secrets.token_hex(8), confirming=confirming)
        admitted = []
        for spec, answer in zip(specs, answers, strict=True):
            if answer[0] in ("full", "limited"):
                refused = [each.jid for each, (word, *_) in zip(specs, answers, strict=True) if word == answer[0]]
                raise over_limit(spec.job, answer, refused, self.settings, link.store.shards)
            confirmed = None if confirming is None else confirming.answer(spec.durability)
            admitted.append((spec, _admitted(spec, answer[0], answer[1]), confirmed))
        return admitted

    # Cancelling --------------------------------------------------------------------------------------------

    async def cancel(
        self,
        jid: str,
        *,
        reason: str = "",
        source: str = "",
        grace: float | None = None,
        tombstone: float | None = None,
        durability: DurabilityWord = None,
    ) -> CancelAnswer:
        """
        Ask a job to stop. The wish is written down before this returns, then announced.

        `reason` are your own words, `source` is who asks; both are kept with the job. `grace` (seconds) replaces the
        job's own and can only bring a deadline nearer. `tombstone` (seconds): if there is no such job, the next
        enqueue of exactly this jid within that time is born cancelled. `durability`: what is to be confirmed before
        this returns, "replicated" or "fsynced". The answer's `verdict` never claims more than happened, and its
        `confirmed` says what was. Raise `BadJid` or `BusUnavailable`.
        """
        answers = await self.cancel_many(
            [jid], reason=reason, source=source, grace=grace, tombstone=tombstone, durability=durability
        )
        return answers[0]

    async def cancel_many(
        self,
        jids: Iterable[str],
        *,
        reason: str = "",
        source: str = "",
        grace: float | None = None,
        tombstone: float | None = None,
        durability: DurabilityWord = None,
    ) -> list[CancelAnswer]:
        """Ask many jobs to stop, a batch in each round trip; answers come in the order of the jids. See `cancel`."""
        if isinstance(jids, str | bytes):
            raise UsageError(f"cancel_many takes jids, not one text ({jids!r:.80}); for one job there is cancel")
        wanted = [check_jid(jid) for jid in jids]
        wish = CancelRequest(
            reason=clean_words(reason, "reason"),
            source=clean_words(source, "source"),
            grace_s=checked_seconds(grace, "grace"),
            tombstone_s=checked_seconds(tombstone, "tombstone"),
        )
        asked = checked_durability(durability)
        link = await self._link()
        confirming = link.confirming(together([asked]))
        answers = await link.store.cancel(wanted, wish, request=secrets.token_hex(8), confirming=confirming)
        if confirming is None:
            return answers
        confirmed = confirming.answer(asked)
        return [msgspec.structs.replace(answer, confirmed=confirmed) for answer in answers]

    # Waiting and looking -----------------------------------------------------------------------------------

    async def wait(self, jid: str, *, timeout: float | None = None) -> Job:
        """
        The job's terminal record, whatever the ending; waits `timeout` seconds at most (None: for ever).

        Woken by an announcement; it does not poll. A job that is not running and has been decided to stop, by a scope
        or by the cancel of its parent, is cancelled from that moment on: its record says so a little later, and until
        then `finished_at` and `hook` are None. Raise `JobNotFound`, `TimeoutError` or `BusUnavailable`.
        """
        link = await self._link()
        job = await link.reader.job(check_jid(jid))
        if job.is_terminal:
            return job
        try:
            async with asyncio.timeout(timeout):
                return await self._until_terminal(link, jid)
        except TimeoutError:
            job = await link.reader.job(jid)
            if job.is_terminal:
                return job
            raise TimeoutError(f"job {jid} ({job.kind}) was still {job.state} after {timeout} s") from None

    async def _until_terminal(self, link: Link, jid: str) -> Job:
        async with link.bell(jid) as bell:
            while True:
                await rung(bell)
                job = await link.reader.job(jid)
                if job.is_terminal:
                    return job

    async def result(self, jid: str, *, timeout: float | None = None) -> Any:
        """The value of a job that succeeded. Raise as `JobHandle.result` does."""
        return await JobHandle[Any](self, jid, State.QUEUED).result(timeout)

    async def get(self, jid: str) -> Job:
        """The record as it is now. Raise `JobNotFound` or `BusUnavailable`."""
        return await (await self._link()).reader.job(check_jid(jid))

    async def history(self, jid: str) -> list[Event]:
        """What happened to a job, oldest first: the newest 200 lines. Raise `JobNotFound`."""
        return await (await self._link()).reader.history(check_jid(jid))

    async def list(
        self,
        *,
        state: State | str | Iterable[State | str] | None = None,
        kind: str | None = None,
        queue: str | None = None,
        group: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Jobs that match, live ones first, then the newest endings; at most `limit`, however many there are."""
        reader = (await self._link()).reader
        return await reader.jobs(states=_states(state), kind=kind, queue=queue, group=group, limit=limit)

    async def stats(self) -> Stats:
        """The bus in numbers: jobs by state, backlog by queue, suspects, dead letters."""
        return await (await self._link()).reader.stats()

    async def workers(self) -> Sequence[Member]:
        """Every worker and watchdog on the roster, with its lease and what it says of itself."""
        return await (await self._link()).reader.members()

    # Links -------------------------------------------------------------------------------------------------

    async def _link(self) -> Link:
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None:
            link = self._links[loop] = Link(self.settings)
        await link.open()
        return link


_SECONDS = {name: f"{name}_s" for name in ("timeout", "grace", "backoff", "backoff_max", "expires", "deadline")}


def _handler_options(given: dict[str, Any]) -> HandlerOptions:
    named = {_SECONDS.get(name, name): value for name, value in given.items()}
    unknown = [name for name in given if _SECONDS.get(name, name) not in HandlerOptions.__struct_fields__]
    if unknown:
        known = {field: name for name, field in _SECONDS.items()}
        names = [known.get(field, field) for field in HandlerOptions.__struct_fields__]
        raise ConfigError(f"a handler has no setting {unknown[0]!r}; there are: kind, {', '.join(names)}")
    return HandlerOptions(**named)


def _admitted(spec: JobSpec[Any], word: str, state: State | None) -> State:
    """The first state of a job that was admitted. Raise what the answer says of one that was not."""
    if word == "too_deep":
        raise TooDeep(spec.job.said("parent") or "", DEEPEST)
    if word == "in_use":
        raise JidInUse(spec.jid, state)
    if word == "orphan" or state is None:
        raise ParentClosed(spec.job.said("parent") or "", state)
    return state


def _states(state: State | str | Iterable[State | str] | None) -> list[State]:
    if state is None:
        return []
    words: Iterable[State | str] = [state] if isinstance(state, str) else state
    try:
        return [State(word) for word in words]
    except ValueError as error:
        raise UsageError(f"state: {error}; there are: {', '.join(State)}") from None
