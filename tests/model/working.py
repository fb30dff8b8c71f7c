"""
Two workers on a walk: what they read, start, lose the answer of, beat for, settle and hand back.

What a worker holds is of one bus and of several places (a queue in a shard), and a call is about one place: each verb
here is told of what one worker holds and makes a call for every place of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from busq.protocol.hook import is_hook, read_clean_up
from busq.protocol.keys import GROUP
from busq.protocol.states import Verb
from busq.store import drains
from busq.store.forms import Delivery, KindTerms, Note, Refusal, Renewal, Settlement, StartAnswer
from busq.store.store import Store
from tests.model.comparing import QUEUES, Comparing
from tests.model.job import Job
from tests.store.bench import LEASE_S

RETRIES = MAX_LOSSES = 1
HOOKED = "k2"  # a kind whose handler has a hook; a producer with its code says so, and a worker does as it starts it
STOPPED_HOW: dict[str, dict[str, bool]] = {
    "completed": {},
    "confirmed": {"observed": True},
    "killed": {"gone": True},
    "abandoned": {"stopped": False},
}


class Attempt:
    """What a worker knows of an attempt, or of an entry that it has read (`number` 0)."""

    def __init__(self, by: Store, job: Job, entry: bytes, token: str = "", number: int = 0) -> None:
        self.by, self.job, self.entry, self.token, self.number = by, job, entry, token, number


@dataclass
class Start:
    """One call, as it is sent again word by word when nobody heard its answers."""

    held: Sequence[Attempt]
    deliveries: list[Delivery]
    terms: list[KindTerms]
    adopt: bool


def by_place(held: Iterable[Attempt]) -> list[list[Attempt]]:
    found: dict[tuple[int, str], list[Attempt]] = {}
    for each in held:
        found.setdefault(each.job.place, []).append(each)
    return list(found.values())


def occasion_of(kind: str) -> str:
    return "always" if kind == HOOKED else ""


class Working(Comparing):
    async def begin(self) -> None:
        await super().begin()
        self.entries: list[Attempt] = []
        self.attempts: list[Attempt] = []
        self.unheard: list[Start] = []

    async def read(self, by: Store, count: int) -> None:
        jobs = {job.jid: job for job in self.bus.jobs}
        streams = self.streams[by.by]
        for entry in await streams.read(streams.places, each=count, block_ms=0):
            assert entry.jid in jobs, f"an entry names {entry.jid}, which nobody has admitted"
            job = jobs[entry.jid]
            assert (entry.shard, entry.queue, entry.kind) == (*job.place, job.kind)
            self.entries.append(Attempt(by, job, entry.id))

    def is_known(self, held: Attempt) -> bool:
        """Whether its worker knows of an attempt at this entry: two of one name in two places are not the same."""
        own = (held.by, held.job.place, held.entry)
        return any((each.by, each.job.place, each.entry) == own for each in self.attempts)

    async def start(self, held: Sequence[Attempt], *, adopt: bool = False, lost: bool = False) -> None:
        """
        Of entries that one worker has read. `adopt`: where it knows no attempt of them, it looks for its own.

        `lost`: nobody hears the answers, at first.
        """
        adopt = adopt and not any(self.is_known(each) for each in held)
        for some in by_place(held):
            deliveries = [Delivery(each.entry, each.job.jid, each.job.kind, self.fresh("token")) for each in some]
            kinds = sorted({each.job.kind for each in some})
            terms = [KindTerms(kind, RETRIES, MAX_LOSSES, 5000, 2000, occasion=occasion_of(kind)) for kind in kinds]
            call = Start(some, deliveries, terms, adopt)
            await self.send(call, heard=not lost)
            if lost:
                self.unheard.append(call)

    async def send(self, call: Start, *, heard: bool = True) -> None:
        """A start, for the first time or once more."""
        by, (shard, queue) = call.held[0].by, call.held[0].job.place
        answers = await by.start(shard, queue, call.deliveries, call.terms, adopt=call.adopt)
        for each, delivery, answer in zip(call.held, call.deliveries, answers, strict=True):
            job, how = each.job, {"adopt": call.adopt, "occasion": occasion_of(each.job.kind)}
            expected = self.bus.start(job, by.by, each.entry, delivery.token, **how)
            assert answer.word == expected, f"start of {job.jid} answers {answer.word}, {expected} was due"
            if answer.word == "started":
                _check_told(job, answer)
            if answer.word == "started" and heard:
                self.attempts.append(Attempt(by, job, each.entry, delivery.token, answer.attempt))
        await self.compare()

    async def resend(self, call: Start) -> None:
        """
        As a client does that heard nothing: before it asks for anything else. What was lost may have been found since
        by the worker's look through its own entries; then that is what it knows.
        """
        self.unheard.remove(call)
        if not any(self.is_known(each) for each in call.held):
            await self.send(call)

    async def refuse(self, held: Sequence[Attempt], *, delay_ms: int = 0, limit: int = 0) -> None:
        """Of entries that one worker has read, as when it has no slot for them, or does not know their kinds."""
        how = {"delay_ms": delay_ms, "limit": limit}
        words = {"why": "unknown_kind", "most_ms": 2**40, "error": b"\x01"}
        for some in by_place(held):
            by, (shard, queue) = some[0].by, some[0].job.place
            unknown = {each: not self.is_known(each) for each in some}
            refusals = [
                Refusal(jid=each.job.jid, entry=each.entry, unknown=unknown[each], **words, **how) for each in some
            ]
            answers = await by.refuse(shard, queue, refusals)
            for each, (word, _) in zip(some, answers, strict=True):
                expected = self.bus.refuse(each.job, by.by, each.entry, unknown=unknown[each], **how)
                assert word == expected, f"refuse of {each.job.jid} answers {word}, {expected} was due"
            await self.compare()

    # While they run --------------------------------------------------------------------------------------

    async def renew(self, by: Store) -> None:
        """A beat, and on it a look whether the worker is to drain."""
        for shard in self.shards:
            mine = [each for each in self.attempts if each.by is by and each.job.shard == shard]
            answers = await by.renew(shard, [Renewal(each.job.jid, each.token) for each in mine], info=b"card")
            for each, answer in zip(mine, answers, strict=True):
                expected = self.bus.renew(each.job, each.token)
                assert answer.word == expected, f"renew of {each.job.jid} answers {answer.word}, {expected} was due"
                if answer.word == "cancelling":
                    assert answer.cause == each.job.cause
        self.bus.beat(by.by, round(LEASE_S * 1000))
        assert (await drains.asked(by, by.by) is not None) == (by.by in self.bus.to_drain)
        await self.compare()

    async def save(self, held: Attempt) -> None:
        saved = b"\x01" + self.fresh("saved").encode()
        word, _ = await held.by.note(
            held.job.jid, token=held.token, attempt=held.number, note=Note("saved"), saved=saved
        )
        assert (word == "noted") == self.bus.save(held.job, held.token, saved)
        await self.compare()

    # How attempts end ------------------------------------------------------------------------------------

    async def finish(
        self,
        held: Sequence[Attempt],
        *,
        failed: bool = False,
        finalizer: bool = False,
        keep: bool = False,
        stopped: str = "completed",
    ) -> None:
        """No clean-up has a finalizer or keeps a late success."""
        told: dict[str, Any] = {"outcome": "failed" if failed else "succeeded", "result": b"\x01\x01"}
        for some, how in (
            ([each for each in held if not each.job.hook_of], {"finalizer": finalizer, "keep": keep}),
            ([each for each in held if each.job.hook_of], {"finalizer": False, "keep": False}),
        ):
            await self._settle(Verb.FINISH, some, stopped, told | how, self.bus.finish, {"failed": failed, **how})

    async def retry(self, held: Sequence[Attempt], delay_ms: int, stopped: str = "completed") -> None:
        told = {"outcome": "failed", "delay_ms": delay_ms}
        await self._settle(Verb.RETRY, held, stopped, told, self.bus.retry, {"retries": RETRIES, "delay_ms": delay_ms})

    async def release(self, held: Sequence[Attempt], stopped: str = "completed") -> None:
        await self._settle(Verb.RELEASE, held, stopped, {"outcome": "released"}, self.bus.release, {})

    async def _settle(
        self,
        verb: Verb,
        held: Sequence[Attempt],
        stopped: str,
        told: dict[str, Any],
        judge: Callable[..., str],
        how: dict[str, Any],
    ) -> None:
        cause = "error" if told["outcome"] == "failed" else ""
        told = {"cause": cause, **told, **STOPPED_HOW[stopped]}
        for some in by_place(held):
            by, (shard, queue) = some[0].by, some[0].job.place
            ends = [
                Settlement(
                    jid=each.job.jid, entry=each.entry, token=each.token, attempt=each.number,
                    hook=told["outcome"] if each.job.hook_of else "", **told,
                )
                for each in some
            ]  # fmt: skip
            answers = await by.settle(verb, shard, queue, ends)
            for each, (word, _) in zip(some, answers, strict=True):
                expected = judge(each.job, each.token, by.by, stopped, **how)
                assert word == expected, f"{verb} of {each.job.jid} answers {word}, {expected} was due"
            await self.compare()

    # Leaving ---------------------------------------------------------------------------------------------

    async def leave(self, by: Store) -> None:
        """Drain: hand back what runs, give back what was read and not started, and go off the roster."""
        await self.release([each for each in self.attempts if each.by is by])
        self.unheard = [call for call in self.unheard if call.held[0].by is not by]
        await self.refuse([each for each in self.entries if each.by is by and not self.is_known(each)])
        self.attempts = [each for each in self.attempts if each.by is not by]
        self.entries = [each for each in self.entries if each.by is not by]
        for shard in self.shards:
            assert await self.forget(by, shard, by.by, own_wish=True) == "forgotten", "it holds something"
        await self.compare()

    async def forget(self, store: Store, shard: int, worker: str, *, own_wish: bool = False) -> str:
        """By itself, or by a watchdog."""
        held = await self.pending(shard, worker)
        word = await store.forget(shard, worker, QUEUES, own_wish=own_wish)
        expected = self.bus.forget(shard, worker, holds=bool(held), own_wish=own_wish)
        assert word == expected, f"forget of {worker} answers {word}, {expected} was due"
        assert await self.pending(shard, worker) == held, f"what {worker} held is lost"
        return word

    async def pending(self, shard: int, worker: str) -> set[tuple[str, bytes]]:
        """What stands under a worker's name."""
        found = set()
        for queue in QUEUES:
            stream = self.bench.a.keys(shard).stream(queue)
            listed = await self.bench.redis.xpending_range(stream, GROUP, "-", "+", 1000, worker)
            found |= {(queue, each["message_id"]) for each in listed}
        return found


def _check_told(job: Job, answer: StartAnswer) -> None:
    """A clean-up is told of the job that it is about as that one was when it ended, and what was saved since."""
    assert answer.attempt == job.attempt
    assert (job.hook_of is not None) == is_hook(job.kind)
    if job.hook_of:
        about = read_clean_up(answer.payload)
        told = (about.jid, about.attempt, about.cause, about.ended, about.saved)
        assert told == (job.hook_of.jid, *job.about, job.saved), f"{job.jid} is told {told}"
    else:
        assert answer.attempt == 1 or answer.saved == job.saved
