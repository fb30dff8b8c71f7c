"""
Every order of a few racing steps of one job, tried one by one.

Two workers, a client and a watchdog. Worker `a` holds the job's entry from the beginning; every step is tried
wherever the job may be by then, with what its actor knows. After each step, and after everybody has come to an end,
the promises that hold in every order are looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence

import pytest

from busq.protocol.cancel import Verdict
from busq.protocol.hook import hook_queue
from busq.protocol.states import State, Verb, allowed, is_terminal
from busq.store.forms import Refusal
from busq.store.store import Store
from tests.store.bench import DEADLINE_S, LEASE_S, QUEUE, Bench, Held, but_history

RETRIES = 2
EXPIRES_S = 10
MOMENTS: Mapping[str, Mapping[str, int]] = {
    "expires": {"expires": EXPIRES_S * 1000},
    "deadline": {"due_by": EXPIRES_S * 1000},
    "both": {"expires": EXPIRES_S * 1000, "due_by": 2 * EXPIRES_S * 1000},
}
OUT_OF_TIME = ("expired", "deadline")
NEVER = 10**15
ROUNDS = 10


class Race:
    """One job and its actors; each step answers (verb, word)."""

    def __init__(self, bench: Bench, held: Held) -> None:
        self.bench = bench
        self.jid = held.jid
        self.a = held
        self.b = Held(held.jid, held.entry)  # as a worker that was shown the same entry
        self.attempts = [0]
        self.cancelled = False

    async def start_a(self) -> tuple[Verb, str]:
        return await self._start(self.a, self.bench.a)

    async def start_b(self) -> tuple[Verb, str]:
        return await self._start(self.b, self.bench.b)

    async def adopt_a(self) -> tuple[Verb, str]:
        """Worker `a` finds the entry among its own, as after a lost reply, and runs nothing of it."""
        return await self._start(self.a, self.bench.a, adopt=True)

    async def give_back_a(self) -> tuple[Verb, str]:
        """The same, and it has no slot for it."""
        refusal = Refusal(jid=self.jid, entry=self.a.entry, why="no_slot", unknown=True)
        return Verb.REFUSE, (await self.bench.a.refuse(0, QUEUE, [refusal]))[0][0]

    async def _start(self, held: Held, by: Store, *, adopt: bool = False) -> tuple[Verb, str]:
        for entry in await self.bench.read(by):
            held.entry = entry.id
        answer = await self.bench.begin(held, by, retries=RETRIES, adopt=adopt)
        if answer.word == "stale" and (await self.bench.job(self.jid)).cause in OUT_OF_TIME:
            self.cancelled = True
        if answer.word == "started":
            now_ms = self.bench.clock.now_ms
            record = await self.bench.record(self.jid)
            assert now_ms < int(record.get(b"due_by", NEVER)), "nothing starts past its deadline"
            assert answer.attempt > 1 or now_ms < int(record.get(b"expires", NEVER)), "nothing too old starts first"
            assert answer.attempt > self.attempts[-1], "fences rise"
            assert not self.cancelled, "nothing starts after an accepted cancel"
            self.attempts.append(answer.attempt)
        return Verb.START, answer.word

    async def finish_a(self) -> tuple[Verb, str]:
        return Verb.FINISH, (await self.bench.settle(Verb.FINISH, self.a))[0]

    async def finish_b(self) -> tuple[Verb, str]:
        return Verb.FINISH, (await self.bench.settle(Verb.FINISH, self.b, by=self.bench.b))[0]

    async def retry_a(self) -> tuple[Verb, str]:
        return Verb.RETRY, (await self.bench.settle(Verb.RETRY, self.a, cause="error", delay_s=1))[0]

    async def release_a(self) -> tuple[Verb, str]:
        return Verb.RELEASE, (await self.bench.settle(Verb.RELEASE, self.a))[0]

    async def cancel(self) -> tuple[Verb, str]:
        verdict = (await self.bench.cancel(self.jid)).verdict
        self.cancelled = self.cancelled or verdict in (Verdict.CANCELLED, Verdict.SIGNALLED)
        return Verb.CANCEL, verdict

    async def expire(self) -> tuple[Verb, str]:
        """At its moment, or later, or a little before it: whatever the steps before took."""
        self.bench.clock.advance(EXPIRES_S)
        word = (await self.bench.expire(self.jid))[0]
        self.cancelled = self.cancelled or word in ("cancelled", "signalled")
        return Verb.EXPIRE, word

    async def reclaim(self) -> tuple[Verb, str]:
        self.bench.clock.advance(LEASE_S)
        return Verb.RECLAIM, (await self.bench.reclaim(self.a))[0]

    async def finalize(self) -> tuple[Verb, str]:
        self.bench.clock.advance(DEADLINE_S)
        return Verb.FINALIZE, (await self.bench.finalize(self.jid))[0]

    async def promote(self) -> tuple[Verb, str]:
        self.bench.clock.advance(1)
        return Verb.PROMOTE, (await self.bench.promote(self.jid))[0]

    async def step(self, act: Callable[[Race], Awaitable[tuple[Verb, str]]]) -> None:
        """Take one step and look at what must hold after every one."""
        before = await self.bench.record(self.jid)
        verb, word = await act(self)
        after = await self.bench.record(self.jid)
        was, now = State(before[b"state"].decode()), State(after[b"state"].decode())
        said_again = word == "settled" and was is now
        assert said_again or allowed(verb, was, word, now), f"{verb} answered {word}: {was} -> {now}"
        if is_terminal(was):
            assert but_history(after) == but_history(before), "a terminal record changes in its history only"
        assert (b"hook" in after) == (now is State.CANCELLED), "its hook is admitted by the very step that cancels it"
        finalized = (await self.bench.events(self.jid)).count("finalized")
        assert finalized == int(is_terminal(now))

    async def come_to_an_end(self) -> None:
        """Everybody does what they would do in the end: nothing is lost, and nothing is left behind."""
        for _ in range(ROUNDS):
            if is_terminal((await self.bench.job(self.jid)).state):
                break
            for act in IN_THE_END:
                await self.step(act)
        for entry in await self.bench.read(self.bench.b):
            assert (await self.bench.begin(Held(self.jid, entry.id), self.bench.b)).word == "stale"
        for left, owner in (await self.bench.pending()).items():
            await self.bench.reclaim(Held(self.jid, left), owner=owner.decode())


IN_THE_END = (
    Race.finalize, Race.promote, Race.start_b, Race.finish_b, Race.finish_a, Race.reclaim, Race.expire
)  # fmt: skip
STEPS: Mapping[str, Callable[[Race], Awaitable[tuple[Verb, str]]]] = {
    name: getattr(Race, name)
    for name in (
        "cancel", "start_a", "start_b", "finish_a", "finish_b", "retry_a", "release_a", "reclaim", "finalize",
        "promote",
    )
}  # fmt: skip


async def _try(bench: Bench, order: tuple[str, ...], moments: Mapping[str, int]) -> None:
    race = Race(bench, await bench.take(await bench.enqueue(on_cancel="always", **moments)))
    for name in order:
        await race.step(ALL_STEPS[name])
    await race.come_to_an_end()
    state = await bench.state(race.jid)
    assert state is not None
    assert is_terminal(state), "every job comes to an end"
    assert (state is State.CANCELLED) == race.cancelled, "an accepted cancel ends in cancelled, and nothing else does"
    own = bench.a.keys(0)
    assert await bench.redis.xlen(own.stream(hook_queue(QUEUE))) == int(race.cancelled), "one hook, and no other"
    await bench.redis.delete(own.stream(hook_queue(QUEUE)))
    assert await bench.entries() == []
    assert await bench.pending() == {}
    assert not await bench.is_marked(race.jid)
    for index in (own.deadlines, own.scheduled, own.timers):
        assert await bench.redis.zcard(index) == 0


OF_MOMENTS = {"expire": Race.expire}
OF_LOST_REPLIES = {"adopt_a": Race.adopt_a, "give_back_a": Race.give_back_a}
ALL_STEPS = {**STEPS, **OF_MOMENTS, **OF_LOST_REPLIES}
LOST = ("start_a", "adopt_a", "give_back_a", "cancel", "expire", "reclaim", "finalize", "start_b", "finish_b")
FEW = ("start_a", "start_b", "cancel", "finish_a", "retry_a", "reclaim", "promote", "expire")


@pytest.mark.parametrize("first", STEPS)
async def test_the_promises_hold_in_every_order_of_three_steps(redis_url: str, first: str) -> None:
    await _try_all(redis_url, (first,), 2, list(STEPS))


@pytest.mark.parametrize("second", [name for name in STEPS if name != "start_a"])
async def test_the_promises_hold_in_every_order_of_three_steps_after_a_start(redis_url: str, second: str) -> None:
    await _try_all(redis_url, ("start_a", second), 2, list(STEPS))


@pytest.mark.parametrize("first", FEW)
@pytest.mark.parametrize("moments", MOMENTS)
async def test_the_promises_hold_in_every_order_for_a_job_with_moments(
    redis_url: str, moments: str, first: str
) -> None:
    await _try_all(redis_url, (first,), 3, FEW, MOMENTS[moments])


@pytest.mark.parametrize("second", [name for name in LOST if name != "start_a"])
async def test_the_promises_hold_in_every_order_when_the_answer_to_a_start_was_lost(
    redis_url: str, second: str
) -> None:
    await _try_all(redis_url, ("start_a", second), 2, LOST, MOMENTS["deadline"])


async def _try_all(
    url: str, begin: tuple[str, ...], more: int, steps: Sequence[str], moments: Mapping[str, int] | None = None
) -> None:
    # `start_a` may come again: the second attempt of the same worker is a race of its own.
    others = [name for name in steps if name not in begin or name == "start_a"]
    async with Bench(url) as bench:
        for rest in itertools.permutations(others, more):
            try:
                await _try(bench, (*begin, *rest), moments or {})
            except AssertionError as error:
                raise AssertionError(f"in the order {', '.join((*begin, *rest))}: {error}") from error
