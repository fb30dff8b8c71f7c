"""
2,000 short jobs in each executor, cancelled at random moments round their end: all that is known of them agrees.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

import busq
from busq.protocol.job import Evidence
from tests.executors.house import House, house
from tests.executors.judge import Told, contradictions
from tests.executors.stage import STEP_S

JOBS = 2000
AT_ONCE = 20
SLOTS = 4  # of threads, or of child processes


class Moments:
    """When to cancel: at random, and on the average when jobs end, however quick this machine is at the moment."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._reach_s = 0.02

    def next(self) -> float:
        return self._rng.uniform(0, self._reach_s)

    def learn(self, verdict: str) -> None:
        """Too early and too late answers move the moment against each other."""
        self._reach_s *= {"cancelled": 1.05, "already_finished": 0.96}.get(verdict, 1.0)


@pytest.mark.timeout(240)  # some seconds, where nobody else uses the machine
async def test_cancels_round_the_end_of_a_job_leave_no_contradiction(
    redis_url: str, executor: str, tmp_path: Path, record_property: Any
) -> None:
    seed = int(os.environ.get("BUSQ_TEST_SEED", "0")) or random.randrange(1, 10**6)
    print(f"seed {seed}: BUSQ_TEST_SEED={seed} throws the same dice")
    rng = random.Random(seed)
    moments, judged = Moments(rng), []
    async with house(redis_url, executor, tmp_path, backoff_s=0.005, backoff_max_s=0.01) as h:
        await h.work(concurrency=AT_ONCE if executor == "coroutine" else SLOTS)
        await h.watch()
        for handle in await h.bus.enqueue_many(h.bus.spec("doubled", n) for n in range(2 * SLOTS)):
            await handle.wait(timeout=20)

        async def one() -> tuple[str, busq.Job]:
            seconds = rng.choice((0.0, rng.uniform(0, STEP_S)))
            handle = await h.play("short", seconds, rng.choice(("returns", "returns", "raises")))
            await asyncio.sleep(moments.next())
            verdict = (await handle.cancel()).verdict
            moments.learn(verdict)
            return verdict, await handle.wait(timeout=30)

        async def some() -> None:
            judged.extend([await one() for _ in range(JOBS // AT_ONCE)])

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))
        effects = effects_of(h)
        told = [Told(verdict, job, await h.events(job.jid), effects.get(job.jid, [])) for verdict, job in judged]
    wrong = {each.job.jid: found for each in told if (found := contradictions(each))}
    assert not wrong, f"seed {seed}: {wrong}"
    assert len({each.job.jid for each in told}) == JOBS
    endings = Counter(f"{each.verdict}: {each.job.ended or each.job.state}" for each in told)
    print(dict(endings))
    record_property("endings", str(dict(endings)))
    assert {each.verdict for each in told} == {"cancelled", "signalled", "already_finished"}, "too few sorts"


def effects_of(h: House) -> dict[str, list[tuple[int, str]]]:
    """What the handlers noted, by jid."""
    effects: dict[str, list[tuple[int, str]]] = {}
    for line in h.lines("effects"):
        jid, attempt, word = line.split()
        effects.setdefault(jid, []).append((int(attempt), word))
    return effects


# The judge is judged --------------------------------------------------------------------------------------

JOB = busq.Job(jid="j", kind="short", queue="default", state=busq.State.SUCCEEDED, attempt=1, result="j")
RAN = [("enqueued", 0), ("started", 1)]
ASKED = [*RAN, ("requested", 1), ("tripped", 1)]
END = ("finalized", 1)

FINISHED = Told("already_finished", JOB, [*RAN, END], [(1, "began"), (1, "returned")])
HEARD = Told(
    "signalled",
    msgspec.structs.replace(
        JOB, state=busq.State.CANCELLED, ended="confirmed", result=None, evidence=Evidence(outcome="cancelled")
    ),
    [*ASKED, ("observed", 1), ("stopped", 1), END],
    [(1, "began"), (1, "heard")],
)
UNHEARD = Told(
    "signalled",
    msgspec.structs.replace(
        JOB, state=busq.State.CANCELLED, ended="completed", result=None, evidence=Evidence(outcome="succeeded")
    ),
    [*ASKED, ("stopped", 1), END],
    [(1, "began"), (1, "returned")],
)
NEVER = Told(
    "cancelled",
    msgspec.structs.replace(JOB, state=busq.State.CANCELLED, ended="before_start", attempt=0, result=None),
    [("enqueued", 0), ("requested", 0), ("finalized", 0)],
    [],
)
HANDED_BACK = Told(
    "cancelled",
    msgspec.structs.replace(NEVER.job, attempt=2, failures=1),
    [*RAN, ("retried", 1), ("handed_back", 1), ("started", 2), ("handed_back", 2), ("requested", 2), ("finalized", 2)],
    [(1, "began"), (1, "raised")],
)
GIVEN_BACK = Told(
    "signalled",
    msgspec.structs.replace(UNHEARD.job, evidence=Evidence(outcome="interrupted")),
    [*RAN, ("requested", 1), END],
    [],
)
HARMLESS = {
    "finished": FINISHED,
    "heard": HEARD,
    "unheard": UNHEARD,
    "never": NEVER,
    "handed back": HANDED_BACK,
    "given back while it was being cancelled": GIVEN_BACK,
}


@pytest.mark.parametrize("told", HARMLESS.values(), ids=HARMLESS)
def test_the_judge_finds_nothing_in_what_agrees(told: Told) -> None:
    assert contradictions(told) == []


def but(told: Told, verdict: str = "", events: Any = None, effects: Any = None, **job: Any) -> Told:
    return Told(
        verdict or told.verdict,
        msgspec.structs.replace(told.job, **job),
        told.events if events is None else events,
        told.effects if effects is None else effects,
    )


CONTRADICTIONS = {
    "a cancel was accepted and the job succeeded": but(FINISHED, "signalled"),
    "it had finished and is cancelled": but(HEARD, "already_finished"),
    "its result was applied after the cancel": but(HEARD, result="j"),
    "another job's result": but(FINISHED, result="k"),
    "finalized twice": but(FINISHED, events=[*RAN, END, END]),
    "never finalized": but(FINISHED, events=RAN),
    "started after the cancel": but(HEARD, events=[*HEARD.events[:-1], ("started", 2), END], attempt=2),
    "retried after the cancel": but(HEARD, events=[*HEARD.events[:-1], ("retried", 1), END], failures=1),
    "confirmed without having observed": but(HEARD, events=UNHEARD.events),
    "observed and said to be completed": but(UNHEARD, events=HEARD.events),
    "it never started and the handler ran": but(NEVER, effects=[(1, "began"), (1, "returned")]),
    "it was handed back before it began and the handler ran": but(
        HANDED_BACK, effects=[*HANDED_BACK.effects, (2, "began"), (2, "raised")]
    ),
    "it was given back before it began and the handler ran": but(GIVEN_BACK, effects=UNHEARD.effects),
    "completed and the handler never began": but(UNHEARD, effects=[]),
    "its first attempt was not handed back and never ran": but(HANDED_BACK, effects=[]),
    "it had one attempt and the handler ran twice": but(FINISHED, effects=[*FINISHED.effects, *FINISHED.effects]),
    "the second attempt ran before it was started": but(FINISHED, effects=[(2, "began"), (2, "returned")]),
    "succeeded and the handler raised": but(FINISHED, effects=[(1, "began"), (1, "raised")]),
    "succeeded and the handler never began": but(FINISHED, effects=[]),
    "the handler heard and nobody knows": but(UNHEARD, effects=HEARD.effects),
    "the evidence is of another ending": but(HEARD, evidence=Evidence(outcome="succeeded")),
    "cancelled while it ran and no evidence": but(HEARD, evidence=None),
    "failures that nobody counted": but(FINISHED, failures=1),
    "attempts go backwards": but(FINISHED, events=[("enqueued", 0), ("started", 1), ("finalized", 0)]),
}


@pytest.mark.parametrize("told", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_the_judge_finds_what_does_not_agree(told: Told) -> None:
    assert contradictions(told)
