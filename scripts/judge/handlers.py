"""
What handlers saw from inside, beside the log: latency of cancels, false cancels, attempts side by side, the dead.

A handler's token is tripped for a durable reason only (C12). Two attempts of one job may run side by side only when
the first was taken from its owner, or given up as a suspect (C13). No code runs for more than a second after its
process was killed, or after it was said of its attempt that it had stopped (C14).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from judge import schema as s
from judge.clients import Jobs
from judge.contract import ACCEPTED, CANCELLED, CANCELLING, NO_CANCELS, RUNNING, STOPPED
from judge.faults import Faults
from judge.history import Event, History
from judge.verdict import Verdict

GRACE_OF_THE_DEAD_NS = 1_000_000_000
SIGNS_OF_LIFE = ("h_start", "h_tick", "h_effect", "h_cancel_seen", "h_end")


def judge_handlers(
    jobs: Jobs,
    history: History,
    faults: Faults,
    verdict: Verdict,
    *,
    suspects: set[tuple[str, int]],
    hears: Mapping[str, Any],
) -> None:
    """`hears`, where a run has it: kinds whose handlers wait and so hear a cancel, and `within_s` of its acceptance."""
    _false_cancels(jobs, history, verdict)
    _side_by_side(jobs, history, verdict, suspects)
    _after_death(history, faults, verdict)
    _after_the_end(jobs, history, faults, verdict)
    _before_start(jobs, history, verdict)
    accepted = _accepted(history)
    _latency(accepted, history, faults, verdict)
    if hears:
        _heard(accepted, jobs, history, verdict, hears)


def _false_cancels(jobs: Jobs, history: History, verdict: Verdict) -> None:
    causes: Counter[str] = Counter()
    for event in history.by_ev["h_cancel_seen"]:
        cause = str(event.told("cause") or "none")
        causes[cause] += 1
        if cause in NO_CANCELS or event.jid is None:
            continue
        lives = jobs.by_jid.get(event.jid, [])
        if any(life.requested is not None for life in lives):
            continue
        if cause == "none" and any(_was_left(life.attempts, event.fence) for life in lives):
            continue
        verdict.wrong(
            "C12", event.jid, None, f"attempt {event.fence} saw a cancel (cause {cause}) that nobody had asked for"
        )
    verdict.figures["cancels_seen"] = dict(causes)


def _was_left(attempts: list[Any], fence: int | None) -> bool:
    """Whether this attempt ended before its job did: taken away, timed out, handed back."""
    return any(each.number == fence and each is not attempts[-1] for each in attempts)


def _side_by_side(jobs: Jobs, history: History, verdict: Verdict, suspects: set[tuple[str, int]]) -> None:
    began: dict[tuple[str, int], Event] = {}
    ended: dict[tuple[str, int], int] = {}
    runs: dict[str, set[int]] = defaultdict(set)
    for event in history.by_ev["h_start"]:
        if event.jid and event.fence is not None:
            key = (event.jid, event.fence)
            if key in began and began[key].attempt != event.attempt:
                verdict.wrong(
                    "C8", event.jid, None, f"attempt {event.fence} ran twice: in {began[key].proc} and in {event.proc}"
                )
            began.setdefault(key, event)
            runs[event.jid].add(event.fence)
    for event in history.by_ev["h_end"]:
        if event.jid and event.fence is not None:
            ended[event.jid, event.fence] = event.mono
    both = 0
    for jid, numbers in runs.items():
        lives = jobs.by_jid.get(jid, [])
        for one, other in zip(sorted(numbers), sorted(numbers)[1:], strict=False):
            end = ended.get((jid, one))
            if end is None or end <= began[jid, other].mono:
                continue
            both += 1
            attempts = [each for life in lives for each in life.attempts if each.number == one]
            if attempts and not any(each.taken for each in attempts) and (jid, one) not in suspects:
                verdict.wrong(
                    "C13",
                    jid,
                    attempts[0].ended,
                    f"attempt {other} began while {one} ran on, which its own worker had settled and not given up",
                )
    verdict.figures["attempts_side_by_side"] = both


def _after_death(history: History, faults: Faults, verdict: Verdict) -> None:
    """A handler's process is its own, and that of the worker above it where it says so (`ppid`)."""
    first: dict[int, int] = {}
    above: dict[int, int] = {}
    for event in history.events:
        if event.role == "handler":
            first.setdefault(event.source, event.mono)
            if event.told("ppid"):
                above[event.source] = int(event.told("ppid"))
    for ev in ("h_tick", "h_effect"):
        for event in history.by_ev[ev]:
            own = event.proc.rpartition(":")[2]
            for pid in (int(own) if own.isdigit() else None, above.get(event.source)):
                death = faults.kills.get(pid) if pid is not None else None
                # A process that began after that death has its number from the dead one.
                if death is None or first[event.source] > death or event.mono <= death + GRACE_OF_THE_DEAD_NS:
                    continue
                late = (event.mono - death) / 1e9
                verdict.wrong("C14", event.jid or "", None, f"{ev} of {event.proc} {late:.1f} s after {pid} was killed")


def _after_the_end(jobs: Jobs, history: History, faults: Faults, verdict: Verdict) -> None:
    """What was said to have stopped, or to have been ended with its process, is heard of no more."""
    judged = 0
    for event in (event for ev in SIGNS_OF_LIFE for event in history.by_ev[ev]):
        lives = jobs.by_jid.get(event.jid or "", [])
        if len(lives) != 1 or lives[0].state != CANCELLED or lives[0].record.get(s.ENDED) not in STOPPED:
            continue
        life = lives[0]
        ended = faults.latest_mono(life.server, s.number_of(life.record, s.FINISHED))
        if ended is None or not life.attempts or event.fence != life.attempts[-1].number:
            continue
        judged += 1
        if event.mono > ended + GRACE_OF_THE_DEAD_NS:
            words = f"{event.ev} of attempt {event.fence} {(event.mono - ended) / 1e9:.1f} s after it was "
            verdict.wrong("C14", life.jid, life.terminal, words + life.record[s.ENDED].decode())
    verdict.figures["signs_of_life_of_the_stopped"] = judged


def _before_start(jobs: Jobs, history: History, verdict: Verdict) -> None:
    """A running job is said to have ended before its start only when nothing of the attempt ever ran."""
    ran = {(event.jid, event.fence) for event in history.by_ev["h_start"]}
    for life in jobs.all:
        states = [state for _, state in life.states[-3:]]
        if life.record.get(s.ENDED) == b"before_start" and states == [RUNNING, CANCELLING, CANCELLED]:
            number = life.attempts[-1].number
            if (life.jid, number) in ran:
                verdict.wrong("C14", life.jid, life.terminal, f"attempt {number} is said never to have run, and it ran")


def _accepted(history: History) -> dict[str, int]:
    """When the first cancel of each job was answered."""
    accepted: dict[str, int] = {}
    for call in history.calls["cancel"]:
        if call.type == "ok" and call.jid and call.ended and (call.answer or "").lower() in ACCEPTED:
            accepted[call.jid] = min(call.ended.mono, accepted.get(call.jid, call.ended.mono))
    return accepted


def _heard(accepted: dict[str, int], jobs: Jobs, history: History, verdict: Verdict, hears: Mapping[str, Any]) -> None:
    seen: dict[str, int] = {}
    for event in history.by_ev["h_cancel_seen"]:
        if event.jid and str(event.told("cause")) not in NO_CANCELS:
            seen.setdefault(event.jid, event.mono)
    for jid, at in accepted.items():
        lives = jobs.by_jid.get(jid, [])
        signalled = [life for life in lives if life.signalled and life.kind in hears["kinds"]]
        if not signalled:
            continue
        took = (seen[jid] - at) / 1e9 if jid in seen else None
        if took is None or took > float(hears["within_s"]):
            how = "never" if took is None else f"after {took:.2f} s"
            verdict.wrong("C10", jid, signalled[0].requested, f"its handler saw its cancel {how}")


def _latency(accepted: dict[str, int], history: History, faults: Faults, verdict: Verdict) -> None:
    """From the accepted cancel to the handler's own sight of it (C10), in ms, by the faults that were on meanwhile."""
    by_fault: dict[str, list[float]] = defaultdict(list)
    seen: set[str] = set()
    for event in history.by_ev["h_cancel_seen"]:
        if event.jid not in accepted or event.jid in seen:
            continue
        seen.add(event.jid)
        # A handler may see it before the caller has its answer.
        took = max(0.0, (event.mono - accepted[event.jid]) / 1e6)
        on = faults.on_at(accepted[event.jid]) | faults.on_at(event.mono)
        for name in on or {"none"}:
            by_fault[name].append(took)
    verdict.figures["cancel_latency_ms"] = {name: _quantiles(took) for name, took in sorted(by_fault.items())}


def _quantiles(values: list[float]) -> dict[str, float]:
    values.sort()
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        "n": len(values),
        **{name: round(values[min(len(values) - 1, int(q * len(values)))], 2) for name, q in at.items()},
    }
