"""
What has been decided: rules, and what comes down from above.

A rule is judged for every job at the moment of its decision. What it decides stands `against` a job until whoever
touches the job next carries it out (endings.py); shown is a job as if that had happened already.
"""

from __future__ import annotations

from typing import Any

from busq.protocol.states import State
from tests.model.job import STOPPED, Job, Rule
from tests.store.judge import matches

S = State


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
        rule.live = set(self.shards)
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
