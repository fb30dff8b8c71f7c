"""
Somebody who speaks to the scripts out of turn: late, twice, for others, without looking.

A ghost is a worker of bare verbs: it reads entries, starts, ends, and tells its endings again. Beside it stands a
watchdog that acts on an old view. Neither real workers nor real watchdogs are there, so each step finds what the one
before it has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

import busq
from busq.config import Settings
from busq.errors import BusqError
from busq.protocol.cancel import CancelRequest, Cause
from busq.protocol.states import Verb
from busq.store.forms import Delivery, KindTerms, NewJob, Settlement
from busq.store.store import Store
from busq.store.streams import Entry, Streams
from sabotages.recorder import Recorder

QUEUE = "haunted"
TERMS = KindTerms("ghostly", retries=3, max_losses=5, grace_ms=300, slack_ms=250)
FAILURE = b""
"""No error is told: what is told is not looked at here."""


class Ghost:
    def __init__(self, settings: Settings, recorder: Recorder, name: str) -> None:
        self.store = Store(settings, by=name)
        self.name = name
        self._recorder = recorder
        self._streams = Streams(self.store, [QUEUE])
        self._held: dict[str, Entry] = {}
        self._tokens: dict[str, str] = {}
        self._attempts: dict[str, int] = {}
        self._count = 0

    async def open(self) -> None:
        await self.store.open()
        await self._streams.open()
        await self.live()

    async def live(self) -> None:
        await self.store.renew(0, [])

    async def enqueue(self, jid: str, *, call: str = "", **fields: str) -> str:
        job = NewJob(jid=jid, kind="ghostly", queue=QUEUE, payload=b"\x01\x92\x90\x80", delay_ms=0,
                     fields=tuple(each for pair in fields.items() for each in pair))  # fmt: skip
        op = self._recorder.asked("enqueue", jid)
        [(word, _)] = await self.store.enqueue([job], call=call or f"call-{jid}")
        admitted = word in ("enqueued", "tombstoned", "fenced")
        self._recorder.answered("enqueue", op, jid, word, kind="ok" if admitted else "fail")
        return word

    async def read(self) -> None:
        for entry in await self._streams.read(self._streams.places, each=10, block_ms=0):
            self._held[entry.jid] = entry

    async def start(self, jid: str, *, entry: Entry | None = None) -> None:
        self._count += 1
        token = f"{self.name}/{self._count}"
        held = entry or self._held.get(jid)
        if held is None:
            return  # somebody else has read it
        answers = await tried(self.store.start(0, QUEUE, [Delivery(held.id, jid, "ghostly", token)], [TERMS]))
        if answers and answers[0].word == "started":
            self._tokens[jid], self._attempts[jid] = token, answers[0].attempt

    def held(self, jid: str) -> Entry:
        return self._held[jid]

    def has(self, jid: str) -> bool:
        return jid in self._held

    async def end(self, jid: str, verb: Verb = Verb.FINISH, *, token: str = "") -> None:
        if jid not in self._held:
            return
        settlement = Settlement(
            jid=jid, entry=self._held[jid].id, token=token or self._tokens.get(jid, "none"),
            attempt=self._attempts.get(jid, 1), outcome="succeeded" if verb is Verb.FINISH else "failed",
            result=b"\x01\x00" if verb is Verb.FINISH else b"",
        )  # fmt: skip
        await tried(self.store.settle(verb, 0, QUEUE, [settlement]))

    async def run(self, jid: str, **fields: str) -> None:
        """Enqueued, read, started."""
        await self.enqueue(jid, **fields)
        await self.read()
        await self.start(jid)

    async def cancel(self, jid: str, *, grace_s: float | None = None, tombstone_s: float | None = None) -> str:
        wish = CancelRequest(cause=Cause.USER, grace_s=grace_s, tombstone_s=tombstone_s)
        op = self._recorder.asked("cancel", jid)
        self._count += 1
        [answer] = await self.store.cancel([jid], wish, request=f"{self.name}-{self._count}")
        self._recorder.answered("cancel", op, jid, str(answer.verdict))
        return str(answer.verdict)


async def tried(call: Coroutine[Any, Any, Any]) -> Any:
    """The answer, or None: in a sabotaged tree a script may well break down, which is not what is to be shown."""
    with suppress(RedisError, BusqError):
        return await call


async def haunt(url: str, given: dict[str, Any], recorder: Recorder) -> None:
    # Nothing may run out here but what is meant to.
    settings = Settings.load({}, url=url, **given | {"lease_s": 60.0})
    ghost, other, dog = (Ghost(settings, recorder, name) for name in ("ghost", "other", "blind-dog"))
    for each in (ghost, other, dog):
        await each.open()
    for act in (_twice, _too_late, _after_a_cancel, _below_a_cancel, _without_looking, _tombstones, _left_behind):
        with suppress(KeyError, RedisError, BusqError):  # in a sabotaged tree; the next one is a story of its own
            await act(ghost, other, dog, url)
    await other.store.forget(0, other.name, [QUEUE], own_wish=True)
    await dog.store.forget(0, dog.name, [QUEUE], own_wish=True)
    # The ghost itself stays on the roster and is heard of no more: its lease is over in a moment.
    lease = Store(Settings.load({}, url=url, **given | {"lease_s": 0.5}), by=ghost.name)
    await lease.open()
    await lease.renew(0, [])
    for store in (lease, ghost.store, other.store, dog.store):
        await store.close()


async def _twice(ghost: Ghost, other: Ghost, dog: Ghost, url: str) -> None:
    """One and the same call, sent again at every moment of its job."""
    await ghost.enqueue("twice")
    await ghost.enqueue("twice")
    await ghost.read()
    await ghost.enqueue("twice")
    await ghost.start("twice")
    await ghost.enqueue("twice")
    await ghost.end("twice")
    await ghost.end("twice")
    await ghost.enqueue("twice")
    await ghost.enqueue("twice", call="another-call")


async def _too_late(ghost: Ghost, other: Ghost, dog: Ghost, url: str) -> None:
    """Attempts that are none any more, or belong to somebody else."""
    await ghost.run("late")
    await other.start("late", entry=ghost.held("late"))
    for verb in (Verb.FINISH, Verb.RETRY, Verb.RELEASE):
        await ghost.end("late", verb, token="ghost/of-old")
    await ghost.end("late", Verb.RETRY)  # another attempt follows, and this one speaks again
    await ghost.end("late", Verb.FINISH)
    await asyncio.sleep(0.01)
    for _ in range(2):
        await tried(dog.store.promote(0, QUEUE, ["late"]))
    await other.read()
    await ghost.start("late")  # by the entry of its first attempt
    await other.start("late")
    await ghost.end("late", Verb.FINISH)
    await ghost.end("late", Verb.FINISH, token="ghost/of-old")
    await other.end("late")
    await other.start("late")
    await ghost.end("late", token="ghost/of-old")


async def _after_a_cancel(ghost: Ghost, other: Ghost, dog: Ghost, url: str) -> None:
    """Whatever an attempt says after a cancel was accepted, and whatever starts then."""
    for verb in (Verb.FINISH, Verb.RETRY, Verb.RELEASE):
        jid = f"asked-{verb}"
        await ghost.run(jid)
        await ghost.cancel(jid)
        await ghost.cancel(jid)
        await ghost.end(jid, verb)
        await ghost.cancel(jid)
        await ghost.end(jid, token="ghost/of-old")
    await ghost.enqueue("asked-unread")
    await ghost.read()
    await ghost.cancel("asked-unread")
    await ghost.start("asked-unread")
    await ghost.run("asked-final")
    await ghost.cancel("asked-final", grace_s=0.0)
    await asyncio.sleep(0.3)  # beat + force: its deadline
    for _ in range(2):
        await tried(dog.store.finalize(0, QUEUE, [("asked-final", False)]))
        await ghost.end("asked-final")


async def _below_a_cancel(ghost: Ghost, other: Ghost, dog: Ghost, url: str) -> None:
    """What has been decided for a job without a word in its record."""
    async with busq.Bus(url) as bus:
        await ghost.enqueue("in-group", group="g")
        await ghost.read()
        await bus.cancel_where(group="g")
        await ghost.start("in-group")
        rule = await bus.cancel_where(group="standing", standing=True, until=3600)
        await ghost.enqueue("too-young", group="standing")
        await ghost.read()
        if ghost.has("too-young"):
            await ghost.start("too-young")
            await ghost.end("too-young")
        await bus.revoke(rule.id)
        await ghost.run("parent")
        await ghost.enqueue("child", parent="parent")
        await ghost.read()
        await ghost.cancel("parent")
        await ghost.enqueue("late-child", parent="parent")
        await ghost.start("child")
        await ghost.end("child")
        await ghost.end("parent")


async def _without_looking(ghost: Ghost, other: Ghost, dog: Ghost, url: str) -> None:
    """A watchdog with an old view, and a job in each state that it may find."""
    await ghost.run("looked-after")
    entry = ghost.held("looked-after").id
    for _ in range(2):
        await tried(dog.store.finalize(0, QUEUE, [("looked-after", True)]))
        await dog.store.reclaim(0, QUEUE, ghost.name, [("looked-after", entry)], owner_gone=True, failure=FAILURE)
        await tried(dog.store.promote(0, QUEUE, ["looked-after"]))
        await tried(dog.store.expire(0, ["looked-after"]))
        await ghost.cancel("looked-after", grace_s=60.0)
    await ghost.end("looked-after")
    await ghost.run("over")
    await ghost.end("over")
    await tried(dog.store.finalize(0, QUEUE, [("over", True)]))
    held = [("over", ghost.held("over").id)]
    await tried(dog.store.reclaim(0, QUEUE, "nobody", held, owner_gone=True, failure=FAILURE))
    await tried(dog.store.promote(0, QUEUE, ["over"]))
    await tried(dog.store.expire(0, ["over"]))
    await ghost.cancel("over")


async def _tombstones(ghost: Ghost, other: Ghost, dog: Ghost, url: str) -> None:
    await ghost.cancel("to-come", tombstone_s=60.0)
    await ghost.enqueue("to-come")
    await ghost.read()
    if ghost.has("to-come"):
        await ghost.start("to-come")
        await ghost.end("to-come")


async def _left_behind(ghost: Ghost, other: Ghost, dog: Ghost, url: str) -> None:
    """For the real watchdogs: one that runs nowhere, one that was asked to stop, one that was only read."""
    await ghost.run("left-running")
    await ghost.run("left-asked")
    await ghost.cancel("left-asked")
    await ghost.enqueue("left-read")
    await ghost.read()
    await tried(dog.store.forget(0, ghost.name, [QUEUE], own_wish=True))
