"""
The bus in plain Python: what rules, trees and keys mean, without Redis and without laziness.

A rule is judged for every job at the moment of its decision. What it decides stands `against` a job until whoever
touches the job next carries it out (`touch`); shown is a job as if that had happened already. Every other method is one
verb: it changes the jobs and says what the verb is to answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from busq.protocol.states import State
from tests.store.judge import matches

S = State
LIVE = (S.SCHEDULED, S.QUEUED, S.RUNNING, S.WAITING)
STOPPED = (S.CANCELLING, S.CANCELLED)


@dataclass(eq=False)
class Job:
    """`token` and `owner` are those of the newest attempt, `entry` is the one that stands for the job."""

    jid: str
    kind: str
    group: str | None = None
    key: str | None = None
    parent: Job | None = None
    policy: str = "cancel"
    args: dict[str, Any] = field(default_factory=dict)
    state: State = S.QUEUED
    born: str = "enqueued"
    at: int = 0
    due: int = 0
    expires: int | None = None
    due_by: int | None = None
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    refusals: int = 0
    entry: bytes | None = None
    owner: str | None = None
    token: str = ""
    settled: str = ""
    parked: bool = False
    cause: str | None = None
    scope: str | None = None
    signalled: bool = False
    hooked: bool = False
    against: list[Rule] = field(default_factory=list)
    open: list[Job] = field(default_factory=list)
    kids: int = 0
    kids_failed: int = 0
    cancelled_kid: Job | None = None
    finalizer: bool = False
    final: Job | None = None

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    def ancestors(self) -> Iterator[Job]:
        above = self.parent
        while above:
            yield above
            above = above.parent


@dataclass(eq=False)
class Rule:
    """`until`: later arrivals match up to then; 0 for a rule that does not stand."""

    id: str
    condition: Any
    until: int = 0
    live: bool = True
    state: str = "settling"
    verdicts: dict[str, int] = field(default_factory=lambda: {"cancelled": 0, "signalled": 0})
    ended: int = 0
    unfinished: int = 0


class Bus:
    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.rules: list[Rule] = []
        self.keyed: dict[str, Job] = {}
        self.now = 0

    def facts(self, job: Job, at: int) -> dict[str, Any]:
        return {
            "jid": job.jid, "kind": job.kind, "queue": "q", "group": job.group, "state": str(job.state),
            "parent": job.parent and job.parent.jid, "worker": job.owner if job.state is S.RUNNING else None,
            "attempt": job.attempt, "failures": job.failures, "losses": job.losses, "age": (at - job.at) / 1000,
            "args": job.args, "tags": {}, "ancestors": {above.jid for above in job.ancestors()},
        }  # fmt: skip

    # What has been decided -------------------------------------------------------------------------------

    def decide(self, rule: Rule) -> None:
        self.rules.append(rule)
        for job in self.jobs:
            if job.is_live and matches(rule.condition, self.facts(job, self.now)):
                job.against.append(rule)

    def end_rule(self, rule: Rule) -> None:
        rule.live = False
        for job in self.jobs:
            if rule in job.against:
                job.against.remove(rule)

    def is_doomed_from_above(self, job: Job) -> bool:
        """A failed job hands on what comes from above, for its children may run still."""
        above = job.parent
        if above is None or job.policy != "cancel":
            return False
        if self.shown(above) in STOPPED:
            return True
        return above.state is S.FAILED and self.is_doomed_from_above(above)

    def wish(self, job: Job) -> tuple[str, Rule | None] | None:
        """What stands against a job and has not been carried out: its cause, and the rule if it is one."""
        if not job.is_live:
            return None
        if job.against:
            return "scope", job.against[0]
        return ("parent", None) if self.is_doomed_from_above(job) else None

    def shown(self, job: Job) -> State:
        if not self.wish(job):
            return job.state
        return S.CANCELLED if job.state in (S.SCHEDULED, S.QUEUED) else S.CANCELLING

    def touch(self, job: Job) -> None:
        """Carry out what has been decided for it."""
        wish = self.wish(job)
        if wish:
            self.accept(job, *wish)

    def accept(self, job: Job, cause: str, rule: Rule | None = None) -> str:
        job.cause, job.scope = cause, rule.id if rule else job.scope
        job.against.clear()
        word = "cancelled" if job.state in (S.SCHEDULED, S.QUEUED) else "signalled"
        if rule:
            rule.verdicts[word] += 1
            rule.unfinished += word == "signalled"
        if word == "cancelled":
            self.end(job, S.CANCELLED)
            return word
        job.parked = job.state is S.WAITING
        job.state, job.signalled = S.CANCELLING, True
        return word

    # Endings ---------------------------------------------------------------------------------------------

    def end(self, job: Job, state: State, cause: str | None = None) -> None:
        job.state, job.cause = state, cause or job.cause
        job.against.clear()
        if job.key and self.keyed.get(job.key) is job:
            del self.keyed[job.key]
        for rule in self.rules:
            if rule.id == job.scope:
                rule.ended += 1
                rule.unfinished -= job.signalled
        if job.parent:
            self._child_ended(job, job.parent)

    def _child_ended(self, job: Job, parent: Job) -> None:
        if job not in parent.open:
            return
        if parent.state is S.WAITING:
            self.touch(parent)
        parent.open.remove(job)
        if job.state is S.CANCELLED:
            parent.cancelled_kid = parent.cancelled_kid or job
        elif job.state is S.FAILED and job is not parent.final:
            parent.kids_failed += 1
        if parent.open:
            return
        if parent.state is S.WAITING and job is parent.final:
            if job.state is S.FAILED:
                self.end(parent, S.FAILED, "finalize")
            elif job.state is S.CANCELLED:
                parent.cancelled_kid = job
                self._end_waiting(parent)
            else:
                self.end(parent, S.SUCCEEDED)
        elif parent.state is S.WAITING:
            self._end_waiting(parent)
        elif parent.state is S.CANCELLING and parent.parked:
            self.end(parent, S.CANCELLED)

    def _end_waiting(self, job: Job) -> None:
        if job.cancelled_kid:
            self.end(job, S.CANCELLED, job.cancelled_kid.cause)
        elif job.finalizer and not job.final:
            job.final = Job("", job.kind + "/finalize", job.group, parent=job, args=job.args, at=self.now)
            job.open.append(job.final)
            self.jobs.append(job.final)
        else:
            self.end(job, S.SUCCEEDED)

    def _end_attempt(self, job: Job) -> None:
        if job.open:
            job.parked, job.entry = True, None
        else:
            self.end(job, S.CANCELLED)

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
        if job.key:
            before = self.keyed.get(job.key)
            self.keyed[job.key] = job
            if before:
                self.touch(before)
                if before.is_live:
                    self.accept(before, "superseded")
        if parent:
            parent.kids += 1
        against = [rule for rule in self.rules if rule.live and rule.until > self.now]
        fence = next((rule for rule in against if matches(rule.condition, self.facts(job, self.now))), None)
        if fence:
            fence.verdicts["cancelled"] += 1
            job.born, job.scope = "fenced", fence.id
            self.end(job, S.CANCELLED, "scope")
            if parent:
                parent.cancelled_kid = parent.cancelled_kid or job
        else:
            job.state = S.SCHEDULED if job.due else S.QUEUED
            if parent:
                parent.open.append(job)
        return job.born

    def cancel(self, job: Job) -> str:
        self.touch(job)
        if job.is_live:
            return self.accept(job, "user")
        return {S.CANCELLING: "already_cancelling", S.CANCELLED: "already_cancelled"}.get(job.state, "already_finished")

    # Workers ---------------------------------------------------------------------------------------------

    def start(self, job: Job, by: str, entry: bytes, token: str, *, adopt: bool = False) -> str:
        """`adopt`: the worker found the entry among its own, and runs nothing of it."""
        self.touch(job)
        ours = job.token == token or (adopt and self._runs_nowhere(job, by, entry))
        if ours and job.state is S.CANCELLING:
            self._end_attempt(job)
            return "stale"
        if job.token == token and job.state is S.RUNNING:
            return "started"  # the call was sent again
        if not (job.state is S.QUEUED and job.entry == entry) and not (ours and job.state is S.RUNNING):
            return "stale"
        cause = self._over(job)
        if cause:
            self.end(job, S.CANCELLED, cause)
            return "stale"
        job.state, job.owner, job.token = S.RUNNING, by, token
        job.attempt += 1
        return "started"

    @staticmethod
    def _runs_nowhere(job: Job, by: str, entry: bytes) -> bool:
        """Of a worker that knows of no attempt at this entry, which is pending under its name."""
        return job.owner == by and job.entry == entry

    def refuse(self, job: Job, by: str, entry: bytes, *, delay_ms: int, limit: int, unknown: bool) -> str:
        self.touch(job)
        if unknown and self._runs_nowhere(job, by, entry):
            if job.state is S.CANCELLING:
                self._end_attempt(job)
                return "stale"
            if job.state is S.RUNNING:
                job.state, job.entry = S.QUEUED, None
                return "refused"
        if job.state is not S.QUEUED or job.entry != entry:
            return "stale"
        job.refusals += limit > 0
        if job.refusals > limit > 0:
            self.end(job, S.FAILED, "unknown_kind")
            return "buried"
        if delay_ms:
            delay_ms *= 2 ** (job.refusals - 1) if limit else 1
            job.state, job.due = S.SCHEDULED, self.now + delay_ms
        job.entry = None
        return "refused"

    def is_current(self, job: Job, token: str) -> bool:
        return job.token == token and job.state in (S.RUNNING, S.CANCELLING)

    def renew(self, job: Job, token: str) -> str:
        self.touch(job)
        return str(job.state) if self.is_current(job, token) else "stale"

    def _settles(self, job: Job, token: str) -> str | None:
        """What is to be said without settling anything, if there is."""
        self.touch(job)
        if job.settled == token:
            return "settled"
        if not self.is_current(job, token):
            return "stale"
        job.settled = token
        return None

    def finish(self, job: Job, token: str, *, failed: bool, finalizer: bool, keep: bool) -> str:
        word = self._settles(job, token)
        if word:
            return word
        late = keep and not failed and not finalizer and not job.open and not job.cancelled_kid
        if job.state is S.CANCELLING and not late:
            self._end_attempt(job)
        elif failed:
            job.failures += 1
            self.end(job, S.FAILED, "error")
        elif finalizer or job.kids:
            job.finalizer = job.finalizer or finalizer
            job.state, job.entry = S.WAITING, None
            if not job.open:
                self._end_waiting(job)
        else:
            self.end(job, S.SUCCEEDED)
        return "settled"

    def retry(self, job: Job, token: str, retries: int, delay_ms: int) -> str:
        word = self._settles(job, token)
        if word:
            return word
        if job.state is S.CANCELLING:
            self._end_attempt(job)
            return "settled"
        job.failures += 1
        if job.failures > retries:
            self.end(job, S.FAILED, "error")
        else:
            job.state, job.due, job.entry = S.SCHEDULED, self.now + delay_ms, None
        return "settled"

    def release(self, job: Job, token: str) -> str:
        word = self._settles(job, token)
        if word:
            return word
        if job.state is S.CANCELLING:
            self._end_attempt(job)
        else:
            job.state, job.entry = S.QUEUED, None
        return "settled"

    # Watchdog --------------------------------------------------------------------------------------------

    def reclaim(self, job: Job, owner: str, entry: bytes, max_losses: int) -> str:
        self.touch(job)
        held = job.owner == owner and job.entry == entry
        if job.state is S.QUEUED and job.entry == entry:
            job.entry = None
            return "reclaimed"
        if job.state is S.RUNNING and held:
            job.losses += 1
            if job.losses > max_losses:
                self.end(job, S.FAILED, "lost")
                return "lost"
            job.state, job.entry = S.QUEUED, None
            return "reclaimed"
        if job.state is S.CANCELLING and held:
            self._end_attempt(job)
            return "ended"
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

    def finalize(self, job: Job, deadline: int) -> str:
        if job.state is not S.CANCELLING:
            return "stale"
        if deadline > self.now:
            return "early"
        self.end(job, S.CANCELLED)
        return "finalized"

    def abandon(self, job: Job) -> None:
        """Its parent was cancelled and does not wait for it any more."""
        assert job.policy == "abandon", f"{job.jid} was not to be abandoned"
        assert job.parent
        assert job.parent.state in STOPPED, f"{job.jid} was abandoned by a parent that goes on"
        job.parent.open.remove(job)

    def cascaded(self, job: Job) -> None:
        """A cascade has come to the end of its children; perhaps the last that it waited for were abandoned."""
        if job.state is S.CANCELLING and job.parked and not job.open:
            self.end(job, S.CANCELLED)
