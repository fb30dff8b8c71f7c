"""
What clients were told, beside what became of it: lost jobs, cancels that were accepted, reads.

A job that was accepted must be there (C1), one that is there must have been asked for (C2), and an accepted cancel
stands in the server's log (C9). Reads of one reader only go forward (C16), and a read that began after an answer was
given does not contradict it (C17).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from math import inf

from judge import schema as s
from judge.contract import ACCEPTED, AFTER_A_CANCEL, CANCELLED, TERMINAL
from judge.history import Call, History
from judge.lives import Life
from judge.verdict import Verdict


class Jobs:
    """Every life of the run, over all servers, by jid."""

    def __init__(self, lives: list[Life]) -> None:
        self.by_jid: dict[str, list[Life]] = defaultdict(list)
        for life in lives:
            self.by_jid[life.jid].append(life)
        self.all = lives


def judge_clients(jobs: Jobs, history: History, verdict: Verdict, *, drained: bool, lost_epochs: bool) -> None:
    _accepted(jobs, history, verdict, lost_epochs)
    _never_ended(jobs, verdict, drained)
    _unexpected(jobs, history, verdict)
    _cancels(jobs, history, verdict, lost_epochs)
    _uncalled(jobs, history, verdict)
    _reads_forward(jobs, history, verdict)
    _reads_in_time(jobs, history, verdict)


def _accepted(jobs: Jobs, history: History, verdict: Verdict, lost_epochs: bool) -> None:
    calls: Counter[str] = Counter()
    invoked = {call.jid for call in history.calls["enqueue"] if call.type != "fail"}
    for call in history.calls["enqueue"]:
        calls[call.type] += 1
        there = call.jid is not None and call.jid in jobs.by_jid
        if call.type == "ok" and not there and not lost_epochs:
            verdict.wrong("C1", call.jid or "", None, "its enqueue was accepted, and it never was in the log")
        if call.type == "info" and there:
            calls["recovered"] += 1
        if call.type == "fail" and there and call.jid not in invoked:
            verdict.wrong(
                "C2", call.jid or "", None, f"its enqueue was refused ({call.answer or _error(call)}), and it is there"
            )
    verdict.figures["enqueues"] = dict(calls)


def _error(call: Call) -> str:
    return str(call.ended.err) if call.ended is not None else ""


def _never_ended(jobs: Jobs, verdict: Verdict, drained: bool) -> None:
    ends: Counter[str] = Counter()
    for life in jobs.all:
        ends[(life.state or b"nothing").decode()] += 1
        if drained and life.state not in TERMINAL and life.gone is None:
            state = (life.state or b"nothing").decode()
            verdict.wrong(
                "C1", life.jid, life.states[-1][0] if life.states else life.born, f"never ended: it is {state}"
            )
    verdict.figures["jobs"] = {"all": len(jobs.all), **ends}


def _unexpected(jobs: Jobs, history: History, verdict: Verdict) -> None:
    if not history.has_clients:
        verdict.remarks.append("no client told of its enqueues: C1 and C2 were judged by the log alone")
        return
    asked = {call.jid for call in history.calls["enqueue"]}
    unnamed = any(call.jid is None for call in history.calls["enqueue"])
    for life in jobs.all:
        if life.jid not in asked and not life.made_by_busq and s.PARENT not in life.record and not unnamed:
            verdict.wrong("C2", life.jid, life.born, "nobody enqueued it")


def _cancels(jobs: Jobs, history: History, verdict: Verdict, lost_epochs: bool) -> None:
    told: Counter[str] = Counter()
    known: dict[str, int] = {}
    for call in history.calls["enqueue"]:
        if call.type == "ok" and call.jid and call.ended:
            known[call.jid] = min(call.ended.mono, known.get(call.jid, call.ended.mono))
    for call in history.calls["cancel"]:
        answer = (call.answer or "").lower() if call.type == "ok" else call.type
        told[answer] += 1
        if call.type != "ok" or call.jid is None or lost_epochs:
            continue
        lives = jobs.by_jid.get(call.jid, [])
        if answer in ACCEPTED and not any(life.requested is not None for life in lives):
            verdict.wrong("C9", call.jid, None, f"its cancel was answered {answer}, and the log has no request for it")
        elif answer == "not_found" and known.get(call.jid, inf) < call.began.mono and _is_kept(lives):
            verdict.wrong("C9", call.jid, None, "its cancel was answered not_found after its enqueue had been accepted")
        elif answer == "already_finished" and all(life.state == CANCELLED for life in lives):
            verdict.wrong(
                "C9", call.jid, None, "its cancel was answered already_finished, and it neither succeeded nor failed"
            )
    verdict.figures["cancels"] = dict(told)


def _is_kept(lives: list[Life]) -> bool:
    return len(lives) == 1 and lives[0].gone is None


def _uncalled(jobs: Jobs, history: History, verdict: Verdict) -> None:
    """Whose record says that a user cancelled it by its jid was cancelled by a client."""
    asked = {call.jid for call in history.calls["cancel"]}
    if not asked or None in asked:
        return
    for life in jobs.all:
        by_user = life.requested is not None and life.record.get(s.CAUSE) == b"user" and s.SCOPE not in life.record
        if by_user and life.jid not in asked:
            verdict.wrong("C12", life.jid, life.requested, "cancelled by a user, and no client has asked for it")


def _reads_forward(jobs: Jobs, history: History, verdict: Verdict) -> None:
    """The states that one reader saw of one job stand in the log in this order."""
    at: dict[tuple[str, str], int] = {}
    reads = 0
    for call in history.calls["read"]:
        seen = (call.answer or "").lower()
        if call.type != "ok" or call.jid is None or not seen:
            continue
        lives = jobs.by_jid.get(call.jid, [])
        if len(lives) != 1 or seen not in _STATES:
            continue
        reads += 1
        states = [state.decode() for _, state in lives[0].states]
        # Decided and not written yet: what is read stands in the log later, or is its forerunner there.
        key = (call.began.proc, call.jid)
        upto = at.get(key, 0)
        after = next((n for n in range(upto, len(states)) if states[n] == seen), None)
        if after is None and seen == "cancelling":
            after = next((n for n in range(upto, len(states)) if states[n] == "cancelled"), None)
        if after is None:
            verdict.wrong(
                "C16",
                call.jid,
                None,
                f"{call.began.proc} read {seen} after {states[upto]}; the log has {', '.join(states)}",
            )
        else:
            at[key] = after
    verdict.figures["reads"] = reads


_STATES = {"scheduled", "queued", "running", "waiting", "cancelling", "succeeded", "failed", "cancelled"}


def _reads_in_time(jobs: Jobs, history: History, verdict: Verdict) -> None:
    """What was known before a read began must be in it."""
    final: dict[str, tuple[int, str]] = {}
    asked: dict[str, int] = {}
    for call in history.calls["read"]:
        seen = (call.answer or "").lower()
        if call.type == "ok" and call.jid and call.ended and seen.encode() in TERMINAL:
            final[call.jid] = min(final.get(call.jid, (call.ended.mono, seen)), (call.ended.mono, seen))
    for call in history.calls["cancel"]:
        if call.type == "ok" and call.jid and call.ended and (call.answer or "").lower() in ("cancelled", "signalled"):
            asked[call.jid] = min(call.ended.mono, asked.get(call.jid, call.ended.mono))
    for call in history.calls["read"]:
        seen = (call.answer or "").lower()
        if call.type != "ok" or call.jid is None or seen not in _STATES or len(jobs.by_jid.get(call.jid, ())) != 1:
            continue
        began = call.began.mono
        if call.jid in final and final[call.jid][0] < began and seen != final[call.jid][1]:
            verdict.wrong("C17", call.jid, None, f"read as {seen} after it had been read as {final[call.jid][1]}")
        elif asked.get(call.jid, began) < began and seen not in AFTER_A_CANCEL and seen != "succeeded":
            verdict.wrong("C17", call.jid, None, f"read as {seen} after its cancel had been accepted")
