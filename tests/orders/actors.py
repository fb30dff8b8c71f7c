"""
Those who race over several jobs: two workers, a client and a watchdog, and what every order must keep.

A test's race is made of `Actors` and steps; `orders` lists the orders of its steps, and `try_all` tries them in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from busq.protocol.job import Job, decided, job_from_record
from busq.protocol.states import State, Verb
from busq.store.scopes import Scopes
from busq.store.store import Store
from tests.store.bench import DEADLINE_S, LEASE_S, QUEUE, Bench, Held

RETRIES = 2
ROUNDS = 12
SETTLING = 50
STOPPED = (State.CANCELLING, State.CANCELLED)
LEFT = ("deadlines", "scheduled", "timers", "waiting", "cascades", "walk", "rules", "cancelled")


AFTER = dict.fromkeys(("finish_a", "retry_a", "release_a", "renew_a"), "start_a") | dict.fromkeys(
    ("finish_child", "fail_child", "retry_child", "renew_child"), "start_child"
)


class Actors:
    """Two workers, a client and a watchdog on one bench; every job that they know of, and the promises to each."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.scopes = Scopes(bench.dog)
        self.scope = bench.fresh("scope")
        self.jids: list[str] = []
        self.doomed: set[str] = set()  # promised: it stops, and does not start
        self.spared: set[str] = set()  # promised: nothing here stops it
        self.held: dict[str, Held] = {}  # by worker `a`

    async def admit(self, **fields: Any) -> str:
        jid = await self.bench.enqueue(**fields)
        self.jids.append(jid)
        return jid

    async def start(self, by: Store, held: Held) -> None:
        answer = await self.bench.begin(held, by, retries=RETRIES)
        if answer.word == "started":
            assert held.jid not in self.doomed, f"{held.jid} is started after it was decided to stop"

    async def start_new(self, by: Store) -> None:
        """Whatever nobody has read yet."""
        for entry in await self.bench.read(by):
            await self.start(by, Held(entry.jid, entry.id))

    async def carry_out(self) -> str:
        return (await self.bench.dog.carry_out(0, step=1))[0]

    async def cascade(self) -> str:
        return (await self.bench.dog.cascade(0, step=1))[0]

    async def settle_all(self) -> None:
        for work in (self.carry_out, self.cascade):
            for _ in range(SETTLING):
                if await work() == "idle":
                    break
            else:
                raise AssertionError(f"{work.__name__} goes on and on")

    async def look(self) -> None:
        """What must hold after every step."""
        for jid, job in (await self.all_shown()).items():
            if jid in self.doomed:
                assert job.state in STOPPED, f"{jid} was decided to stop, and is shown as {job.state}"
            if jid in self.spared:
                assert job.state not in STOPPED, f"{jid} was hit, and nothing was decided about it"

    async def all_shown(self) -> dict[str, Job]:
        """Every job as a look shows it; the count of its open children is that of their set."""
        pipe = self.bench.redis.pipeline(transaction=False)
        for jid in self.jids:
            pipe.zcard(self.bench.a.keys(0).children(jid))
        found: dict[str, Job] = {}
        looks = await self.bench.a.look(0, self.jids)
        for jid, look, children in zip(self.jids, looks, await pipe.execute(), strict=True):
            job = job_from_record(jid, look.record)
            if look.wish:
                cause, reason, source, scope = look.wish
                job = decided(job, cause=cause, reason=reason, source=source, scope=scope)
            assert job.open_children == children, f"{jid}: its open children are miscounted"
            found[jid] = job
        return found

    async def come_to_an_end(self) -> None:
        """Everybody does what they always do, until every job has ended; nothing is left behind then."""
        for _ in range(ROUNDS):
            await self.settle_all()
            await self.look()
            self.bench.clock.advance(LEASE_S + DEADLINE_S)
            await self.bench.dog.finalize(0, QUEUE, [(jid, False) for jid in self.jids])
            await self.bench.dog.promote(0, QUEUE, self.jids)
            for entry, owner in (await self.bench.pending()).items():
                jid = await self._jid_of(entry)
                await self.bench.reclaim(Held(jid, entry), owner=owner.decode())
            for entry in await self.bench.read(self.bench.b):
                held = Held(entry.jid, entry.id)
                await self.start(self.bench.b, held)
                await self.bench.settle(Verb.FINISH, held, by=self.bench.b)
            if all(job.is_terminal for job in (await self.all_shown()).values()):
                break
        await self.settle_all()
        await self.look()
        for jid, job in (await self.all_shown()).items():
            assert job.is_terminal, f"{jid} does not end"
        await self._nothing_is_left()

    async def _jid_of(self, entry: bytes) -> str:
        ((_, fields),) = await self.bench.redis.xrange(self.bench.a.keys(0).stream(QUEUE), entry, entry)
        return str(fields[b"jid"].decode())

    async def _nothing_is_left(self) -> None:
        own = self.bench.a.keys(0)
        assert await self.bench.entries() == []
        assert await self.bench.pending() == {}
        pipe = self.bench.redis.pipeline(transaction=False)
        for name in LEFT:
            pipe.exists(getattr(own, name))
        assert [name for name, left in zip(LEFT, await pipe.execute(), strict=True) if left] == []
        assert not any(job.open_children for job in (await self.all_shown()).values())


def orders(steps: Sequence[str], more: int, begin: tuple[str, ...], deciding: Sequence[str]) -> list[tuple[str, ...]]:
    """Without those in which somebody ends an attempt that has not begun: it is told so, and nothing else happens."""
    others = [name for name in steps if name not in begin]
    found = [(*begin, *rest) for rest in itertools.permutations(others, more)]
    return [order for order in found if any(name in deciding for name in order) and _makes_sense(order)]


def _makes_sense(order: tuple[str, ...]) -> bool:
    return all(AFTER.get(name, order[0]) in order[: k + 1] for k, name in enumerate(order))


async def try_all(url: str, tries: Sequence[tuple[str, ...]], race: Callable[..., Awaitable[None]], **how: Any) -> None:
    async with Bench(url) as bench:
        for order in tries:
            try:
                await race(bench, order, **how)
            except AssertionError as error:
                raise AssertionError(f"in the order {', '.join(order)}: {error}") from error
