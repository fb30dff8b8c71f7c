"""
The bus in plain Python: what its verbs mean, without Redis and without laziness.

Every method is one verb: it changes the jobs and says what the verb is to answer. What rules and parents decide is in
decisions.py, how jobs end in endings.py.
"""

from __future__ import annotations

from busq.protocol.states import State
from tests.model.endings import Endings
from tests.model.job import Job, Tombstone

S = State


class Bus(Endings):
    def __init__(self, shards: int = 1, now: int = 0) -> None:
        super().__init__(shards, now)
        self.tombstones: dict[tuple[int, str], Tombstone] = {}
        self.leases: dict[tuple[int, str], int] = {}  # the roster: shard, worker, up to when
        self.to_drain: set[str] = set()

    # Producers -------------------------------------------------------------------------------------------

    def enqueue(self, job: Job, token: str = "") -> str:
        """`token`: the attempt of its parent that asks for it; "" for anybody else."""
        parent = job.parent
        if parent:
            self.touch(parent)
            asked = (
                parent.state is S.RUNNING and parent.token == token if token else parent.is_live and not parent.final
            )
            if not asked:
                return "orphan"
        job.at = self.now
        self.jobs.append(job)
        tombstone = self.tombstones.pop((job.shard, job.jid), None)
        if tombstone and tombstone.until <= self.now:
            tombstone = None
        if job.key:
            self._supersede(job, job.key)
        if parent:
            parent.kids += 1
        fence = None if tombstone else self.fence(job)
        if tombstone:
            job.born = "tombstoned"
            self.end(job, S.CANCELLED, tombstone.cause)
        elif fence:
            fence.verdicts["cancelled"] += 1
            job.born, job.scope = "fenced", fence.id
            self.end(job, S.CANCELLED, "scope")
        else:
            job.state = S.SCHEDULED if job.due else S.QUEUED
            if parent:
                parent.open.append(job)
            return job.born
        if parent:
            parent.cancelled_kid = parent.cancelled_kid or job
        return job.born

    def _supersede(self, job: Job, key: str) -> None:
        before = self.keyed.get(key)
        self.keyed[key] = job
        if before:
            self.touch(before)
            if before.is_live:
                self.accept(before, "superseded")

    def cancel(self, job: Job) -> str:
        self.touch(job)
        if job.is_live:
            return self.accept(job, "user")
        return {S.CANCELLING: "already_cancelling", S.CANCELLED: "already_cancelled"}.get(job.state, "already_finished")

    def entomb(self, shard: int, jid: str, tombstone: Tombstone) -> int:
        """Against a jid that no job has. Answers up to when: a further request only makes it last longer."""
        before = self.tombstones.get((shard, jid))
        if before and before.until > self.now:
            if before.request != tombstone.request:
                before.until, before.request = max(before.until, tombstone.until), tombstone.request
            return before.until
        self.tombstones[shard, jid] = tombstone
        return tombstone.until

    # Workers ---------------------------------------------------------------------------------------------

    def start(self, job: Job, by: str, entry: bytes, token: str, *, adopt: bool = False, occasion: str = "") -> str:
        """
        `adopt`: the worker found the entry among its own, and runs nothing of it. `occasion`: of the hook that its
        handler has.
        """
        self.touch(job)
        ours = job.token == token or (adopt and self._runs_nowhere(job, by, entry))
        if ours and job.state is S.CANCELLING:
            self.end_attempt(job, "before_start")
            return "stale"
        if job.token == token and job.state is S.RUNNING:
            return "started"  # the call was sent again
        if not (job.state is S.QUEUED and job.entry == entry) and not (ours and job.state is S.RUNNING):
            self._was_read(job, entry, occasion)
            return "gone" if job.token == token else "stale"
        cause = self._over(job)
        if cause:
            self.end(job, S.CANCELLED, cause)
            self.clean_up_late(job, occasion)
            return "stale"
        job.state, job.owner, job.token = S.RUNNING, by, token
        job.attempt += 1
        job.occasion = occasion or job.occasion
        self.tell(job, "hook_started")
        return "started"

    @staticmethod
    def _runs_nowhere(job: Job, by: str, entry: bytes) -> bool:
        """Of a worker that knows of no attempt at this entry, which is pending under its name."""
        return job.owner == by and job.entry == entry

    def _was_read(self, job: Job, entry: bytes, occasion: str) -> None:
        """An entry that stands for nothing is removed."""
        if job.state is S.CANCELLED:
            job.unread = job.unread and job.entry != entry
            self.clean_up_late(job, occasion)

    def refuse(self, job: Job, by: str, entry: bytes, *, delay_ms: int, limit: int, unknown: bool) -> str:
        self.touch(job)
        if unknown and self._runs_nowhere(job, by, entry):
            if job.state is S.CANCELLING:
                self.end_attempt(job, "before_start")
                return "stale"
            if job.state is S.RUNNING:
                job.state, job.entry = S.QUEUED, None
                self.tell(job, "hook_ended", "handed_back")
                return "refused"
        if job.state is not S.QUEUED or job.entry != entry:
            self._was_read(job, entry, self.declared_of(job.kind))
            return "stale"
        job.refusals += limit > 0
        if job.refusals > limit > 0:
            self.end(job, S.FAILED, "unknown_kind")
            self.tell(job, "hook_ended", "failed: unknown_kind")
            return "buried"
        if delay_ms:
            delay_ms *= 2 ** (job.refusals - 1) if limit else 1
            job.state, job.due = S.SCHEDULED, self.now + delay_ms
        job.entry = None
        return "refused"

    def is_current(self, job: Job, token: str) -> bool:
        return job.token == token and job.state in (S.RUNNING, S.CANCELLING)

    def beat(self, worker: str, lease_ms: int) -> None:
        self.leases |= {(shard, worker): self.now + lease_ms for shard in self.shards}

    def is_alive(self, shard: int, worker: str) -> bool:
        return self.leases.get((shard, worker), 0) > self.now

    def renew(self, job: Job, token: str) -> str:
        self.touch(job)
        return str(job.state) if self.is_current(job, token) else "stale"

    def save(self, job: Job, token: str, saved: bytes) -> bool:
        if self.is_current(job, token):
            job.saved = saved
            return True
        return False

    def _settles(self, job: Job, token: str, by: str, stopped: str) -> str | None:
        """
        What is to be said without settling anything, if there is. `stopped` abandoned: its code runs on.

        Somebody else may have ended the attempt, and its job waits for its children only.
        """
        self.touch(job)
        if job.settled == token:
            return "settled"
        if not self.is_current(job, token) or job.parked:
            return "stale"
        job.settled = token
        if stopped == "abandoned":
            self.suspect(job, by)
        return None

    def _tell_of_try(self, job: Job, words: str) -> None:
        self.tell(job, "hook_ended", words + (", retried" if job.state is S.SCHEDULED else ""))

    def finish(
        self, job: Job, token: str, by: str, stopped: str, *, failed: bool, finalizer: bool, keep: bool
    ) -> str:  # fmt: skip
        word = self._settles(job, token, by, stopped)
        if word:
            return word
        late = keep and not failed and not finalizer and not job.open and not job.cancelled_kid
        if job.state is S.CANCELLING and not late:
            self.end_attempt(job, stopped)
            return "settled"
        if failed:
            job.failures += 1
            self.end(job, S.FAILED, "error")
        elif finalizer or job.kids:
            job.finalizer = job.finalizer or finalizer
            job.state, job.entry = S.WAITING, None
            if not job.open:
                self.end_waiting(job)
        else:
            self.end(job, S.SUCCEEDED)
        self._tell_of_try(job, "failed" if failed else "succeeded")
        return "settled"

    def retry(self, job: Job, token: str, by: str, stopped: str, retries: int, delay_ms: int) -> str:
        word = self._settles(job, token, by, stopped)
        if word:
            return word
        if job.state is S.CANCELLING:
            self.end_attempt(job, stopped)
            return "settled"
        job.failures += 1
        if job.failures > retries:
            self.end(job, S.FAILED, "error")
        else:
            job.state, job.due, job.entry = S.SCHEDULED, self.now + delay_ms, None
        self._tell_of_try(job, "failed")
        return "settled"

    def release(self, job: Job, token: str, by: str, stopped: str) -> str:
        word = self._settles(job, token, by, stopped)
        if word:
            return word
        if job.state is S.CANCELLING:
            self.end_attempt(job, stopped)
        else:
            job.state, job.entry = S.QUEUED, None
            self._tell_of_try(job, "released")
        return "settled"

    def ask_to_drain(self, worker: str) -> str:
        if (0, worker) not in self.leases:
            return "missing"
        self.to_drain.add(worker)
        return "asked" if self.is_alive(0, worker) else "silent"

    def forget(self, shard: int, worker: str, *, holds: bool, own_wish: bool) -> str:
        if not own_wish and self.is_alive(shard, worker):
            return "alive"
        if holds:
            return "holding"
        self.leases.pop((shard, worker), None)
        if shard == 0:
            self.to_drain.discard(worker)
        return "forgotten"

    # Watchdog --------------------------------------------------------------------------------------------

    def reclaim(self, job: Job, owner: str, entry: bytes, max_losses: int, *, gone: bool) -> str:
        """`gone`: the owner's process is known to be."""
        if self.is_alive(job.shard, owner):
            return "alive"
        self.touch(job)
        held = job.owner == owner and job.entry == entry
        if job.state is S.QUEUED and job.entry == entry:
            job.entry = None
            return "reclaimed"
        if job.state is S.RUNNING and held:
            job.losses += 1
            lost = job.losses > max_losses
            if lost:
                self.end(job, S.FAILED, "lost")
            else:
                job.state, job.entry = S.QUEUED, None
            self.tell(job, "hook_ended", f"lost with {owner}")
            return "lost" if lost else "reclaimed"
        if job.state is S.CANCELLING and held:
            if not gone:
                self.suspect(job, owner)
            self.end_attempt(job, "killed" if gone else "abandoned")
            return "ended"
        self._was_read(job, entry, self.declared_of(job.kind))
        return "stale"

    def promote(self, job: Job) -> str:
        self.touch(job)
        if job.state is not S.SCHEDULED:
            return "stale"
        if job.due > self.now:
            return "early"
        job.state, job.entry = S.QUEUED, None
        return "promoted"

    def _over(self, job: Job) -> str | None:
        never = 2**62
        expires = job.expires if job.expires and not job.attempt else never
        due_by = job.due_by or never
        if min(expires, due_by) > self.now:
            return None
        return "deadline" if due_by <= expires else "expired"

    def expire(self, job: Job) -> str:
        self.touch(job)
        if not job.is_live or (not job.due_by and (job.attempt or not job.expires)):
            return "stale"
        cause = self._over(job)
        return self.accept(job, cause) if cause else "early"

    def finalize(self, job: Job, deadline: int, *, gone: bool) -> str:
        if job.state is not S.CANCELLING:
            return "stale"
        if deadline > self.now:
            return "early"
        if not job.parked and not gone:
            self.suspect(job, job.owner or "")
        self.end(job, S.CANCELLED, ended=job.parked or ("killed" if gone else "abandoned"))
        return "finalized"

    def prune(self, shard: int, suspect_ms: int) -> int:
        """What has expired leaves its list. Answers how much."""
        over: list[tuple[dict, object]] = [
            (self.tombstones, at) for at, each in self.tombstones.items() if at[0] == shard and each.until <= self.now
        ]
        over += [(self.listed, job) for job, until in self.listed.items() if job.shard == shard and until <= self.now]
        over += [
            (self.suspects, each)
            for each, since in self.suspects.items()
            if each[0].shard == shard and since <= self.now - suspect_ms
        ]
        for found, each in over:
            del found[each]
        return len(over)
