"""
The Lua scripts are the second writing of the table of transitions: here the two are compared.

Every verb is called for a job in every state, under every circumstance that changes its answer. What is heard for one
verb and one state must be exactly what the table lists: nothing that it does not allow, and nothing left unheard.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import msgspec
import pytest

from busq.protocol.states import TRANSITIONS, State, Verb, allowed, is_terminal
from busq.protocol.tree import DEEPEST
from busq.store.forms import NewJob, Note, Refusal
from busq.store.store import Store
from tests.store.bench import (
    CHILD_DELAY_S,
    DEADLINE_S,
    DELAY_S,
    LEASE_S,
    NO_ENTRY,
    QUEUE,
    Bench,
    Held,
    but_history,
    make_newer,
    put_in,
)

Call = Callable[[Bench, Held], Awaitable[str]]
LATER_S = 200.0  # longer than any delay, lease or deadline here
DUE_BY = {"due_by": str(round(LATER_S * 1000))}
EVERY_STATE: tuple[State | None, ...] = (None, *State)
SETTLING = (Verb.FINISH, Verb.RETRY, Verb.RELEASE)


@dataclass(frozen=True)
class Case:
    """One way to call a verb. `fields` go into the record of the job when it is enqueued."""

    name: str
    call: Call
    retries: int = 0
    max_losses: int = 5
    fields: Mapping[str, str] = field(default_factory=dict)
    names_attempt: bool = False
    child: bool = False  # the job has got one, and it is open


async def _write(bench: Bench, held: Held, name: str, value: int) -> None:
    """Change one field of the record, if there is one."""
    if await bench.state(held.jid) is not None:
        await bench.redis.hset(bench.a.job_key(held.jid), name, value)


def _foreign(held: Held) -> Held:
    return Held(held.jid, NO_ENTRY, "a-foreign-token", held.attempt)


def _enqueue(*, delay_s: float = 0, tombstone: bool = False) -> Call:
    async def call(bench: Bench, held: Held) -> str:
        if tombstone and await bench.state(held.jid) is None:
            await bench.cancel(held.jid, tombstone_s=60)
        return (await bench.admit(held.jid, delay_s=delay_s))[0]

    return call


async def _spawn(bench: Bench, held: Held) -> str:
    return (await bench.spawn(held, held.jid, parent="nobody"))[0]


async def _enqueue_fenced(bench: Bench, held: Held) -> str:
    """Against a standing rule that no job fits but this one, should it be new."""
    if await bench.state(held.jid) is None:
        await bench.decide(jid_prefix=held.jid, how={"standing": True})
    return (await bench.admit(held.jid))[0]


async def _enqueue_to_full_queue(bench: Bench, held: Held) -> str:
    await bench.enqueue()
    job = NewJob(held.jid, "k", QUEUE, b"\x01p", most=1)
    return (await bench.a.enqueue([job], call=bench.fresh("call")))[0][0]


async def _enqueue_too_fast(bench: Bench, held: Held) -> str:
    """One a second may come, and one has come right now."""
    store = Store(msgspec.structs.replace(bench.settings, queue_rate=1.0), by="a", clock=bench.clock)
    await store.open()
    try:
        job = NewJob(bench.fresh("job"), "k", QUEUE, b"\x01p")
        await store.enqueue([job], call=bench.fresh("call"))
        job = NewJob(held.jid, "k", QUEUE, b"\x01p")
        return (await store.enqueue([job], call=bench.fresh("call")))[0][0]
    finally:
        await store.close()


async def _enqueue_too_deep(bench: Bench, held: Held) -> str:
    parent = await bench.enqueue(depth=DEEPEST)
    return (await bench.admit(held.jid, parent=parent))[0]


def _promote(after_s: float) -> Call:
    async def call(bench: Bench, held: Held) -> str:
        bench.clock.advance(after_s)
        return (await bench.promote(held.jid))[0]

    return call


def _start(
    *,
    foreign: bool = False,
    kind: str = "k",
    version: int = 1,
    marked: bool = False,
    newer_rule: bool = False,
    adopt: bool = False,
    after_s: float = 0.0,
) -> Call:
    async def call(bench: Bench, held: Held) -> str:
        bench.clock.advance(after_s)
        if version > 1:
            await _write(bench, held, "v", version)
        if newer_rule:
            await make_newer(bench, await bench.decide(where=f"jid == '{held.jid}'"))
        if marked and await bench.state(held.jid) is None:
            # Cancelled while nobody had read its entry, and so long ago that the record has expired.
            await bench.enqueue(held.jid)
            held.entry = (await bench.take(held.jid)).entry
            await bench.cancel(held.jid)
            await bench.redis.delete(bench.a.job_key(held.jid))
        return (await bench.begin(_foreign(held) if foreign else held, kind=kind, adopt=adopt)).word

    return call


def _renew(*, foreign: bool) -> Call:
    async def call(bench: Bench, held: Held) -> str:
        return (await bench.beat(held=[_foreign(held) if foreign else held]))[0].word

    return call


def _note(*, foreign: bool) -> Call:
    async def call(bench: Bench, held: Held) -> str:
        token = "a-foreign-token" if foreign else held.token
        return (await bench.a.note(held.jid, token=token, attempt=held.attempt, note=Note("tripped"), saved=b"x"))[0]

    return call


def _settle(verb: Verb, outcome: str, *, foreign: bool = False) -> Call:
    async def call(bench: Bench, held: Held) -> str:
        token = "a-foreign-token" if foreign else None
        return (await bench.settle(verb, held, outcome, token=token, cause="error", delay_s=1))[0]

    return call


def _refuse(
    *, foreign: bool = False, delay_ms: int = 0, limit: int = 0, already: int = 0, unknown: bool = False
) -> Call:
    async def call(bench: Bench, held: Held) -> str:
        if already:
            await _write(bench, held, "refusals", already)
        entry = NO_ENTRY if foreign else held.entry
        refusal = Refusal(
            jid=held.jid,
            entry=entry,
            why="unknown_kind",
            delay_ms=delay_ms,
            most_ms=delay_ms,
            limit=limit,
            error=b"\x01e",
            unknown=unknown,
        )
        return (await bench.a.refuse(0, QUEUE, [refusal]))[0][0]

    return call


def _cancel(*, grace_s: float | None = None, tombstone_s: float | None = None) -> Call:
    async def call(bench: Bench, held: Held) -> str:
        return (await bench.cancel(held.jid, grace_s=grace_s, tombstone_s=tombstone_s)).verdict

    return call


def _expire(after_s: float) -> Call:
    async def call(bench: Bench, held: Held) -> str:
        bench.clock.advance(after_s)
        return (await bench.expire(held.jid))[0]

    return call


def _finalize(after_s: float, *, gone: bool = False) -> Call:
    async def call(bench: Bench, held: Held) -> str:
        bench.clock.advance(after_s)
        return (await bench.finalize(held.jid, gone=gone))[0]

    return call


async def _carry_out(bench: Bench, held: Held) -> str:
    """The rule fits this job alone, and the word is what was counted for it."""
    scope = await bench.decide(where=f"jid == '{held.jid}'")
    await bench.walk()
    counts = [word for word, count in (await bench.look(scope)).counts.items() if count]
    assert len(counts) <= 1
    return counts[0] if counts else "untouched"


def _last_child(how: str, *, finalizer: str = "", parked: bool = False) -> Call:
    """The job's only open child ends. `finalizer`: its handler has one, which ends so; `parked`: as its attempt did."""

    async def call(bench: Bench, held: Held) -> str:
        before = await bench.state(held.jid)
        child = bench.fresh("last-child")
        if before is not None and not is_terminal(before):
            record = await bench.record(held.jid)
            (last,) = await bench.redis.zrange(bench.a.keys(0).children(held.jid), 0, -1) or [b""]
            child = last.decode() or await bench.enqueue(child, parent=held.jid)
            if parked and before is State.CANCELLING:
                await bench.settle(Verb.FINISH, held)
            if finalizer and record.get(b"state") == b"waiting":
                await bench.redis.hset(bench.a.job_key(held.jid), "finalizer", 1)
            await _end(bench, child, how)
            final = (await bench.record(held.jid)).get(b"final")
            if finalizer not in ("", "open") and final is not None:
                await _end(bench, final.decode(), finalizer)
            elif final is not None:
                return "finalizing"
        return "untouched" if await bench.state(held.jid) is before else "ended"

    return call


async def _end(bench: Bench, jid: str, how: str) -> None:
    """How a job ends that has not begun: by a cancel, or by an attempt that finishes so."""
    if how == "cancelled":
        await bench.cancel(jid)
        return
    if await bench.state(jid) is State.SCHEDULED:
        bench.clock.advance(CHILD_DELAY_S)
        await bench.promote(jid)
    if await bench.state(jid) is State.CANCELLED:
        return  # found to be, with its parent
    held = await bench.take(jid)
    await bench.begin(held, kind=(await bench.job(jid)).kind)
    await bench.settle(Verb.FINISH, held, how)


def _reclaim(*, good_lease: bool = False, foreign: bool = False, owner: str = "a", gone: bool = False) -> Call:
    async def call(bench: Bench, held: Held) -> str:
        await bench.beat()
        if not good_lease:
            bench.clock.advance(LEASE_S)
        return (await bench.reclaim(_foreign(held) if foreign else held, owner=owner, gone=gone))[0]

    return call


def _settling(verb: Verb, *outcomes: str) -> list[Case]:
    cases = [Case("a foreign token", _settle(verb, outcomes[0], foreign=True))]
    for outcome in outcomes:
        for retries in (0, 1):
            for late in ({}, {"late": "keep"}):
                for child in (False, True):
                    name = f"{outcome}, {retries} retries, {late}, {'an open child' if child else 'no child'}"
                    call = _settle(verb, outcome)
                    cases.append(Case(name, call, retries=retries, fields=late, names_attempt=True, child=child))
    return cases


async def _finish_after_its_child(bench: Bench, held: Held) -> str:
    """Its only child was cancelled while it ran."""
    if await bench.state(held.jid) is State.RUNNING:
        await bench.cancel(await bench.enqueue(parent=held.jid))
    return (await bench.settle(Verb.FINISH, held))[0]


CASES: Mapping[Verb, list[Case]] = {
    Verb.ENQUEUE: [
        Case("at once", _enqueue()),
        Case("with a delay", _enqueue(delay_s=1)),
        Case("after a tombstone", _enqueue(tombstone=True)),
        Case("by a parent that there is not", _spawn),
        Case("against a standing rule", _enqueue_fenced),
        Case("one generation too many", _enqueue_too_deep),
        Case("to a full queue", _enqueue_to_full_queue),
        Case("too many a second", _enqueue_too_fast),
    ],
    Verb.PROMOTE: [Case("not due", _promote(DELAY_S - 1)), Case("due", _promote(DELAY_S))],
    Verb.START: [
        Case("its own entry", _start()),
        Case("a foreign entry", _start(foreign=True)),
        Case("another kind", _start(kind="other")),
        Case("a record of a newer version", _start(version=9)),
        Case("a rule of a newer version", _start(newer_rule=True)),
        Case("a rule of a newer version, after a lost reply", _start(newer_rule=True, adopt=True)),
        Case("a record that expired after its cancel", _start(marked=True)),
        Case("found after a lost reply", _start(adopt=True)),
        Case("past its moment", _start(after_s=LATER_S), fields=DUE_BY),
        Case("past its moment, found after a lost reply", _start(after_s=LATER_S, adopt=True), fields=DUE_BY),
    ],
    Verb.RENEW: [Case("its own token", _renew(foreign=False)), Case("a foreign token", _renew(foreign=True))],
    Verb.NOTE: [Case("its own token", _note(foreign=False)), Case("a foreign token", _note(foreign=True))],
    Verb.FINISH: [
        *_settling(Verb.FINISH, "succeeded", "failed"),
        Case("after its child was cancelled", _finish_after_its_child, names_attempt=True),
    ],
    Verb.RETRY: _settling(Verb.RETRY, "failed"),
    Verb.RELEASE: _settling(Verb.RELEASE, "released"),
    Verb.REFUSE: [
        Case("back at once", _refuse()),
        Case("back later", _refuse(delay_ms=100)),
        Case("counted, the last time", _refuse(delay_ms=100, limit=1)),
        Case("counted, once too often", _refuse(delay_ms=100, limit=1, already=1)),
        Case("a foreign entry", _refuse(foreign=True)),
        Case("found after a lost reply", _refuse(unknown=True)),
        Case("a foreign entry, found after a lost reply", _refuse(unknown=True, foreign=True)),
    ],
    Verb.CANCEL: [
        Case("plain", _cancel()),
        Case("with a shorter grace", _cancel(grace_s=0.5)),
        Case("with a longer grace", _cancel(grace_s=500)),
        Case("with a tombstone", _cancel(tombstone_s=60)),
    ],
    Verb.EXPIRE: [
        Case("its moment has not come", _expire(LATER_S - 1), fields=DUE_BY),
        Case("its moment has passed", _expire(LATER_S), fields=DUE_BY),
        Case("it has no moment", _expire(LATER_S)),
    ],
    Verb.FINALIZE: [
        Case("before the deadline", _finalize(DEADLINE_S - 1)),
        Case("past the deadline", _finalize(DEADLINE_S)),
        Case("past the deadline, the owner gone", _finalize(DEADLINE_S, gone=True)),
    ],
    Verb.RECLAIM: [
        Case("the lease is good", _reclaim(good_lease=True)),
        Case("the lease is over", _reclaim()),
        Case("the lease is over, no losses left", _reclaim(), max_losses=0),
        Case("the lease is over, the owner gone", _reclaim(gone=True)),
        Case("a foreign entry", _reclaim(foreign=True)),
        Case("another owner", _reclaim(owner="b")),
        Case("the lease is over, a child is open", _reclaim(), child=True),
    ],
    Verb.CARRY_OUT: [Case("a rule for it", _carry_out), Case("a rule for it, and a child", _carry_out, child=True)],
    Verb.LAST_CHILD: [
        Case("it succeeds", _last_child("succeeded"), child=True),
        Case("it fails", _last_child("failed"), child=True),
        Case("it is cancelled", _last_child("cancelled"), child=True),
        Case("it is cancelled, after the attempt", _last_child("cancelled", parked=True), child=True),
        Case("a finalizer follows", _last_child("succeeded", finalizer="open"), child=True),
        Case("a finalizer succeeds", _last_child("succeeded", finalizer="succeeded"), child=True),
        Case("a finalizer fails", _last_child("failed", finalizer="failed"), child=True),
        Case("a finalizer is cancelled", _last_child("succeeded", finalizer="cancelled"), child=True),
    ],
}


@pytest.mark.parametrize("state", EVERY_STATE, ids=lambda state: state or "unknown")
@pytest.mark.parametrize("verb", Verb)
async def test_a_script_answers_all_that_the_table_lists_and_nothing_else(
    url: str, verb: Verb, state: State | None
) -> None:
    heard: set[tuple[str, State | None]] = set()
    async with Bench(url) as bench:
        for case in CASES[verb]:
            held = await put_in(
                bench,
                state,
                retries=case.retries,
                max_losses=case.max_losses,
                child=bench.fresh("child") if case.child else None,
                **case.fields,
            )
            before = await bench.record(held.jid)
            answer = await case.call(bench, held)
            after = await bench.state(held.jid)
            if state is not None and is_terminal(state):
                now = await bench.record(held.jid)
                assert but_history(now) == but_history(before) | _written_by_hand(now), case.name
            if case.names_attempt and held.settled:
                # The very attempt that settled the job says so again: a resend, answered as the first time.
                assert (answer, after) == ("settled", state), case.name
                continue
            assert allowed(verb, state, answer, after), f"{case.name}: {answer}, now {after}"
            heard.add((answer, after))
    listed = {(answer, to) for answer, states in TRANSITIONS[verb][state].items() for to in states}
    assert heard == listed


@pytest.mark.parametrize("state", [state for state in State if is_terminal(state)])
def test_the_table_lets_no_verb_leave_a_terminal_state(state: State) -> None:
    for verb in Verb:
        for answer, states in TRANSITIONS[verb][state].items():
            assert states == {state}, f"{verb} answers {answer}"


def _written_by_hand(record: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What a case itself wrote to bring a circumstance about."""
    return {k: record[k] for k in (b"v", b"refusals") if k in record}
