"""
A bench to watch real workers on: one bus, any number of workers and watchdogs in this loop, and handlers that tests
hold by a string.

A handler's body is written once, as a generator of steps, and run by either executor (`declare`), so that one story
is told to both. Every wait of a body is on a `Gate`, which a test opens. `until` is the only place that polls.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar, overload

import msgspec

import busq
from busq.client.jobs import Enqueuer
from busq.config import Settings
from busq.handlers import Handlers
from busq.store.store import Store
from busq.watchdog.watchdog import Watchdog
from busq.worker.attempt import Attempt
from busq.worker.worker import Worker
from tests.roles import as_role, as_tester, deploy

EXECUTORS = ("coroutine", "thread")
CANCELLATIONS = (asyncio.CancelledError, busq.Cancelled)

QUICK: dict[str, Any] = {
    "beat_s": 0.1,
    "grace_s": 0.2,
    "force_s": 0.1,
    "watchdog_interval_s": 0.05,
    "backoff_s": 0.02,
    "backoff_max_s": 0.04,
    "shutdown_timeout_s": 0.3,
    "cleanup_s": 0.2,
}
PATIENT: dict[str, Any] = {"grace_s": 20.0}
"""For stories in which the grace may not run out, however slow the machine is."""

UNHURRIED: dict[str, Any] = {"beat_s": 3.0}
"""
For stories in which force shall be done before a watchdog finalizes: a deadline allows a beat for the hearing, which
takes a notice no time, so that is what is left for a machine that stalls.
"""

SHORT_LEASE: dict[str, Any] = {"lease_s": 0.6}
"""For those who shall lose their lease; who shall keep it must not have this, for a machine may stall for as long."""

BUSY_S = 5.0
"""How much later than promised a thing may happen where the machine is busy with something else."""

NEVER_SO_LONG_S = 30.0
"""For what no promise is about: a safety net that only a mistake falls into."""

T = TypeVar("T")


@overload
async def until(condition: Callable[[], Coroutine[Any, Any, T]], timeout: float = NEVER_SO_LONG_S) -> T: ...
@overload
async def until(condition: Callable[[], T], timeout: float = NEVER_SO_LONG_S) -> T: ...
async def until(condition: Callable[[], Any], timeout: float = NEVER_SO_LONG_S) -> Any:
    """What `condition` answers, as soon as it is true. For what no event announces."""
    last: Any = None
    try:
        async with asyncio.timeout(timeout):
            while True:
                last = condition()
                if inspect.isawaitable(last):
                    last = await last
                if last:
                    return last
                await asyncio.sleep(0.005)
    except TimeoutError:
        where = inspect.getsource(condition).strip()
        raise AssertionError(f"not true within {timeout:g} s (last answer {last!r}): {where}") from None


class Gate:
    """Closed until a test opens it; waited for in coroutines and in threads."""

    def __init__(self) -> None:
        self._open: Future[None] = Future()

    @property
    def is_open(self) -> bool:
        return self._open.done()

    def open(self) -> None:
        if not self._open.done():
            self._open.set_result(None)

    async def wait(self) -> None:
        await asyncio.shield(asyncio.wrap_future(self._open))

    def block(self, timeout: float | None = 30.0) -> bool:
        try:
            self._open.result(timeout)
        except TimeoutError:
            return False
        return True


# Bodies: one story for both executors --------------------------------------------------------------------


class Wait:
    """A step that waits for a gate and can be interrupted: by `CancelledError`, or by a thread's own checks."""

    def __init__(self, gate: Gate, *, checking: bool = True) -> None:
        self._gate = gate
        self._checking = checking

    async def in_coroutine(self) -> None:
        await self._gate.wait()

    def in_thread(self) -> None:
        while not self._gate.block(0.003):
            if self._checking:
                busq.current_job().check_cancelled()


class Ask:
    """A step that calls something of `current_job()`, and awaits the answer where it has to."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call

    async def in_coroutine(self) -> Any:
        return await self._call()

    def in_thread(self) -> Any:
        answer = self._call()
        if not hasattr(answer, "__await__"):
            return answer
        try:  # an answer that is there can be taken out in one step
            answer.__await__().send(None)
        except StopIteration as there:
            return there.value
        raise AssertionError("in a thread every answer is there at once")


Body = Callable[..., Generator[Wait | Ask, Any, Any]]


def declare(bus: busq.Bus, executor: str, body: Body, **options: Any) -> Enqueuer[..., Any]:
    """Make `body` a handler of this executor; its kind is the body's name."""

    async def coroutine(*args: Any) -> Any:
        steps = body(*args)
        move: Callable[[], Wait | Ask] = partial(next, steps)
        while True:
            try:
                step = move()
            except StopIteration as end:
                return end.value
            try:
                answer = await step.in_coroutine()
                move = partial(steps.send, answer)
            except BaseException as error:
                move = partial(steps.throw, error)

    def thread(*args: Any) -> Any:
        steps = body(*args)
        move: Callable[[], Wait | Ask] = partial(next, steps)
        while True:
            try:
                step = move()
            except StopIteration as end:
                return end.value
            try:
                answer = step.in_thread()
                move = partial(steps.send, answer)
            except BaseException as error:
                move = partial(steps.throw, error)

    made: Enqueuer[..., Any] = bus.job(kind=body.__name__, **options)(coroutine if executor == "coroutine" else thread)
    return made


# The bench -----------------------------------------------------------------------------------------------


class Bench:
    """Made by `bench`. What it starts, it stops."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.url = url
        self.given = {**QUICK, **settings}
        self.bus = busq.Bus(as_role(url, "client"), **self.given)
        self.gates: list[Gate] = []
        self._services: list[tuple[Worker | Watchdog, asyncio.Task[None]]] = []
        self._store: Store | None = None

    async def store(self) -> Store:
        """A way past all roles, for a test that looks into Redis or plays a trick there."""
        if self._store is None:
            self._store = Store(self.settings_of("tester"), by="tester")
            await self._store.open()
        return self._store

    @property
    def settings(self) -> Settings:
        return self.bus.settings

    def settings_of(self, role: str, bus: busq.Bus | None = None) -> Settings:
        """Those of a bus, ours when left out, for a process of this role: its URL is that of the role's user."""
        settings = (bus or self.bus).settings
        return msgspec.structs.replace(settings, url=as_role(as_tester(settings.url or ""), role))

    def gate(self) -> Gate:
        """A gate that opens at the end at the latest."""
        self.gates.append(Gate())
        return self.gates[-1]

    async def work(self, bus: busq.Bus | None = None, *, handlers: Handlers | None = None, **how: Any) -> Worker:
        """Start a worker; returns when it takes jobs. `handlers`: those of another application, with our settings."""
        bus = bus or self.bus
        worker = Worker(self.settings_of("worker", bus), bus.handlers if handlers is None else handlers, **how)
        await self._serve(worker, lambda: worker.ready)
        return worker

    async def watch(self) -> Watchdog:
        """Start a watchdog; returns after its first pass."""
        dog = Watchdog(self.settings_of("watchdog"))
        await self._serve(dog, lambda: dog.last_pass is not None)
        return dog

    async def _serve(self, service: Worker | Watchdog, ready: Callable[[], bool]) -> None:
        task = asyncio.create_task(service.run())
        self._services.append((service, task))
        await until(lambda: ready() or task.done())
        if task.done():
            task.result()

    async def end(self, service: Worker | Watchdog) -> None:
        """Stop one service and wait until it has ended."""
        service.stop()
        await self.ended(service)

    async def ended(self, service: Worker | Watchdog) -> None:
        """Wait until a service that was asked to stop has ended."""
        task = next(task for each, task in self._services if each is service)
        self._services = [pair for pair in self._services if pair[0] is not service]
        await task

    async def close(self) -> None:
        for gate in self.gates:
            gate.open()
        for service, _ in reversed(self._services):
            service.stop()
            service.stop()  # hurry
        ended = await asyncio.gather(*(task for _, task in self._services), return_exceptions=True)
        await self.bus.close()
        if self._store is not None:
            await self._store.close()
        for each in ended:
            if isinstance(each, BaseException):
                raise each

    # Looking -------------------------------------------------------------------------------------------

    async def names(self, jid: str) -> list[str]:
        """The names of a job's history, in order."""
        return [event.name for event in await self.bus.history(jid)]

    async def reaches(self, jid: str, *states: str, timeout: float = NEVER_SO_LONG_S) -> busq.Job:
        """
        The record, once it is in one of these states.

        Where it says that a worker of this bench runs the job, that worker knows: its record tells earlier.
        """

        async def there() -> busq.Job | None:
            job = await self.bus.get(jid)
            return job if job.state in states and self._is_known(job) else None

        job = await until(there, timeout)
        assert job is not None
        return job

    def _is_known(self, job: busq.Job) -> bool:
        """Whether the worker that is said to run this job has heard so, if it is one of ours."""
        owners = (each for each, _ in self._services if isinstance(each, Worker) and each.name == job.owner)
        return all(job.jid in owner.running for owner in owners if job.state == "running")


async def taken(worker: Worker, jid: str) -> Attempt:
    """
    The attempt at this job, once the worker knows that it began.

    The record says so earlier: the answer of the start is still on its way to the worker then.
    """
    return await until(lambda: worker.running.get(jid))


@asynccontextmanager
async def bench(url: str, **settings: Any) -> AsyncIterator[Bench]:
    """A bench with quick settings, and `settings` on top."""
    made = Bench(url, **settings)
    await deploy(url, **made.given)
    try:
        yield made
    finally:
        await made.close()
