"""
The control thread: hears notices and keeps leases alive, whatever the handlers' loop is busy with.

A loop of its own in a thread of its own, so that a handler that blocks its loop silences neither the listener
nor the beat. Both end in one question to the store, `renew`, whose answer is the truth about each attempt:

    a notice on cancel:<jid>  ─┐
    an announced rule         ─┤
    a confirmed subscription  ─┼─> renew ──> running: nothing   cancelling: trip   stale: superseded
    the beat, every second    ─┘

A notice itself is worth nothing but the question: a forged one changes nothing. An announcement, of a rule or of a
parent's cancel, asks about every attempt: the script judges each. What is heard is carried into the
handlers' loop; the token alone is tripped right here, so that a thread's next check finds it. While that loop is
blocked, what cannot wait for it is done here too (`standin.py`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol

from busq import events, tasks
from busq.clock import SystemClock
from busq.config import Settings
from busq.errors import ConfigError
from busq.protocol.cancel import Cause, TripFacts
from busq.store import drains
from busq.store.drains import Whole
from busq.store.forms import Renewal, RenewAnswer
from busq.store.lineage import Lineage
from busq.store.listener import Listener
from busq.store.outage import Outage
from busq.store.store import BATCH, Store
from busq.worker.attempt import Attempt
from busq.worker.meter import UNMETERED, Meter
from busq.worker.standin import StandIn

UNREACHABLE_AFTER_S = 3.0  # without a good answer: then the worker says that it cannot reach Redis
CARD_EVERY = 10  # beats after which the card is sent again, unchanged: a server that lost its data has lost it too
HOOKS_KEPT_CARDS = 6  # cards that may be missed before another worker may say that a kind has no hook any more

log = events.logger("busq.worker")


class Owner(Protocol):
    """The handlers' side. `running` is only read here; the rest is called in the handlers' loop."""

    @property
    def running(self) -> dict[str, Attempt]: ...
    def heard(self, attempt: Attempt, facts: TripFacts, heard_by: str) -> None: ...
    def superseded(self, attempt: Attempt, state: str) -> None: ...
    def asked_to_drain(self, whole: Whole) -> None:
        """Called in the control thread, once."""

    def history_changed(self, unfit: str) -> None: ...


class Control:
    def __init__(
        self,
        settings: Settings,
        owner: Owner,
        handlers_loop: asyncio.AbstractEventLoop,
        *,
        by: str,
        info: Callable[[], bytes],
        occasions: Mapping[str, str],
        stand_in: StandIn,
        meter: Meter = UNMETERED,
        outage: Outage,
        loop_factory: Callable[[], asyncio.AbstractEventLoop],
    ) -> None:
        self._settings = settings
        self._owner = owner
        self._handlers_loop = handlers_loop
        self._by = by
        self._info = info
        self._occasions = occasions
        self._stand_in = stand_in
        self._meter = meter
        self._loop_factory = loop_factory
        self._clock = SystemClock()
        self._thread = threading.Thread(target=self._main, name="busq-control", daemon=True)
        self._ready: asyncio.Future[None] = handlers_loop.create_future()
        self._last_answer = self._clock.monotonic()
        self._outage = outage
        self._anew = False  # what was written of us may be gone
        self._sent_info = b""
        self._services: dict[str, asyncio.Task[None]] = {}
        self._beats = 0
        self._asked_to_drain = False
        self._rounds: tasks.Abreast[None] = tasks.Abreast()

    # From the handlers' loop -----------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to listen and beat; returns after the first beat. Raise what kept it from starting."""
        self._thread.start()
        await self._ready

    def watch(self, attempts: Iterable[Attempt]) -> None:
        channels = [self._store.notice_prefix + attempt.jid.encode() for attempt in attempts]
        self._call(lambda: self._listener.subscribe(*channels))

    def unwatch(self, attempts: Iterable[Attempt]) -> None:
        channels = [self._store.notice_prefix + attempt.jid.encode() for attempt in attempts]
        self._call(lambda: self._listener.unsubscribe(*channels))

    def stop(self) -> None:
        """Stop listening and beating; returns when the thread has ended."""
        self._call(self._stop.set)
        self._thread.join(timeout=5)

    @property
    def reachable(self) -> bool:
        """Whether Redis has answered a beat within the last 3 s."""
        return self.answered_s_ago <= UNREACHABLE_AFTER_S

    @property
    def hearing(self) -> bool:
        """Whether a notice sent now would be heard."""
        return self._listener.healthy

    @property
    def answered_s_ago(self) -> float:
        """How long ago Redis answered a beat."""
        return self._clock.monotonic() - self._last_answer

    @property
    def silent_for_s(self) -> float | None:
        """How long ago anything was heard on the listener's connection; None without one."""
        return self._listener.silent_for_s

    @property
    def history_changes(self) -> int:
        """How often the data behind the bus turned out to be of another history."""
        return self._lineage.changes

    @property
    def data_losses(self) -> int:
        """In how many of these changes acknowledged writes were lost for certain."""
        return self._lineage.losses

    @property
    def subscriptions(self) -> int:
        return self._listener.subscriptions

    @property
    def reconnects(self) -> int:
        return self._listener.reconnects

    @property
    def last_error(self) -> str | None:
        """What ended the listener's last connection."""
        return self._listener.last_error

    @property
    def fallen(self) -> str:
        """In words, what of all this has ended unasked; "" while everything goes on."""
        if self._stop.is_set():
            return ""
        if not self._thread.is_alive():
            return "the control thread has ended"
        ended = [name for name, service in self._services.items() if service.done()]
        return f"ended unasked: {', '.join(ended)}" if ended else ""

    def _call(self, call: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            return  # the control loop has ended; so has everything that could be listened for

    # In the control thread -------------------------------------------------------------------------------

    def _main(self) -> None:
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._asked: set[str] = set()
        self._all_asked = False
        self._asking_all: asyncio.Task[None] | None = None
        self._questions: set[asyncio.Task[None]] = set()
        self._store = Store(self._settings, by=self._by, rings=False)
        self._lineage = Lineage(self._store, log)
        self._listener = Listener(
            self._store.connections.listening,
            on_notice=lambda channel, message: self._notice(channel),
            on_confirmed=self._confirmed,
            dead_after_s=UNREACHABLE_AFTER_S,
            always_connected=True,
        )
        self._listener.subscribe(self._store.rules_channel)
        try:
            await self._store.open()
            await self._beat()
        except Exception as error:
            self._handlers_loop.call_soon_threadsafe(self._ready.set_exception, error)
            await self._store.close()
            return
        self._handlers_loop.call_soon_threadsafe(self._ready.set_result, None)
        self._services = {
            "listener": self._spawn(self._listener.run()),
            "beat": self._spawn(self._keep_beating()),
            "loop watch": self._spawn(self._stand_in.watch.run()),
            "stand-in": self._spawn(self._stand_in.run(self._store, self._fall_silent)),
        }
        await self._stop.wait()
        await tasks.end(*self._services.values())
        await self._rounds.end()
        await self._store.close()

    async def _fall_silent(self) -> None:
        """End everything here that speaks to Redis, but for the caller's own task."""
        await tasks.end(*(task for task in self._questions if task is not asyncio.current_task()))
        await self._rounds.end()

    async def _keep_beating(self) -> None:
        beat_s = self._settings.beat_s
        due = self._clock.monotonic()
        while True:
            due = max(due + beat_s, self._clock.monotonic())
            await asyncio.sleep(max(0.0, due - self._clock.monotonic()))
            try:
                await self._beat(within_s=beat_s if self._store.connections.apart else None)
            except Exception as error:  # whatever it was: a beat that gives up looks like a dead worker
                self._missed(error)

    async def _beat(self, *, within_s: float | None = None) -> None:
        if self._anew:
            self._anew, self._beats, self._sent_info = False, 0, b""  # card and hooks are sent again
        info = self._info()
        self._beats += 1
        fresh = info if info != self._sent_info or self._beats % CARD_EVERY == 0 else b""

        async def ask(shard: int) -> None:
            own = [attempt for attempt in list(self._owner.running.values()) if attempt.shard == shard]
            for start in range(0, max(1, len(own)), BATCH):
                await self._ask(shard, own[start : start + BATCH], "beat", info=fresh)
            await self._look_at_history(shard)

        # Leases in one shard must not run out because another one's server is away.
        if await self._rounds.round(range(self._store.shards), ask, within_s=within_s) is None:
            return
        if self._occasions and self._beats % CARD_EVERY == 1:
            await self._declare()
        await self._read_drain()
        self._sent_info = info
        self._answered()

    async def _look_at_history(self, shard: int) -> None:
        """Where the data is not what it was, nothing that was written for us is certain to be there any more."""
        unfit = ""
        try:
            if await self._lineage.look(shard) is None:
                return
        except ConfigError as error:
            unfit = str(error)
        self._anew = True
        self._handlers_loop.call_soon_threadsafe(self._owner.history_changed, unfit)
        self._ask_about_all()

    async def _read_drain(self) -> None:
        """Once we were asked, a drain goes on by itself."""
        if self._asked_to_drain:
            return
        whole = await drains.asked(self._store, self._store.by)
        if whole is not None:
            self._asked_to_drain = True
            self._owner.asked_to_drain(whole)

    async def _declare(self) -> None:
        """Say which kinds have a hook: a job that is cancelled before it starts needs somebody who knows."""
        keep_s = self._settings.beat_s * CARD_EVERY * HOOKS_KEPT_CARDS
        for shard in range(self._store.shards):
            await self._store.declare(shard, self._occasions, keep_s=keep_s)

    def _notice(self, channel: bytes) -> None:
        if channel == self._store.rules_channel:
            self._ask_about_all()
            return
        jid = channel[len(self._store.notice_prefix) :].decode("ascii", "replace")
        if jid in self._owner.running:
            self._ask_soon([jid], "pubsub")

    def _confirmed(self, channels: frozenset[bytes]) -> None:
        if self._store.rules_channel in channels:
            self._ask_about_all()
        cut = len(self._store.notice_prefix)
        self._ask_soon([channel[cut:].decode("ascii", "replace") for channel in channels], "resync")

    def _ask_about_all(self) -> None:
        """One round at a time, however many are announced: what comes meanwhile asks for one more round."""
        self._all_asked = True
        if self._asking_all is None or self._asking_all.done():
            self._asking_all = self._spawn(self._ask_all())

    async def _ask_all(self) -> None:
        while self._all_asked:
            self._all_asked = False
            await self._ask_about(list(self._owner.running), "pubsub")

    def _ask_soon(self, jids: Iterable[str], heard_by: str) -> None:
        """Ask about these jobs in the same turn of the loop as others that are asked for meanwhile."""
        if not self._asked:
            self._spawn(self._ask_those(heard_by))
        self._asked.update(jids)

    async def _ask_those(self, heard_by: str) -> None:
        asked, self._asked = self._asked, set()
        await self._ask_about(asked, heard_by)

    async def _ask_about(self, asked: Iterable[str], heard_by: str) -> None:
        by_shard: dict[int, list[Attempt]] = {}
        for jid in asked:
            attempt = self._owner.running.get(jid)
            if attempt is not None:
                by_shard.setdefault(attempt.shard, []).append(attempt)

        async def ask(shard: int) -> None:
            attempts = by_shard[shard]
            try:
                for start in range(0, len(attempts), BATCH):
                    await self._ask(shard, attempts[start : start + BATCH], heard_by)
            except Exception as error:
                self._missed(error)  # the next beat, or the next confirmation, asks again

        await asyncio.gather(*map(ask, by_shard))

    async def _ask(self, shard: int, attempts: list[Attempt], heard_by: str, *, info: bytes = b"") -> None:
        told = [attempt.progress for attempt in attempts]
        renewals = [
            Renewal(attempt.jid, attempt.token_id, *(progress or ("", "")))
            for attempt, progress in zip(attempts, told, strict=True)
        ]
        answers = await self._store.renew(shard, renewals, info=info)
        for attempt, progress, answer in zip(attempts, told, answers, strict=True):
            if progress is not None and attempt.progress is progress:
                attempt.progress = None
            self._hear(attempt, answer, heard_by)

    def _hear(self, attempt: Attempt, answer: RenewAnswer, heard_by: str) -> None:
        if answer.word == "running" or attempt.over:
            return
        if answer.word == "cancelling":
            facts = TripFacts(
                cause=Cause.of(answer.cause),
                reason=answer.reason,
                source=answer.source,
                grace_s=answer.grace_ms / 1000,
                left_s=answer.left_ms / 1000,
            )
            now = self._clock.monotonic()
            attempt.deadline_at = now + facts.left_s
            if attempt.asked_at is None:
                attempt.asked_at = now - answer.asked_ms / 1000
                self._meter.signalled(heard_by, answer.asked_ms / 1000)
            attempt.token.trip(facts)
            self._handlers_loop.call_soon_threadsafe(self._owner.heard, attempt, facts, heard_by)
        else:
            state = answer.state if answer.word == "stale" else "missing"
            self._handlers_loop.call_soon_threadsafe(self._owner.superseded, attempt, state)

    def _answered(self) -> None:
        self._last_answer = self._clock.monotonic()
        self._outage.fine("beat")

    def _missed(self, error: Exception) -> None:
        self._outage.began("beat", error, since=self._last_answer)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._questions.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._questions.discard)
        return task
