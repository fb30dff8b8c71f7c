"""
The shipped scripts on a real server and the plain model beside them, compared.

After every step each job is compared, its record and what a look shows of it, and every list that stands beside the
records. A script may carry out a decision on jobs that it was not asked about (a parent, a child): where a record says
so, and the model holds such a decision against the job, the model follows (`_follow`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from busq.protocol.hook import hook_queue
from busq.protocol.job import decided, history_from_record, job_from_record
from busq.protocol.states import State
from busq.store.forms import Look
from busq.store.scopes import Scopes
from busq.store.streams import Streams
from tests.model.endings import KEEP_MS
from tests.model.job import LIVE, STOPPED, Job
from tests.model.plain import Bus
from tests.store.bench import QUEUE, Bench

START_MS = 1_700_000_000_000
QUEUES = [QUEUE, hook_queue(QUEUE)]
SETTINGS = {
    "keep_succeeded_s": KEEP_MS[State.SUCCEEDED] / 1000,
    "keep_ended_s": KEEP_MS[State.CANCELLED] / 1000,
}
"""Of a bench to walk on: short, for the clock of a walk; and long, for that of the server, which ends the records."""

HOOK_LINES = ("hook_started", "hook_ended")


class Comparing:
    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.shards = range(bench.a.shards)
        self.workers = (bench.a, bench.b)
        self.dogs = (bench.dog, bench.a)
        self.streams = {store.by: Streams(store, QUEUES) for store in self.workers}

    async def begin(self) -> None:
        """An empty bus, and an empty model."""
        await self.bench.redis.flushall()
        self.bench.clock.now_ms = START_MS
        self.bus = Bus(len(self.shards), START_MS)
        self.scopes = Scopes(self.bench.dog)
        self.looks: dict[Job, Look] = {}
        self._count = itertools.count(1)
        for streams in self.streams.values():
            await streams.open()

    def fresh(self, what: str) -> str:
        return f"{what}{next(self._count)}"

    def advance(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)
        self.bus.now = self.bench.clock.now_ms

    @staticmethod
    def same(answers: Sequence[str], judge: Callable[[Any], str], asked: Sequence[Any]) -> None:
        for each, answer in zip(asked, answers, strict=True):
            expected = judge(each)
            assert answer == expected, f"{answer} is answered, {expected} was due"

    async def compare(self, *, cascaded: bool = False) -> None:
        await self._look()
        while self._follow() or (cascaded and await self._follow_cascade()):
            await self._look()
        for job in self.bus.jobs:
            found, expected = self._found(job), self._expected(job)
            assert found == expected, f"{job.jid}: {found}, where the model says {expected}"
            if not job.entry and job.state is State.QUEUED:
                job.entry = self.looks[job].record[b"entry"]
        await self.compare_scopes()
        await self._compare_lists()

    # Jobs ------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        for job in self.bus.jobs:
            if not job.jid:
                job.jid = await self._made_jid(job)
        self.looks = {}
        for shard in self.shards:
            jobs = [job for job in self.bus.jobs if job.shard == shard]
            if jobs:
                looks = await self.bench.a.look(shard, [job.jid for job in jobs])
                self.looks |= zip(jobs, looks, strict=True)
        gone = [job.jid for job, look in self.looks.items() if not look.record]
        assert not gone, f"these have no record: {gone}"

    async def _made_jid(self, job: Job) -> str:
        """Of a finalizer or a clean-up, as the job that it is about names it."""
        about, name = (job.hook_of, b"hook") if job.hook_of else (job.parent, b"final")
        assert about
        (look,) = await self.bench.a.look(job.shard, [about.jid])
        assert name in look.record, f"{about.jid} has no {name.decode()}"
        jid = str(look.record[name].decode())
        assert self.bench.a.shard_of(jid) == job.shard, f"nobody will find {jid} in shard {job.shard}"
        return jid

    def _follow(self) -> bool:
        count = len(self.bus.jobs)
        for job in list(self.bus.jobs):
            if job in self.looks and job.is_live and self._raw(job) not in LIVE and self.bus.wish(job):
                self.bus.touch(job)
        return len(self.bus.jobs) > count  # a finalizer or a clean-up was admitted

    async def _follow_cascade(self) -> bool:
        moved = False
        for parent in list(self.bus.jobs):
            if parent.state not in STOPPED:
                continue
            for child in [child for child in parent.open if child.policy == "abandon"]:
                siblings = self.bench.a.keys(child.shard).children(parent.jid)
                if await self.bench.redis.zscore(siblings, child.jid) is None:
                    self.bus.abandon(child)
            if parent.state is State.CANCELLING and self._raw(parent) is State.CANCELLED:
                self.bus.cascaded(parent)
                moved = True
        return moved

    def _raw(self, job: Job) -> State:
        return State(self.looks[job].record[b"state"].decode())

    def _found(self, job: Job) -> dict[str, Any]:
        look = self.looks[job]
        shown = job_from_record(job.jid, look.record)
        kept = shown
        if look.wish:
            cause, reason, source, scope = look.wish
            shown = decided(shown, cause=cause, reason=reason, source=source, scope=scope)
        stops = kept.state in STOPPED or kept.state is State.FAILED
        lines = history_from_record(look.record) if job.hook else ()
        return {
            "state": kept.state,
            "shown": shown.state,
            "cause": shown.cause if stops or look.wish else None,
            "scope": shown.scope if stops or look.wish else None,
            "ended": kept.ended,
            "attempt": kept.attempt,
            "failures": kept.failures,
            "losses": kept.losses,
            "saved": look.record.get(b"saved", b""),
            "children": (kept.children, kept.open_children, kept.failed_children),
            "hooked": b"hook" in look.record,
            "of its hook": [(line.name, _words(line.facts)) for line in lines if line.name in HOOK_LINES],
        }

    def _expected(self, job: Job) -> dict[str, Any]:
        wish = self.bus.wish(job)
        cause, scope = (job.cause, job.scope) if job.state in STOPPED or job.state is State.FAILED else (None, None)
        if wish:
            cause, scope = wish.cause, wish.rule and wish.rule.id
        return {
            "state": job.state,
            "shown": self.bus.shown(job),
            "cause": cause,
            "scope": scope,
            "ended": job.ended,
            "attempt": job.attempt,
            "failures": job.failures,
            "losses": job.losses,
            "saved": job.saved,
            "children": (job.kids, len(job.open), job.kids_failed),
            "hooked": job.hook is not None,
            "of its hook": job.told,
        }

    def deadline(self, job: Job) -> int:
        return int(self.looks[job].record.get(b"deadline", 2**62))

    # What stands beside them -----------------------------------------------------------------------------

    async def compare_scopes(self) -> None:
        for rule in self.bus.rules:
            pipe = self.bench.redis.pipeline(transaction=False)
            for shard in self.shards:
                pipe.hgetall(self.bench.a.keys(shard).scope(rule.id))
            owns = await pipe.execute()
            rule.states = {shard: own[b"state"].decode() for shard, own in zip(self.shards, owns, strict=True)}
            counts = {name: sum(int(own.get(f"v:{name}".encode(), 0)) for own in owns) for name in rule.verdicts}
            ended = sum(int(value) for own in owns for name, value in own.items() if name[:2] == b"e:")
            found = (counts, ended, sum(int(own.get(b"unfinished", 0)) for own in owns))
            assert found == (rule.verdicts, rule.ended, rule.unfinished), f"{rule.id}: {found}, {rule}"

    async def _compare_lists(self) -> None:
        for shard in self.shards:
            expected = self._expected_lists(shard)
            own = self.bench.a.keys(shard)
            pipe = self.bench.redis.pipeline(transaction=False)
            for name in expected:
                pipe.zrange(getattr(own, name), 0, -1, withscores=True)
            pipe.hkeys(own.tombstones)
            *lists, entombed = await pipe.execute()
            for name, listed in zip(expected, lists, strict=True):
                found = {member.decode(): score for member, score in listed}
                assert found == expected[name], f"{name} of shard {shard}: {found}, the model says {expected[name]}"
            promised = {jid for at, jid in self.bus.tombstones if at == shard}
            assert {jid.decode() for jid in entombed} == promised, f"tombstones: {entombed}, the model says {promised}"

    def _expected_lists(self, shard: int) -> dict[str, dict[str, float]]:
        bus, never = self.bus, float("inf")
        jobs = [job for job in bus.jobs if job.shard == shard]
        asked = [job for job in jobs if job.state is State.CANCELLING]
        tombstones = {jid: each.until for (at, jid), each in bus.tombstones.items() if at == shard}
        ended = {
            state: {job.jid: until for job, until in bus.listed.items() if job.shard == shard and job.state is state}
            for state in KEEP_MS
        }
        return {
            "cancelled": {job.jid: never for job in jobs if job.unread or job in asked} | tombstones,
            "scheduled": {job.jid: job.due for job in jobs if job.state is State.SCHEDULED},
            "deadlines": {job.jid: self.deadline(job) for job in asked},
            "succeeded": ended[State.SUCCEEDED],
            "failed": ended[State.FAILED],
            "cancelled_jobs": ended[State.CANCELLED],
            "suspects": {
                f"{job.jid}\t{attempt}\t{owner}\t{job.kind}": since
                for (job, attempt, owner), since in bus.suspects.items()
                if job.shard == shard
            },
        }


def _words(facts: str) -> str:
    """Without the jid of the clean-up, which stands behind them."""
    return facts.rpartition(" (")[0]
