"""
How jobs stop and end, what that means for the jobs above them, and what cleans up after them.

Whoever touches a job first carries out what has been decided for it (`touch`). An ending is final: it takes the job off
its key, tells its rule and its parent, and where the job was cancelled and its kind has a hook, it admits that hook.
"""

from __future__ import annotations

from busq.protocol.states import State
from tests.model.decisions import Decisions
from tests.model.job import Job, Rule, finalizer_of, hook_of

S = State
KEEP_MS = {S.SUCCEEDED: 600_000, S.FAILED: 900_000, S.CANCELLED: 900_000}


class Endings(Decisions):
    def __init__(self, shards: int = 1, now: int = 0) -> None:
        super().__init__(shards, now)
        self.keyed: dict[str, Job] = {}
        self.listed: dict[Job, int] = {}  # in the index of its ending, up to then
        self.suspects: dict[tuple[Job, int, str], int] = {}  # attempts that nobody saw stop: since when
        self.declared: dict[str, tuple[str, int]] = {}  # by kind: the occasion of its hook, and when it was said

    def touch(self, job: Job) -> None:
        wish = self.wish(job)
        if wish:
            self.accept(job, wish.cause, wish.rule)

    def accept(self, job: Job, cause: str, rule: Rule | None = None) -> str:
        job.cause, job.scope, job.requested = cause, rule.id if rule else job.scope, self.now
        job.against.clear()
        word = "cancelled" if job.state in (S.SCHEDULED, S.QUEUED) else "signalled"
        if rule:
            rule.verdicts[word] += 1
            rule.unfinished += word == "signalled"
        if word == "cancelled":
            job.unread = job.state is S.QUEUED
            self.end(job, S.CANCELLED)
            return word
        job.parked = "before_start" if job.state is S.WAITING else ""
        job.state, job.signalled = S.CANCELLING, True
        return word

    def end(self, job: Job, state: State, cause: str | None = None, ended: str = "before_start") -> None:
        """`ended`: how, of a cancelled one."""
        job.state, job.cause, job.requested = state, cause or job.cause, job.requested or self.now
        job.against.clear()
        self.listed[job] = self.now + KEEP_MS[state]
        if job.key and self.keyed.get(job.key) is job:
            del self.keyed[job.key]
        for rule in self.rules:
            if rule.id == job.scope:
                rule.ended += 1
                rule.unfinished -= job.signalled
        if job.parent:
            self._child_ended(job, job.parent)
        if state is S.CANCELLED:
            job.ended = ended
            self._clean_up_after(job)

    def end_attempt(self, job: Job, ended: str) -> None:
        """Of a job that was asked to stop: it waits for its children."""
        if job.parked:
            return
        if job.open:
            job.parked, job.entry = ended, None
        else:
            self.end(job, S.CANCELLED, ended=ended)

    def suspect(self, job: Job, owner: str) -> None:
        self.suspects[job, job.attempt, owner] = self.now

    # Parents ---------------------------------------------------------------------------------------------

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
                self.end_waiting(parent)
            else:
                self.end(parent, S.SUCCEEDED)
        elif parent.state is S.WAITING:
            self.end_waiting(parent)
        elif parent.state is S.CANCELLING and parent.parked:
            self.end(parent, S.CANCELLED, ended=parent.parked)

    def end_waiting(self, job: Job) -> None:
        if job.cancelled_kid:
            self.end(job, S.CANCELLED, job.cancelled_kid.cause)
        elif job.finalizer and not job.final:
            job.final = finalizer_of(job, self.now)
            job.open.append(job.final)
            self.jobs.append(job.final)
        else:
            self.end(job, S.SUCCEEDED)

    def abandon(self, job: Job) -> None:
        """Its parent was cancelled and does not wait for it any more."""
        assert job.policy == "abandon", f"{job.jid} was not to be abandoned"
        assert job.parent
        assert not job.parent.is_live, f"{job.jid} was abandoned by a parent that goes on"
        job.parent.open.remove(job)

    def cascaded(self, job: Job) -> None:
        """A cascade has come to the end of its children; perhaps the last that it waited for were abandoned."""
        if job.state is S.CANCELLING and job.parked and not job.open:
            self.end(job, S.CANCELLED, ended=job.parked)

    # Hooks -----------------------------------------------------------------------------------------------

    def declare(self, kind: str, occasion: str, keep_ms: int) -> None:
        """`occasion` "": it has none, and nobody has said otherwise for so long."""
        if occasion:
            self.declared[kind] = (occasion, self.now)
        elif kind in self.declared and self.declared[kind][1] + keep_ms < self.now:
            del self.declared[kind]

    def declared_of(self, kind: str) -> str:
        return self.declared.get(kind, ("", 0))[0]

    def _clean_up_after(self, job: Job) -> None:
        if job.hook_of:
            self.tell(job, "hook_ended", f"cancelled, {job.ended}")
        else:
            self._admit_hook(job, job.occasion or self.declared_of(job.kind))

    def clean_up_late(self, job: Job, occasion: str) -> None:
        """The entry of a cancelled job is removed, and until now nobody could say that its kind has a hook."""
        if not job.hook and not job.occasion and not job.hook_of:
            self._admit_hook(job, occasion)

    def _admit_hook(self, job: Job, occasion: str) -> None:
        if occasion == "always" or (occasion == "attempted" and job.attempt):
            job.hook = hook_of(job, self.now)
            self.jobs.append(job.hook)

    def tell(self, hook: Job, name: str, words: str = "") -> None:
        """A line in the history of the job that this hook cleans up after."""
        if hook.hook_of:
            hook.hook_of.told.append((name, f"try {hook.attempt}" + (f": {words}" if words else "")))
