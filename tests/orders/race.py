"""
One job and those who race over it: two workers, a client and a watchdog, and what every order must keep.

Every step is tried wherever the job may be by then, with what its actor knows. After each one the promises that hold in
every order are looked at, and once more when everybody has come to an end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from busq.protocol.cancel import Verdict
from busq.protocol.hook import hook_queue
from busq.protocol.states import State, Verb, allowed, is_terminal
from busq.store.forms import Refusal
from busq.store.store import Store
from tests.store.bench import DEADLINE_S, LEASE_S, QUEUE, Bench, Held, but_history

RETRIES = 2
EXPIRES_S = 10
OUT_OF_TIME = ("expired", "deadline")
NEVER = 10**15
ROUNDS = 10
Act = Callable[["Race"], Awaitable[tuple[Verb, str]]]


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
        return await self._begin(held, by, adopt=adopt)

    async def _begin(self, held: Held, by: Store, *, adopt: bool = False) -> tuple[Verb, str]:
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

    async def step(self, act: Act) -> str:
        """Take one step and look at what must hold after every one. Answers what the step was told."""
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
        return word

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

    async def end(self) -> None:
        """The whole is over, and as it should be."""
        await self.come_to_an_end()
        bench, state = self.bench, await self.bench.state(self.jid)
        assert state is not None
        assert is_terminal(state), "every job comes to an end"
        assert (state is State.CANCELLED) == self.cancelled, (
            "an accepted cancel ends in cancelled, and nothing else does"
        )
        own = bench.a.keys(0)
        hooks = own.stream(hook_queue(QUEUE))
        assert await bench.redis.xlen(hooks) == int(self.cancelled), "one hook, and no other"
        await bench.redis.delete(hooks)
        assert await bench.entries() == []
        assert await bench.pending() == {}
        assert not await bench.is_marked(self.jid)
        for index in (own.deadlines, own.scheduled, own.timers):
            assert await bench.redis.zcard(index) == 0


IN_THE_END = (
    Race.finalize, Race.promote, Race.start_b, Race.finish_b, Race.finish_a, Race.reclaim, Race.expire
)  # fmt: skip
