"""
The verbs: everything that changes a job, each one guarded script.

Every verb takes many jobs in one call. Answers come in the order of the question, one for each job; what they may
be stands in `protocol/states.py`. Nobody else in busq writes a job's record.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from busq.protocol.cancel import CancelAnswer, CancelRequest
from busq.protocol.keys import GROUP
from busq.protocol.states import Verb
from busq.store import forms
from busq.store.access import Access
from busq.store.confirming import Confirming
from busq.store.forms import (
    Admission,
    Delivery,
    Finalized,
    KindTerms,
    Look,
    NewJob,
    Note,
    Refusal,
    Renewal,
    RenewAnswer,
    Rewound,
    Settlement,
    StartAnswer,
    Value,
    in_ms,
)

BATCH = 250  # jobs in one script call: long enough to be cheap, short enough (about 3 ms) to let others in
BATCH_BYTES = 4 * 1024 * 1024  # payloads, tags and the like in one script call


class Store(Access):
    """One process's way to the jobs of the bus."""

    # Producers -----------------------------------------------------------------------------------------

    async def enqueue(
        self, jobs: Sequence[NewJob], *, call: str, confirming: Confirming | None = None
    ) -> list[Admission]:
        """
        Admit jobs, each once. `call` names this very call: sent again, it is answered as it was the first time.

        Answers are (enqueued | tombstoned | fenced | in_use, its state), or (orphan | too_deep, the parent's, None when
        there is none), or (full, None, how many wait), or (limited, None, queue | group, for how many ms). One script
        call for up to 250 jobs of one queue.
        """
        answers: list[Admission] = [("", None)] * len(jobs)
        for shard, queue, places in self._by_queue(jobs):
            args: list[Value] = []
            for place in places:
                args += _admission(jobs[place])
            limits = self._limits(jobs[places[0]].most)
            named: dict[str, Value] = {"call": call, "queue": queue, "parent_token": "", "limits": limits}
            jids = [jobs[i].jid for i in places]
            heard = await self.run(Verb.ENQUEUE, shard, jids, args, queue=queue, named=named, confirming=confirming)
            for place, answer in zip(places, heard, strict=True):
                answers[place] = forms.admission(answer)
        return answers

    def _limits(self, most: int) -> str:
        """What the enqueue script is told of limits; each shard has its share of them, for it sees no other."""
        given = self.settings
        most = most or given.queue_limit or 0
        if not most and given.queue_rate is None and given.group_rate is None:
            return ""
        rates = ((rate or 0) / self.shards for rate in (given.queue_rate, given.group_rate))
        return " ".join((str(-(-most // self.shards)), *map(repr, rates), GROUP.decode()))

    async def spawn(self, parent: str, token: str, job: NewJob, *, call: str) -> tuple[str, str, str]:
        """
        Admit a child of a running job, asked for by the attempt with this token; both live in the same shard. No limit
        of a queue holds it up: it is part of a job that has been let in.

        Answers (enqueued | tombstoned | fenced | in_use, its state, ""), or (orphan | too_deep, the parent's state, its
        cancel's cause).
        """
        named: dict[str, Value] = {"call": call, "queue": job.queue, "parent_token": token, "limits": ""}
        heard = await self.run(
            Verb.ENQUEUE, self.shard_of(parent), [job.jid], _admission(job), queue=job.queue, named=named
        )
        word, state, *cause = (part.decode() for part in heard[0])
        return word, state, cause[0] if cause else ""

    async def cancel(
        self, jids: Sequence[str], wish: CancelRequest, *, request: str, confirming: Confirming | None = None
    ) -> list[CancelAnswer]:
        """Write down that these jobs shall stop, and announce it. `request` names this very call, as for enqueue."""
        answers: list[CancelAnswer | None] = [None] * len(jids)
        named: dict[str, Value] = {
            "cause": wish.cause,
            "reason": wish.reason,
            "source": wish.source,
            "request": request,
            "grace_ms": "" if wish.grace_s is None else in_ms(wish.grace_s),
            "tombstone_ms": in_ms(wish.tombstone_s or 0),
        }
        for shard, places in self._by_shard(jids):
            heard = await self.run(
                Verb.CANCEL, shard, [jids[i] for i in places], (), named=named, confirming=confirming
            )
            for place, answer in zip(places, heard, strict=True):
                answers[place] = forms.cancel_answer(jids[place], answer)
        return [answer for answer in answers if answer is not None]

    # Workers -------------------------------------------------------------------------------------------

    async def start(
        self, shard: int, queue: str, deliveries: Sequence[Delivery], terms: Sequence[KindTerms], *, adopt: bool = False
    ) -> list[StartAnswer]:
        """Begin attempts of delivered jobs. `terms` holds every kind that occurs among them."""
        at: dict[str, int] = {}
        args: list[Value] = []
        for i, term in enumerate(terms):
            at[term.kind] = i
            args += (term.kind, term.retries, term.max_losses, term.grace_ms, term.slack_ms)
            args += ("-" if ms is None else ms for ms in (term.timeout_ms, term.expires_ms, term.deadline_ms))
            args.append(term.occasion)
        for delivery in deliveries:
            args += (delivery.entry, at[delivery.kind], delivery.token)
        named: dict[str, Value] = {"adopt": int(adopt), "kinds": len(terms)}
        heard = await self.run(Verb.START, shard, [d.jid for d in deliveries], args, queue=queue, named=named)
        by_kind = {term.kind: term for term in terms}
        return [
            forms.start_answer(answer, by_kind[delivery.kind])
            for answer, delivery in zip(heard, deliveries, strict=True)
        ]

    async def settle(self, verb: Verb, shard: int, queue: str, ends: Sequence[Settlement]) -> list[tuple[str, str]]:
        """
        Record how attempts ended: `verb` is finish, retry or release.

        Answers are (settled | stale | missing, state).
        """
        args: list[Value] = []
        for end in ends:
            facts = end.facts
            args += (end.entry, end.token, end.attempt, end.outcome, len(facts) // 2)
            args += facts
        return forms.words(await self.run(verb, shard, [end.jid for end in ends], args, queue=queue))

    async def refuse(self, shard: int, queue: str, refusals: Sequence[Refusal]) -> list[tuple[str, str]]:
        """
        Give back queued jobs that were read but not started.

        Answers (refused | buried | stale | missing, state).
        """
        args: list[Value] = []
        for each in refusals:
            args += (each.entry, each.why, each.delay_ms, each.most_ms, each.limit, each.error, int(each.unknown))
        return forms.words(await self.run(Verb.REFUSE, shard, [each.jid for each in refusals], args, queue=queue))

    async def renew(self, shard: int, renewals: Sequence[Renewal], *, info: bytes = b"") -> list[RenewAnswer]:
        """One beat: extend this worker's lease, hand in progress, and hear what became of its attempts."""
        args: list[Value] = []
        for each in renewals:
            args += (each.token, each.progress, each.progress_note)
        heard = await self.run(Verb.RENEW, shard, [each.jid for each in renewals], args, named={"info": info})
        return [forms.renew_answer(answer) for answer in heard]

    async def declare(self, shard: int, occasions: Mapping[str, str], *, keep_s: float) -> None:
        """
        Say which kinds have an `on_cancel` hook, and on which occasion it runs ("": they have none).

        A hook that another worker has declared within the last `keep_s` stays.
        """
        pairs = itertools.chain.from_iterable(occasions.items())
        await self.run("declare", shard, (), list(pairs), named={"keep_ms": in_ms(keep_s)})

    async def note(
        self, jid: str, *, token: str, attempt: int, note: Note | None = None, saved: bytes = b""
    ) -> tuple[str, str]:
        """
        Add a line to a running job's history, or keep what its handler saves.

        Answers (noted | stale | missing, state).
        """
        line = note or Note("")
        args = (token, attempt, line.name, line.ago_ms, line.facts, saved)
        return forms.words(await self.run(Verb.NOTE, self.shard_of(jid), [jid], args))[0]

    async def bury(self, shard: int, queue: str, entry: bytes, *, reason: str, raw: bytes) -> str:
        """Move an entry that is no job to the dead letters. Answers buried or stale."""
        named: dict[str, Value] = {"entry": entry, "reason": reason, "raw": raw}
        answer = await self.run("bury", shard, (), (), queue=queue, named=named)
        return str(answer[0].decode())

    # Watchdog ------------------------------------------------------------------------------------------

    async def finalize(self, shard: int, queue: str, overdue: Sequence[tuple[str, bool]]) -> list[Finalized]:
        """End cancels past their deadline: (jid, owner's process known to be gone)."""
        args = [int(gone) for _, gone in overdue]
        heard = await self.run(Verb.FINALIZE, shard, [jid for jid, _ in overdue], args, queue=queue)
        return [forms.finalized(answer) for answer in heard]

    async def reclaim(
        self, shard: int, queue: str, owner: str, held: Sequence[tuple[str, bytes]], *, owner_gone: bool, failure: bytes
    ) -> list[tuple[str, str]]:
        """
        Take over (jid, entry) pairs that a lost worker held.

        Answers (reclaimed | lost | ended | alive | stale | missing, state).
        """
        named: dict[str, Value] = {"owner": owner, "owner_gone": int(owner_gone), "failure": failure}
        args = [entry for _, entry in held]
        return forms.words(
            await self.run(Verb.RECLAIM, shard, [jid for jid, _ in held], args, queue=queue, named=named)
        )

    async def expire(self, shard: int, jids: Sequence[str]) -> list[tuple[str, str]]:
        """
        Cancel jobs whose moment has come: never started in time, or not ended in time.

        Answers (cancelled | signalled | early | stale | missing, state or ms left).
        """
        return forms.words(await self.run(Verb.EXPIRE, shard, jids, ()))

    async def carry_out(self, shard: int, *, step: int, hits: int = 0) -> tuple[str, int]:
        """
        One step of settling what rules have decided: `step` jobs of a queue are judged at most, and `hits` (0: `step`)
        stopped. Answers (idle | more | settled, jobs that it stopped).
        """
        answer = await self.run("carry_out", shard, (), (), named={"step": step, "hits": hits or step})
        return answer[0].decode(), int(answer[1]) if len(answer) > 1 else 0

    async def cascade(self, shard: int, *, step: int) -> tuple[str, int]:
        """One step of passing cancels on to children. Answers (idle | more, jobs that it stopped)."""
        answer = await self.run("cascade", shard, (), (), named={"step": step})
        return answer[0].decode(), int(answer[1]) if len(answer) > 1 else 0

    async def look(self, shard: int, jids: Sequence[str]) -> list[Look]:
        """Records as they are to be shown: with what has been decided and is not in them yet."""
        looks: list[Look] = []
        while len(looks) < len(jids):  # one call answers for as many as are quickly told
            looks += map(forms.look, await self.run("look", shard, jids[len(looks) :], ()))
        return looks

    async def promote(self, shard: int, queue: str, jids: Sequence[str]) -> list[tuple[str, str]]:
        """Queue scheduled jobs that are due. Answers (promoted | early | stale | missing, …)."""
        return forms.words(await self.run(Verb.PROMOTE, shard, jids, (), queue=queue))

    async def forget(self, shard: int, worker: str, queues: Sequence[str], *, own_wish: bool = False) -> str:
        """Take a worker that holds nothing off the roster. Answers forgotten, holding or alive."""
        streams = [self.keys(shard).stream(queue) for queue in queues]
        named: dict[str, Value] = {"worker": worker, "own_wish": int(own_wish)}
        answer = await self.run("forget", shard, (), (), named=named, streams=streams)
        return str(answer[0].decode())

    async def prune(self, shard: int, *, limit: int, suspect_s: float) -> int:
        """Drop what has expired from a shard's indexes, at most `limit` of each. Answers how many were dropped."""
        answer = await self.run("prune", shard, (), (), named={"limit": limit, "suspect_ms": in_ms(suspect_s)})
        return sum(int(count) for count in answer[1:])

    async def rewind(self, shard: int, *, index: str, rank: int, step: int) -> Rewound:
        """
        After a step back of the server's clock by more than a lease: bring near again what waits for a length of time.

        `index`: `deadlines` or `scheduled`, looked through from `rank` on; "" for neither.
        """
        lease_ms = in_ms(self.settings.lease_s)
        named: dict[str, Value] = {
            "least_ms": lease_ms, "lease_ms": lease_ms, "index": index, "rank": rank, "step": step,
        }  # fmt: skip
        return forms.rewound(await self.run("rewind", shard, (), (), named=named))

    # Batches -------------------------------------------------------------------------------------------

    def _by_shard(self, jids: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
        """Places in `jids`, gathered by shard, at most a batch at a time."""
        gathered: dict[int, list[int]] = {}
        for place, jid in enumerate(jids):
            gathered.setdefault(self.shard_of(jid), []).append(place)
        for shard, places in gathered.items():
            for start in range(0, len(places), BATCH):
                yield shard, places[start : start + BATCH]

    def _by_queue(self, jobs: Sequence[NewJob]) -> Iterator[tuple[int, str, list[int]]]:
        """Places in `jobs`, gathered by shard, queue and its limit, bounded in number and in bytes."""
        gathered: dict[tuple[int, str, int], list[int]] = {}
        for place, job in enumerate(jobs):
            gathered.setdefault((self.shard_of(job.jid), job.queue, job.most), []).append(place)
        for (shard, queue, _), places in gathered.items():
            batch: list[int] = []
            size = 0
            for place in places:
                batch.append(place)
                size += jobs[place].size
                if len(batch) == BATCH or size >= BATCH_BYTES:
                    yield shard, queue, batch
                    batch, size = [], 0
            if batch:
                yield shard, queue, batch


def _admission(job: NewJob) -> list[Value]:
    """What the enqueue script is told of one job."""
    return [job.kind, job.payload, job.delay_ms, len(job.fields) // 2, *job.fields]
