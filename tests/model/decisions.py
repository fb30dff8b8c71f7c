"""
What has been decided: rules, and what comes down from above.

A rule is judged for every job at the moment of its decision. What it decides stands `against` a job until whoever
touches the job next carries it out (endings.py); shown is a job as if that had happened already.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from busq.protocol.states import State
from tests.model.job import STOPPED, Job, Rule
from tests.store.judge import matches

S = State


class Wish(NamedTuple):
    """A cause, and the rule if it is one; `at`: when it was decided."""

    cause: str
    rule: Rule | None
    at: int


class Decisions:
    def __init__(self, shards: int = 1, now: int = 0) -> None:
        self.shards = range(shards)
        self.now = now
        self.jobs: list[Job] = []
        self.rules: list[Rule] = []

    def facts(self, job: Job, at: int) -> dict[str, Any]:
        return {
            "jid": job.jid, "kind": job.kind, "queue": job.queue, "group": job.group, "state": str(job.state),
            "parent": job.parent and job.parent.jid, "worker": job.owner if job.state is S.RUNNING else None,
            "attempt": job.attempt, "failures": job.failures, "losses": job.losses, "age": (at - job.at) / 1000,
            "args": job.args, "tags": {}, "ancestors": {above.jid for above in job.ancestors()},
        }  # fmt: skip

    def decide(self, rule: Rule) -> None:
        rule.live, rule.at = set(self.shards), self.now
        self.rules.append(rule)
        for job in self.jobs:
            if job.is_live and not job.hook_of and matches(rule.condition, self.facts(job, self.now)):
                job.against.append(rule)

    def end_rule(self, rule: Rule, shards: set[int]) -> None:
        rule.live -= shards
        for job in self.jobs:
            if rule in job.against and job.shard in shards:
                job.against.remove(rule)

    def fence(self, job: Job) -> Rule | None:
        """The standing rule that a newborn job comes under."""
        standing = (rule for rule in self.rules if job.shard in rule.live and rule.until > self.now)
        return next((rule for rule in standing if matches(rule.condition, self.facts(job, self.now))), None)

    def doomed_from_above_at(self, job: Job) -> int | None:
        """Since when. A failed job hands on what comes from above, for its children may run still."""
        above = job.parent
        if above is None or job.policy != "cancel":
            return None
        if above.state in STOPPED:
            return above.requested
        if above.state is S.FAILED:
            return self.doomed_from_above_at(above)
        wish = self.wish(above)
        return wish.at if wish else None

    def wish(self, job: Job) -> Wish | None:
        """What stands against a job and has not been carried out; the first cause stands."""
        if not job.is_live:
            return None
        down = self.doomed_from_above_at(job)
        rule = job.against[0] if job.against else None
        if down is not None and (rule is None or down < rule.at):
            return Wish("parent", None, down)
        return Wish("scope", rule, rule.at) if rule else None

    def shown(self, job: Job) -> State:
        if not self.wish(job):
            return job.state
        return S.CANCELLED if job.state in (S.SCHEDULED, S.QUEUED) else S.CANCELLING
