"""
One job, two workers on the roster, two watchdogs, and worker `a` that is asked to drain.

Nobody knows more than it has been told: `a` drains once it has read on its beat that it shall, and runs what it was
told to run until it is told otherwise; a watchdog does what it has seen to be due, which others may have done since.
`Crew.look` says what holds after every step:

    exactly one attempt lives while a job runs, and none otherwise
    the record and the entry agree, and no entry is out of everybody's sight
    who was asked to stop never waits for another attempt, and nobody else stops
    only failures count as failures, and only lost workers as losses: a drain costs nothing
    a wish to drain leaves the roster together with its worker
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from busq.protocol.keys import GROUP
from busq.protocol.states import State, Verb, is_terminal
from busq.store import drains, roster, watch
from busq.store.drains import Whole
from busq.store.forms import Refusal
from busq.store.store import Store
from busq.store.streams import Entry
from tests.orders.kennel import Kennel
from tests.orders.race import ROUNDS, Act, Race
from tests.store.bench import DEADLINE_S, LEASE_S, QUEUE, Held

STOPPED = (State.CANCELLING, State.CANCELLED)
ATTEMPTED = (State.RUNNING, State.CANCELLING)


@dataclass
class Seen:
    """What a watchdog has seen: overdue cancels, jobs that are due, and what workers without a lease hold."""

    overdue: list[str] = field(default_factory=list)
    due: list[str] = field(default_factory=list)
    lost: dict[str, list[Entry]] = field(default_factory=dict)


class Crew(Race):
    bench: Kennel

    def __init__(self, bench: Kennel, held: Held) -> None:
        super().__init__(bench, held)
        self.alive: dict[str, str] = {}  # attempts by token: whose
        self.runs: set[str] = set()  # workers that run one, as far as they know
        self.failed = self.lost = 0
        self.holds = False  # an entry that `a` has read and not begun
        self.asked = self.draining = self.left = False
        self.seen = {"1": Seen(), "2": Seen()}

    # Workers ---------------------------------------------------------------------------------------------

    async def _begin(self, held: Held, by: Store, *, adopt: bool = False) -> tuple[Verb, str]:
        verb, word = await super()._begin(held, by, adopt=adopt)
        if word == "started":
            assert not self.alive, f"an attempt of {by.by} begins while one of {set(self.alive.values())} lives"
            self.alive[held.token] = by.by
            self.runs.add(by.by)
        return verb, word

    async def take_a(self) -> None:
        """It begins what it has read, and reads if there is nothing; unless it drains."""
        if self.draining or self.left or "a" in self.runs:
            return
        if not self.holds:
            for entry in await self.bench.read(self.bench.a):
                self.a.entry, self.holds = entry.id, True
        if self.holds:
            self.holds = False
            await self.step(lambda race: race._begin(self.a, self.bench.a))

    async def take_b(self) -> None:
        """It beats, and begins what nobody has read before."""
        await self.bench.beat(self.bench.b)
        for entry in await self.bench.read(self.bench.b):
            self.b.entry = entry.id
            await self.step(lambda race: race._begin(self.b, self.bench.b))

    async def end_a(self) -> None:
        await self._ends("a", Race.finish_a)

    async def fail_a(self) -> None:
        await self._ends("a", Race.retry_a)

    async def end_b(self) -> None:
        await self._ends("b", Race.finish_b)

    async def _ends(self, who: str, act: Act) -> None:
        """An attempt that a worker runs, as far as it knows."""
        if who not in self.runs:
            return
        self.runs.remove(who)
        held = self.a if who == "a" else self.b
        lived = self.alive.pop(held.token, None)
        if act is Race.retry_a and lived and not self.cancelled:
            self.failed += 1
        word = await self.step(act)
        assert (word == "settled") == (lived is not None), f"an attempt that {'lives' if lived else 'is over'}: {word}"

    # Worker `a` drains -----------------------------------------------------------------------------------

    async def ask(self) -> None:
        """Somebody writes the wish down; nothing of a job is changed by it."""
        on_roster = await self.bench.redis.zscore(self.bench.a.keys(0).workers, "a") is not None
        word = await self._untouched(drains.ask(self.bench.dog, "a", Whole.WORKER))
        assert (word != "missing") == on_roster, f"a worker that is {'' if on_roster else 'not '}there: {word}"
        self.asked = self.asked or on_roster
        await self.look()

    async def beat_a(self) -> None:
        if self.left:
            return
        held = [self.a] if "a" in self.runs else []

        async def beat(_: Race) -> tuple[Verb, str]:
            (answer,) = await self.bench.beat(self.bench.a, held)
            return Verb.RENEW, answer.word

        if held:
            lives = self.a.token in self.alive
            word = await self.step(beat)
            assert (word != "stale") == lives, f"an attempt that {'lives' if lives else 'is over'} is told {word}"
            if not lives:
                self.runs.remove("a")
        else:
            await self.bench.beat(self.bench.a)
        wish = await drains.asked(self.bench.a, "a")
        assert (wish is not None) == self.asked, "it hears on its beat whether it is to drain"
        self.draining = self.draining or wish is not None

    async def hand_back_a(self) -> None:
        """The wait in which jobs may end is over."""
        if self.draining:
            await self._ends("a", Race.release_a)

    async def give_back_a(self) -> None:
        """What is under its name, and of which it runs nothing."""
        if not self.draining or self.left or "a" in self.runs:
            return
        for entry in await self.bench.streams["a"].pending():
            refusal = Refusal(jid=self.jid, entry=entry.id, why="no_slot", unknown=True)
            self.holds = False
            self.alive = {token: whose for token, whose in self.alive.items() if whose != "a"}

            async def give(_: Race, refusal: Refusal = refusal) -> tuple[Verb, str]:
                return Verb.REFUSE, (await self.bench.a.refuse(0, QUEUE, [refusal]))[0][0]

            await self.step(give)

    async def leave_a(self) -> None:
        """Last, when it runs nothing any more."""
        if not self.draining or self.left:
            return
        assert "a" not in self.runs
        await self.give_back_a()
        word = await self._untouched(self.bench.a.forget(0, "a", [QUEUE], own_wish=True))
        assert word == "forgotten", "a worker that has drained holds nothing"
        self.left, self.asked = True, False
        await self.look()

    # Watchdogs -------------------------------------------------------------------------------------------

    async def lapse(self) -> None:
        """Nobody has beaten for a lease; a cancel that was asked for before is overdue, too."""
        self.bench.clock.advance(LEASE_S)

    async def see_lapsed(self, dog: str) -> None:
        await self.lapse()
        await self.see(dog)

    async def see(self, dog: str) -> None:
        store, own, now_ms = self.bench.dogs[dog], self.bench.a.keys(0), self.bench.clock.now_ms
        members = [member.name for member in await roster.members(store, 0) if member.lease_ms <= now_ms]
        self.seen[dog] = Seen(
            [jid for jid, *_ in (await watch.due(store, 0, own.deadlines, now_ms)).jobs],
            [jid for jid, *_ in (await watch.due(store, 0, own.scheduled, now_ms)).jobs],
            {name: await watch.held_by(store, 0, QUEUE, name) for name in members},
        )

    async def act(self, dog: str) -> None:
        """On what it has seen, in the order of its sweep."""
        store, seen = self.bench.dogs[dog], self.seen[dog]
        for jid in seen.overdue:
            await self.step(lambda _, jid=jid: self._finalized(store, jid))
        for owner, entries in seen.lost.items():
            for entry in entries:
                await self.step(lambda _, owner=owner, entry=entry: self._reclaimed(store, owner, entry))
        for jid in seen.due:
            await self.step(lambda _, jid=jid: _promoted(store, jid))

    async def _finalized(self, store: Store, jid: str) -> tuple[Verb, str]:
        (answer,) = await store.finalize(0, QUEUE, [(jid, False)])
        if answer.word == "finalized":
            self.alive.clear()
        return Verb.FINALIZE, answer.word

    async def _reclaimed(self, store: Store, owner: str, entry: Entry) -> tuple[Verb, str]:
        good = await self._has_lease(owner)
        lived = [token for token, whose in self.alive.items() if whose == owner]
        ((word, _),) = await store.reclaim(0, QUEUE, owner, [(entry.jid, entry.id)], owner_gone=False, failure=b"\x01")
        assert (word == "alive") == good, f"{owner} has {'a good' if good else 'no'} lease, and its entry is {word}"
        if word == "reclaimed":
            self.lost += len(lived)
        if word in ("reclaimed", "ended"):
            for token in lived:
                del self.alive[token]
        return Verb.RECLAIM, word

    async def _has_lease(self, worker: str) -> bool:
        until = await self.bench.redis.zscore(self.bench.a.keys(0).workers, worker)
        return until is not None and until > self.bench.clock.now_ms

    async def forget(self, dog: str) -> None:
        """Those whom it has seen without a lease, once it has taken over what they held."""
        for worker in self.seen[dog].lost:
            good = await self._has_lease(worker)
            word = await self._untouched(self.bench.dogs[dog].forget(0, worker, [QUEUE]))
            assert (word == "alive") == good, f"{worker} has {'a good' if good else 'no'} lease, and is {word}"
            if word == "forgotten" and worker == "a":
                self.asked = False
            await self.look()

    # What holds ------------------------------------------------------------------------------------------

    async def step(self, act: Act) -> str:
        word = await super().step(act)
        await self.look()
        return word

    async def _untouched(self, call: Awaitable[str]) -> str:
        before = await self.bench.record(self.jid)
        word = await call
        assert await self.bench.record(self.jid) == before, "it is no word about a job"
        return word

    async def look(self) -> None:
        own = self.bench.a.keys(0)
        pipe = self.bench.redis.pipeline(transaction=False)
        pipe.hgetall(own.job(self.jid))
        pipe.xrange(own.stream(QUEUE))
        pipe.xpending_range(own.stream(QUEUE), GROUP, "-", "+", 100)
        pipe.xinfo_groups(own.stream(QUEUE))
        for index in (own.cancelled, own.deadlines, own.scheduled):
            pipe.zscore(index, self.jid)
        pipe.zscore(own.workers, "a")
        pipe.hget(own.drains, "a")
        record, entries, pending, (group,), marked, deadline, due, lease, wish = await pipe.execute()
        state = State(record[b"state"].decode())
        held = {each["message_id"]: each["consumer"] for each in pending}
        self._one_attempt_lives(state, record)
        self._entry_and_record_agree(state, record, [entry for entry, _ in entries], held, group)
        unread = state is State.CANCELLED and bool(entries)
        assert (marked is not None) == (state is State.CANCELLING or unread), f"{state}, unread: {unread}, {marked}"
        assert (deadline is not None) == (state is State.CANCELLING), "its deadline is watched while it is to stop"
        assert (due is not None) == (state is State.SCHEDULED), "it is due some time while it waits for that"
        assert not self.cancelled or state in STOPPED, f"it was asked to stop, and is {state}"
        assert self.cancelled or state not in STOPPED, f"nobody has asked it to stop, and it is {state}"
        assert int(record.get(b"failures", 0)) == self.failed, "only a handler's failure is one"
        assert int(record.get(b"losses", 0)) == self.lost, "only a lost worker is a loss"
        assert b"refusals" not in record, "a hand-back is no refusal that counts"
        assert (wish is not None) == self.asked, "a wish stays as long as its worker is on the roster"
        assert lease is not None or wish is None, "no wish outlives its worker"

    def _one_attempt_lives(self, state: State, record: dict[bytes, bytes]) -> None:
        current = [record[b"token"].decode()] if state in ATTEMPTED else []
        assert list(self.alive) == current, f"{state}, and {len(self.alive)} attempts live"

    @staticmethod
    def _entry_and_record_agree(
        state: State, record: dict[bytes, bytes], entries: list[bytes], held: dict[bytes, bytes], group: dict[str, Any]
    ) -> None:
        named = record.get(b"entry")
        if state in (State.QUEUED, *ATTEMPTED):
            assert entries == [named], f"{state}: its entry is {named}, and the queue has {entries}"
        elif state is State.CANCELLED:
            assert entries in ([], [named]), f"cancelled, and the queue has {entries}"
        else:
            assert entries == [], f"{state}, and the queue has {entries}"
        if state in ATTEMPTED:
            assert held.get(entries[0]) == record[b"owner"], "the entry of an attempt is under its owner's name"
        assert held.keys() <= set(entries), "nobody holds an entry that is not there"
        lost = [entry for entry in entries if entry not in held and _at(entry) <= _at(group["last-delivered-id"])]
        assert not lost, "an entry was shown to somebody who does not hold it any more: nobody will see it again"

    # The end ---------------------------------------------------------------------------------------------

    async def come_to_an_end(self) -> None:
        for act in (self.beat_a, self.hand_back_a, self.leave_a):
            await act()
        for _ in range(ROUNDS):
            state = await self.bench.state(self.jid)
            if state and is_terminal(state) and not await self.bench.entries():
                break
            self.bench.clock.advance(LEASE_S + DEADLINE_S)
            for work in (self.see, self.act, self.forget):
                await work("1")
            await self.take_b()
            await self.end_b()
        assert await self.bench.state(self.jid) is (State.CANCELLED if self.cancelled else State.SUCCEEDED)
        for store in (self.bench.a, self.bench.b):
            assert await store.forget(0, store.by, [QUEUE], own_wish=True) == "forgotten"
        own = self.bench.a.keys(0)
        assert await self.bench.redis.exists(own.workers, own.drains) == 0
        await self.bench.redis.delete(own.suspects)


async def _promoted(store: Store, jid: str) -> tuple[Verb, str]:
    return Verb.PROMOTE, (await store.promote(0, QUEUE, [jid]))[0][0]


def _at(entry: bytes) -> tuple[int, int]:
    ms, _, count = entry.partition(b"-")
    return int(ms), int(count)
