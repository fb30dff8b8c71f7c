"""
Whether what is known of one cancelled job holds together: verdict, record, history, and what the handler itself says.

Nothing here asks the bus. `contradictions` is tried on records that nobody should ever see before it judges real ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import busq

ENDS = {"returned": "succeeded", "raised": "failed", "heard": "cancelled"}
"""What a handler says at its end, and the outcome that the worker is to tell of it."""


class Told(NamedTuple):
    """All that is known. `effects`: what the handler noted, (attempt, word), in order."""

    verdict: str
    job: busq.Job
    events: list[tuple[str, int]]
    effects: list[tuple[int, str]]


def contradictions(told: Told) -> list[str]:
    """In words; none when everything agrees."""
    return [*_of_the_verdict(told), *_of_the_history(told), *_of_the_handler(told)]


def _of_the_verdict(told: Told) -> Iterable[str]:
    job, verdict = told.job, told.verdict
    ended = (job.state, job.ended)
    if verdict == "cancelled" and ended != ("cancelled", "before_start"):
        yield f"{verdict}, and it is {ended}"
    if verdict == "signalled" and ended not in (("cancelled", "confirmed"), ("cancelled", "completed")):
        yield f"{verdict}, and it is {ended}"
    if verdict == "already_finished" and (job.state not in ("succeeded", "failed") or job.ended is not None):
        yield f"{verdict}, and it is {ended}"
    if verdict not in ("cancelled", "signalled", "already_finished"):
        yield f"nobody should be told {verdict}"
    if (job.evidence is not None) != (verdict == "signalled"):
        yield f"{verdict}, and the evidence is {job.evidence}"
    if job.state != "succeeded" and job.result is not None:
        yield f"a result was applied to a job that is {job.state}"
    if job.state == "succeeded" and job.result != job.jid:
        yield f"the result is {job.result!r}"


def _of_the_history(told: Told) -> Iterable[str]:
    job = told.job
    names = [name for name, _ in told.events]
    if names.count("finalized") != 1 or names[-1] != "finalized":
        yield f"not finalized once and last: {names}"
    if names[0] != "enqueued" or names.count("enqueued") != 1:
        yield f"not enqueued once and first: {names}"
    if [n for _, n in told.events] != sorted(n for _, n in told.events):
        yield f"attempts go backwards: {told.events}"
    if [n for name, n in told.events if name == "started"] != list(range(1, job.attempt + 1)):
        yield f"{job.attempt} attempts, and the starts are {told.events}"
    asked = told.verdict != "already_finished"
    if ("requested" in names) != asked:
        yield f"{told.verdict}, and the history is {names}"
    if asked and "requested" in names and {"started", "retried", "promoted"} & set(after(names, "requested")):
        yield f"it went on after an accepted cancel: {names}"
    if ("observed" in names) != (job.ended == "confirmed"):
        yield f"{job.ended}, and the history is {names}"
    if job.failures != names.count("retried") + (job.state == "failed"):
        yield f"{job.failures} failures, and the history is {names}"


def after(names: list[str], name: str) -> list[str]:
    return names[names.index(name) + 1 :]


def _of_the_handler(told: Told) -> Iterable[str]:
    job = told.job
    said: dict[int, list[str]] = {}
    for attempt, word in told.effects:
        said.setdefault(attempt, []).append(word)
    if any(words[0] != "began" or words.count("began") != 1 or len(words) > 2 for words in said.values()):
        yield f"an attempt ran twice, or not to its end: {told.effects}"
    if said and max(said) > job.attempt:
        yield f"{job.attempt} attempts, and attempt {max(said)} ran"
    # Those that waited in vain for a child to be free: started, and their handlers have not begun. An entry that is
    # given back before it is started is another thing, and bears the number of the attempt before.
    lines = pairwise(told.events)
    handed_back = {n for (one, n), (then, _) in lines if (one, then) == ("started", "handed_back")}
    if handed_back & said.keys():
        yield f"attempts {handed_back} were handed back, and the handler says {told.effects}"
    last = said.get(job.attempt, [])
    end = last[-1] if last else None
    # The cancel came while it waited for a child, and the worker gave it back before it heard of that.
    never_began = job.evidence is not None and job.evidence.outcome == "interrupted"
    if never_began and last:
        yield f"interrupted before it began, and the handler says {told.effects}"
    if job.ended == "before_start":
        wrong = [words for words in said.values() if words[-1] != "raised"]  # an attempt before, waiting for its retry
        if wrong or said.keys() | handed_back != set(range(1, job.attempt + 1)):
            yield f"before_start after {job.attempt} attempts, and the handler says {told.effects}"
    elif job.ended is None and ENDS.get(str(end)) != job.state:
        yield f"{job.state}, and the handler says {end}"
    elif job.ended == "completed" and end not in ("returned", "raised") and not never_began:
        yield f"completed, and the handler says {end}"
    if job.evidence is not None and end in ENDS and job.evidence.outcome != ENDS[str(end)]:
        yield f"the evidence is {job.evidence.outcome}, and the handler says {end}"
    if end == "heard" and job.ended != "confirmed":
        yield f"{job.ended}, and the handler says that it heard"
