"""
One walk: producers, cancels, workers and watchdogs, step by step.

Every method is one step: it tells the scripts and the model, compares what they answer, and then compares everything
(comparing.py). What workers do is in working.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime

from busq.protocol.cancel import CancelRequest
from busq.protocol.codec import encode_payload
from busq.protocol.jids import place, place_of_key
from busq.protocol.keys import GROUP
from busq.protocol.scope import Filter
from busq.protocol.states import is_terminal
from busq.store import drains
from busq.store.drains import Whole
from busq.store.forms import NewJob
from busq.store.scopes import FOR_EVER_MS
from busq.store.store import Store
from tests.model.comparing import QUEUES
from tests.model.job import STOPPED, Job, Rule, Tombstone
from tests.model.working import MAX_LOSSES, Attempt, Working, by_place

ROUNDS = 30  # in which everything comes to its end
STEPS = 200  # of one settling
SUSPECT_S = 60.0
FOR_LONG_S = 100_000.0  # after which nothing is remembered any more
KEPT = ("dead", "job:*", "counters", "events", "queues", "scope:*", "queue:*", "hooks")


class Walk(Working):
    async def begin(self) -> None:
        await super().begin()
        self.promised: list[str] = []  # jids that somebody has cancelled beforehand

    # Producers -------------------------------------------------------------------------------------------

    async def enqueue(
        self, job: Job, *, delay_ms: int = 0, expires_ms: int = 0, due_ms: int = 0, token: str = ""
    ) -> None:
        """`token`: asked for by that attempt of its parent."""
        job.jid = job.jid or self._jid_for(job)
        job.shard = self.bench.a.shard_of(job.jid)
        fields: list[str | int] = ["on_cancel", job.occasion] if job.occasion else []
        for name, value in (("group", job.group), ("key", job.key), ("expires", expires_ms), ("due_by", due_ms)):
            fields += [name, value] if value else []
        if job.parent:
            fields += ["parent", job.parent.jid]
            fields += ["policy", job.policy] if job.policy != "cancel" else []
        new = NewJob(job.jid, job.kind, job.queue, encode_payload((), job.args, 1000), delay_ms, tuple(fields))
        job.due = self.bus.now + delay_ms if delay_ms else 0
        job.expires = self.bus.now + expires_ms if expires_ms else None
        job.due_by = self.bus.now + due_ms if due_ms else None
        call = self.fresh("call")
        expected = self.bus.enqueue(job, token)
        for _ in range(1 if expected == "orphan" else 2):  # the reply is lost, and the call is sent again
            if token and job.parent:
                word = (await self.bench.a.spawn(job.parent.jid, token, new, call=call))[0]
            else:
                word = (await self.bench.a.enqueue([new], call=call))[0][0]
            assert word == expected, f"enqueue answers {word}, {expected} was due"
        await self.compare()

    def _jid_for(self, job: Job) -> str:
        """Where its parent lives, or its key."""
        number = next(self._count)
        if len(self.shards) == 1 or not (job.parent or job.key):
            return f"j{number}"
        return f"{number:032x}.{place(job.parent.jid) if job.parent else place_of_key(job.key or ''):04x}"

    async def cancel(self, jobs: Sequence[Job], grace_s: float | None = None) -> None:
        before = {job: self.deadline(job) for job in jobs}
        wish, request = CancelRequest(grace_s=grace_s), self.fresh("request")
        answers = await self.bench.b.cancel([job.jid for job in jobs], wish, request=request)
        self.same([answer.verdict for answer in answers], self.bus.cancel, jobs)
        again = await self.bench.b.cancel([job.jid for job in jobs], wish, request=request)  # the reply was lost
        assert [(each.verdict, each.deadline) for each in again] == [(each.verdict, each.deadline) for each in answers]
        await self.compare()
        for job, deadline in before.items():
            assert self.deadline(job) <= deadline, f"a further request puts off the deadline of {job.jid}"

    async def entomb(self, jid: str, seconds: float, cause: str) -> None:
        """Cancel a jid that nobody has enqueued, and perhaps nobody will."""
        if jid not in self.promised:
            self.promised.append(jid)
        request, shard = self.fresh("request"), self.bench.a.shard_of(jid)
        wish = CancelRequest(cause=cause, tombstone_s=seconds)
        until = self.bus.entomb(shard, jid, Tombstone(self.bus.now + round(seconds * 1000), request, cause))
        for _ in range(2):  # the reply was lost, and a second later the call is sent again
            (answer,) = await self.bench.b.cancel([jid], wish, request=request)
            assert answer.verdict == "tombstoned", f"{jid}: {answer}"
            found = answer.deadline and round(answer.deadline.timestamp() * 1000)
            assert found == until, f"the tombstone of {jid} stands up to {found}, {until} was due"
            self.advance(1)
        await self.compare()

    async def decide(self, filter: Filter, *, standing_ms: int | None = None) -> None:
        """`standing_ms`: later arrivals match for so long, with 0 for ever."""
        rule = Rule(self.fresh("s"), filter.checked().condition())
        until = None
        if standing_ms is not None:
            rule.until = self.bus.now + standing_ms if standing_ms else FOR_EVER_MS
            until = datetime.fromtimestamp(rule.until / 1000, UTC) if standing_ms else None
        await self.scopes.decide(rule.id, filter, standing=standing_ms is not None, until=until)
        self.bus.decide(rule)
        await self.compare()

    async def revoke(self, rule: Rule) -> None:
        state = await self.scopes.revoke(rule.id)
        assert (state == "revoked") or not rule.live
        self.bus.end_rule(rule, set(self.shards))
        await self.compare()

    async def declare(self, kind: str, occasion: str, keep_s: float) -> None:
        for shard in self.shards:
            await self.bench.a.declare(shard, {kind: occasion}, keep_s=keep_s)
        self.bus.declare(kind, occasion, round(keep_s * 1000))

    async def ask_to_drain(self, worker: Store, whole: Whole) -> None:
        word = await drains.ask(self.bench.dog, worker.by, whole)
        assert word == self.bus.ask_to_drain(worker.by)

    # Watchdogs -------------------------------------------------------------------------------------------

    async def reclaim(self, held: Sequence[Attempt], *, gone: bool = False) -> None:
        for some in by_place(held):
            owner, (shard, queue) = some[0].by.by, some[0].job.place
            items = [(each.job.jid, each.entry) for each in some]
            answers = await self.bench.dog.reclaim(shard, queue, owner, items, owner_gone=gone, failure=b"\x01lost")
            self.same(
                [word for word, _ in answers],
                lambda each: self.bus.reclaim(each.job, each.by.by, each.entry, MAX_LOSSES, gone=gone),
                some,
            )
            await self.compare()

    async def promote(self, jobs: Sequence[Job]) -> None:
        for (shard, queue), some in _by_place(jobs):
            answers = await self.bench.dog.promote(shard, queue, [job.jid for job in some])
            self.same([word for word, _ in answers], self.bus.promote, some)
            await self.compare()

    async def expire(self, jobs: Sequence[Job]) -> None:
        for (shard, _), some in _by_place(jobs):
            answers = await self.bench.dog.expire(shard, [job.jid for job in some])
            self.same([word for word, _ in answers], self.bus.expire, some)
            await self.compare()

    async def finalize(self, jobs: Sequence[Job], *, gone: bool = False) -> None:
        """`gone`: the processes of their owners are known to be."""
        for (shard, queue), some in _by_place(jobs):
            deadlines = {job: self.deadline(job) for job in some}
            answers = await self.bench.dog.finalize(shard, queue, [(job.jid, gone) for job in some])
            words = [answer.word for answer in answers]
            self.same(words, lambda job, at=deadlines: self.bus.finalize(job, at[job], gone=gone), some)
            await self.compare()

    async def prune(self, shard: int) -> None:
        count = await self.bench.dog.prune(shard, limit=1000, suspect_s=SUSPECT_S)
        expected = self.bus.prune(shard, round(SUSPECT_S * 1000))
        assert count == expected, f"{count} were pruned, {expected} were due"
        await self.compare()

    async def carry_out(self, dog: Store, shard: int, step: int) -> str:
        word, _ = await dog.carry_out(shard, step=step)
        if word == "idle" and self.looks:
            await self.compare_scopes()
        else:
            await self.compare()
        for rule in [rule for rule in self.bus.rules if shard in rule.live]:
            if rule.states[shard] == "settled":
                assert rule.until <= self.bus.now
                left = [job.jid for job in self.bus.jobs if rule in job.against and job.shard == shard]
                assert not left, f"{rule.id} is settled, and these have not been told: {left}"
                self.bus.end_rule(rule, {shard})
        return word

    async def cascade(self, dog: Store, shard: int, step: int) -> str:
        word, _ = await dog.cascade(shard, step=step)
        if word != "idle":
            await self.compare(cascaded=True)
        return word

    # The end ---------------------------------------------------------------------------------------------

    async def come_to_an_end(self) -> None:
        """Watchdogs and one worker do what they always do, until everything has ended and nothing is left over."""
        for worker in self.workers:  # what they give back may be the last to be heard of a clean-up
            await self.leave(worker)
        for _ in range(ROUNDS):
            await self._settle_all()
            if all(is_terminal(job.state) for job in self.bus.jobs) and not await self._entries():
                break
            self.advance(100)
            await self._sweep()
        left = [(job.jid, job.state) for job in self.bus.jobs if not is_terminal(job.state)]
        assert not left, f"these never end: {left}"
        for worker in self.workers:
            await self.leave(worker)
        self.advance(FOR_LONG_S)
        for shard in self.shards:
            await self.prune(shard)
        left_over = await self._leftovers()
        assert not left_over, f"of all this nothing should be left: {left_over}"

    async def _settle_all(self) -> None:
        await self._repeat(self.cascade)
        for job in self.bus.jobs:
            if job.state in STOPPED:
                told = [child.jid for child in job.open if child.is_live and child.policy == "cancel"]
                assert not told, f"{job.jid} was cancelled, and its children {told} were not"
        await self._repeat(self.carry_out)
        await self._repeat(self.cascade)

    async def _repeat(self, work: Callable[[Store, int, int], Awaitable[str]]) -> None:
        dogs = itertools.cycle(self.dogs)
        for shard in self.shards:
            for _ in range(STEPS):
                if await work(next(dogs), shard, 5) == "idle":
                    break
            else:
                raise AssertionError("a watchdog's work goes on and on")

    async def _sweep(self) -> None:
        for verb in (self.finalize, self.expire, self.promote):
            await verb(list(self.bus.jobs))
        await self.read(self.bench.b, 100)
        await self.start(self.entries)
        await self.finish(self.attempts)
        self.entries.clear()
        self.attempts.clear()

    async def _entries(self) -> list[str]:
        """What is in the queues, read or not."""
        found = []
        for shard in self.shards:
            for queue in QUEUES:
                stream = self.bench.a.keys(shard).stream(queue)
                pending, all_of_them = (
                    await self.bench.redis.xpending(stream, GROUP),
                    await self.bench.redis.xlen(stream),
                )
                if pending["pending"] or all_of_them:
                    found.append(f"{pending['pending']} pending of {all_of_them} in {queue} of shard {shard}")
        return found

    async def _leftovers(self) -> list[str]:
        redis, left = self.bench.redis, await self._entries()
        own = [self.bench.a.keys(shard).prefix for shard in self.shards]
        for key in await redis.keys("*"):
            name = next((key.removeprefix(prefix) for prefix in own if key.startswith(prefix)), key).decode()
            if name.endswith("meta") or any(
                name == kept or (kept[-1] == "*" and name.startswith(kept[:-1])) for kept in KEPT
            ):
                continue
            if name.startswith("fallen:") and await redis.pttl(key) > 0:
                continue  # of a failed job that had open children: it leaves by itself
            if name == "rules" and any(rule.live for rule in self.bus.rules):
                continue
            left.append(key.decode())
        return left


def _by_place(jobs: Iterable[Job]) -> Iterable[tuple[tuple[int, str], list[Job]]]:
    found: dict[tuple[int, str], list[Job]] = {}
    for job in jobs:
        found.setdefault(job.place, []).append(job)
    return found.items()
