"""
The story: five acts on a real bus, each of which waits for what it asked for and for nothing else.

    1  hundreds of batches are enqueued, and one is cancelled before anybody could start it
    2  a job is cancelled while it works
    3  a job that swallows its cancel is finalized by the watchdog
    4  a worker is killed in the middle, and its jobs run again elsewhere
    5  every batch is done

An act that does not come to its end in time ends the story, not the demo: what happened is read from the recorded
histories, and `verdict.py` says which promise that leaves open.
"""

from __future__ import annotations

import asyncio
from typing import Any

from rich.markup import escape

from busq import tasks
from busq.cli.demo.app import Packed, pack, recount, squeeze
from busq.cli.demo.cast import SETTINGS, Actor, Cast
from busq.cli.demo.record import AT_WORK, DEAF, SPARE, Record, Recorded
from busq.cli.demo.scene import Player, Scene
from busq.cli.demo.tree import Tree
from busq.client.bus import Bus
from busq.client.handle import JobHandle, value_of
from busq.client.spec import JobSpec
from busq.errors import BusqError
from busq.protocol.cancel import CancelAnswer
from busq.protocol.job import Job
from busq.protocol.states import State
from busq.store.reader import Reader
from busq.store.store import Store

LOOK_EVERY_S = 0.05
DRAW_EVERY_S = 0.25
SEARCH_S = 3.0
SEARCHES = 4
NEVER_ENDS_S = 3600.0


class Story:
    def __init__(self, tree: Tree, scene: Scene, cast: Cast, url: str, *, limit_s: float) -> None:
        self.record = Record()
        self._tree = tree
        self._scene = scene
        self._cast = cast
        self._limit_s = limit_s
        self._bus = Bus(url, **SETTINGS)
        self._store = Store(self._bus.settings, by="demo")
        self._reader = Reader(self._store)
        self._handles: list[JobHandle[Any]] = []

    async def play(self) -> Record:
        """Play all acts, or as far as they get within the limit; then read what was recorded and stop everybody."""
        try:
            await self._store.open()
            await self._enqueue_everything()
            self._cast.start()
            await self._whole_or_in_part()
            await self._read_the_record()
            self._scene.say("every process is asked to drain and end")
            await self._cast.stop()
            self.record.exits = {actor.name: actor.ended for actor in self._cast.actors if not actor.killed}
            return self.record
        finally:
            await self._bus.close()
            await self._store.close()

    async def _whole_or_in_part(self) -> None:
        watching = asyncio.create_task(self._watch())
        acting = asyncio.create_task(self._acts())
        try:
            async with asyncio.timeout(self._limit_s):
                await asyncio.wait({acting, watching}, return_when=asyncio.FIRST_COMPLETED)
                for task in (acting, watching):
                    if task.done():
                        task.result()
        except TimeoutError:
            self.record.trouble = f"the story did not come to its end within {self._limit_s:g} s"
        finally:
            await tasks.end(acting, watching)
        if self.record.trouble:
            self._scene.say(escape(self.record.trouble), "bold red")

    async def _acts(self) -> None:
        packing = asyncio.create_task(self._gather_batches())
        try:
            await self._everybody_on_the_roster()
            await self._cancel_one_at_work()
            await self._cancel_the_deaf_one()
            await self._kill_a_worker()
            await packing
        finally:
            await tasks.end(packing)
        self._scene.say("every batch is compressed and hashed", "green")

    # 1. Everything goes in ---------------------------------------------------------------------------------

    async def _enqueue_everything(self) -> None:
        root, names = self._tree.root, self._tree.names
        batches = enumerate(self._tree.batches(), start=1)
        specs: list[JobSpec[Any]] = [pack.options(jid=f"pack-{n:03}").spec(root, batch) for n, batch in batches]
        others: list[JobSpec[Any]] = [
            pack.options(jid=SPARE).spec(root, names[:1]),
            squeeze.options(jid=AT_WORK).spec(root, names, NEVER_ENDS_S),
            recount.options(jid=DEAF).spec(root, names[:50]),
        ]
        began = self._scene.clock
        handles = await self._bus.enqueue_many([*specs, *others])
        self._handles = handles[: len(specs)]
        took_ms = (self._scene.clock - began) * 1000
        self._scene.say(f"{len(handles)} jobs enqueued in {took_ms:.0f} ms; no worker is running yet")
        answer = await self._cancel(SPARE, "nobody wants it any more")
        self._scene.say(f"[b]{SPARE}[/] cancelled while it waits in its queue: answer {answer.verdict!s}", "yellow")

    async def _everybody_on_the_roster(self) -> None:
        while True:
            if await self._learn_names():
                break
            await asyncio.sleep(LOOK_EVERY_S)
        self._scene.say(f"on the roster: {', '.join(actor.name for actor in self._cast.actors)}")

    async def _learn_names(self) -> bool:
        cards = {member.card.pid: member.name for member in await self._bus.workers() if member.card is not None}
        self.record.names = {cards[each.pid]: each.name for each in self._cast.actors if each.pid in cards}
        return len(self.record.names) == len(self._cast.actors)

    # 2. and 3. Cancels -------------------------------------------------------------------------------------

    async def _cancel_one_at_work(self) -> None:
        await self._at_work(AT_WORK)
        answer = await self._cancel(AT_WORK, "found something better to do")
        self._scene.say(f"[b]{AT_WORK}[/] cancelled while it works: answer {answer.verdict!s}", "yellow")
        job = await self._bus.wait(AT_WORK)
        times = {event.name: event.at for event in await self._bus.history(AT_WORK) if event.at is not None}
        took = ""
        if "requested" in times and "observed" in times:
            took_ms = (times["observed"] - times["requested"]).total_seconds() * 1000
            took = f"; its handler knew after {took_ms:.0f} ms"
        self._scene.say(f"[b]{AT_WORK}[/] is {job.state!s}, {job.ended!s}{took}", "green")

    async def _cancel_the_deaf_one(self) -> None:
        await self._at_work(DEAF)
        answer = await self._cancel(DEAF, "it never ends by itself")
        self._scene.say(f"[b]{DEAF}[/] cancelled, and swallows it: answer {answer.verdict!s}", "yellow")
        job = await self._bus.wait(DEAF)
        by = [event.by for event in await self._bus.history(DEAF) if event.name == "finalized"]
        who = ", ".join(self.record.names.get(name, name) for name in by)
        self._scene.say(f"[b]{DEAF}[/] is {job.state!s}, {job.ended!s}, finalized by {who}", "green")
        self.record.was_suspect = any(each.jid == DEAF for each in await self._reader.suspects())
        if self.record.was_suspect:
            self._scene.say(f"[b]{DEAF}[/] is on the list of suspects: its code still runs", "yellow")

    async def _at_work(self, jid: str) -> Job:
        """Wait until a job has been running long enough to report progress."""
        job = await self._bus.get(jid)
        while job.state is not State.RUNNING or job.progress is None:
            await asyncio.sleep(LOOK_EVERY_S)
            job = await self._bus.get(jid)
        return job

    async def _cancel(self, jid: str, reason: str) -> CancelAnswer:
        return await self._bus.cancel(jid, reason=reason, source="busq demo")

    # 4. A worker dies --------------------------------------------------------------------------------------

    async def _kill_a_worker(self) -> None:
        root, names = self._tree.root, self._tree.names
        jids = [f"squeeze-{n}" for n in range(1, SEARCHES + 1)]
        await self._bus.enqueue_many(squeeze.options(jid=jid).spec(root, names, SEARCH_S) for jid in jids)
        deaf_at = next(event.by for event in await self._bus.history(DEAF) if event.name == "started")
        # First the worker whose slot was lost to a handler that will not stop: killing it helps.
        order = sorted(self._cast.workers, key=lambda each: self._name_of(each) != deaf_at)
        victim, held = await self._freeze_one_at_work(order)
        self.record.killed, self.record.held = self._name_of(victim), held
        victim.kill()
        self._scene.say(f"{victim.name} killed (SIGKILL) while it ran [b]{', '.join(held)}[/]", "bold red")
        self._scene.say(f"its jobs wait until its lease of {SETTINGS['lease_s']:g} s is over")
        for jid in held:
            await self._reclaimed(jid)
        self._scene.say(f"reclaimed by the watchdog: [b]{', '.join(held)}[/]", "yellow")
        if self.record.was_suspect and DEAF not in [each.jid for each in await self._reader.suspects()]:
            self._scene.say(f"[b]{DEAF}[/] is no suspect any more: its process is gone", "green")
        ended = [await self._bus.wait(jid) for jid in held]
        self._scene.say(
            f"[b]{', '.join(held)}[/] ran again: {', '.join(sorted({str(e.state) for e in ended}))}", "green"
        )

    async def _reclaimed(self, jid: str) -> None:
        while True:
            if any(event.name == "reclaimed" for event in await self._bus.history(jid)):
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def _freeze_one_at_work(self, order: list[Actor]) -> tuple[Actor, list[str]]:
        """Freeze a worker that holds running jobs, so that what it holds cannot change before it is killed."""
        while True:
            for actor in order:
                actor.freeze()
                held = []
                try:
                    held = await self._held_for_good(actor)
                finally:
                    if not held:
                        actor.thaw()
                if held:
                    return actor, held
                await asyncio.sleep(LOOK_EVERY_S)

    async def _held_for_good(self, frozen: Actor) -> list[str]:
        """What is seen twice in a row: calls that were on their way when the worker was frozen have landed then."""
        before = await self._held_by(frozen)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = await self._held_by(frozen)
            if now == before:
                return now
            before = now

    async def _held_by(self, actor: Actor) -> list[str]:
        name = self._name_of(actor)
        return sorted(job.jid for job in await self._bus.list(state=State.RUNNING) if job.owner == name)

    def _name_of(self, actor: Actor) -> str:
        return next((name for name, called in self.record.names.items() if called == actor.name), "")

    # 5. All batches ----------------------------------------------------------------------------------------

    async def _gather_batches(self) -> None:
        async def one(handle: JobHandle[Any]) -> None:
            job = await handle.wait()
            self.record.packs.append(job)
            if job.state is State.SUCCEEDED:
                packed: Packed = value_of(job, Packed)
                self._scene.batch_done(len(packed.digests), packed.bytes_in, packed.bytes_out)

        await asyncio.gather(*(one(handle) for handle in self._handles))

    # Beside the acts ---------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Keep the scene up to date; return only when one of the cast has ended unasked."""
        while (fallen := self._cast.fallen()) is None:
            await self._look()
            await asyncio.sleep(DRAW_EVERY_S)
        self.record.trouble = f"{fallen.name} ended unasked (exit status {fallen.ended}): {fallen.last_words()}"

    async def _look(self) -> None:
        cards = {member.card.pid: member.card for member in await self._bus.workers() if member.card is not None}
        stats = await self._bus.stats()
        self._scene.queued = stats.now[State.QUEUED]
        self._scene.players = [
            Player(
                name=actor.name,
                pid=actor.pid,
                running=card.running if card is not None and actor.name != "watchdog" else None,
                suspects=card.suspects if card is not None else 0,
                note="killed" if actor.killed else "" if card is not None else "starting",
            )
            for actor in self._cast.actors
            for card in [cards.get(actor.pid)]
        ]

    async def _read_the_record(self) -> None:
        for jid in dict.fromkeys([SPARE, AT_WORK, DEAF, *self.record.held]):
            try:
                self.record.special[jid] = Recorded(await self._bus.get(jid), await self._bus.history(jid))
            except BusqError as error:
                self.record.trouble = self.record.trouble or str(error)
