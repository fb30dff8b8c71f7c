"""Who may say what became of an attempt: fences, resends, hand-backs and workers that died."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import pytest

from busq.errors import BadRecord
from busq.protocol.job import job_from_record
from busq.protocol.states import State, Verb, is_terminal
from busq.store import drains, scripts, watch
from busq.store.forms import Note, Refusal
from tests.store.bench import DEADLINE_S, DELAY_S, KIND, LEASE_S, QUEUE, Bench, Held, but_history, put_in
from tests.store.test_set_back import set_back

S = State
SETTLING = (Verb.FINISH, Verb.RETRY, Verb.RELEASE)


# Final is final -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", SETTLING)
@pytest.mark.parametrize("first", ["finish", "finalize", "reclaim"])
async def test_the_first_terminal_writer_wins_and_a_later_one_leaves_one_line(url: str, first: str, late: Verb) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING, max_losses=0)
        if first == "finish":
            await bench.settle(Verb.FINISH, held)
        elif first == "finalize":
            await bench.cancel(held.jid)
            bench.clock.advance(DEADLINE_S)
            await bench.finalize(held.jid)
        else:
            bench.clock.advance(LEASE_S)
            await bench.reclaim(held)
        before, events = await bench.record(held.jid), await bench.events(held.jid)
        state = job_from_record(held.jid, before).state
        assert is_terminal(state)
        answer = await bench.settle(late, held, "failed", by=bench.b, token="another", result=b"\x01\x01", cause="x")
        assert answer == ("stale", state)
        assert but_history(await bench.record(held.jid)) == but_history(before)
        assert await bench.events(held.jid) == [*events, "late_result"]


async def test_an_older_token_is_stale_for_every_verb_that_names_one(url: str) -> None:
    async with Bench(url) as bench:
        old = await put_in(bench, S.RUNNING)
        bench.clock.advance(LEASE_S)
        assert await bench.reclaim(old) == ("reclaimed", "queued")
        new = await bench.run(old.jid, bench.b)
        assert new.token != old.token
        assert new.attempt == old.attempt + 1
        before = await bench.record(old.jid)
        assert (await bench.beat(held=[old]))[0].word == "stale"
        assert await bench.a.note(old.jid, token=old.token, attempt=1, note=Note("x"), saved=b"y") == (
            "stale",
            "running",
        )
        for verb in SETTLING:
            assert await bench.settle(verb, old) == ("stale", "running")
        assert (await bench.begin(Held(old.jid, old.entry), bench.b)).word == "stale"
        assert but_history(await bench.record(old.jid)) == but_history(before)
        assert await bench.pending() == {new.entry: b"b"}
        assert await bench.settle(Verb.FINISH, new, by=bench.b) == ("settled", "succeeded")


async def test_two_workers_with_one_entry_start_it_once(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED)
        twin = Held(held.jid, held.entry)
        assert (await bench.begin(held)).word == "started"
        assert (await bench.begin(twin, bench.b)).word == "stale"
        assert (await bench.begin(twin, bench.b, adopt=True)).word == "stale"
        assert await bench.pending() == {held.entry: b"a"}
        assert (await bench.job(held.jid)).attempt == 1


async def test_every_start_mints_a_higher_attempt(url: str) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue()
        seen = []
        for verb in (Verb.RELEASE, Verb.RETRY, Verb.RELEASE, Verb.FINISH):
            held = await bench.run(jid, retries=9)
            seen.append(held.attempt)
            await bench.settle(verb, held)
            if verb is Verb.RETRY:
                await bench.promote(jid)
        assert seen == [1, 2, 3, 4]


async def test_a_worker_that_lost_a_reply_may_adopt_its_own_attempt_and_nobody_else(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        lost = Held(held.jid, held.entry)
        assert (await bench.begin(lost)).word == "stale"
        assert (await bench.begin(lost, bench.b, adopt=True)).word == "stale"
        answer = await bench.begin(lost, adopt=True)
        assert (answer.word, answer.attempt) == ("started", 2)
        assert await bench.settle(Verb.FINISH, held) == ("stale", "running")
        assert await bench.settle(Verb.FINISH, lost) == ("settled", "succeeded")


async def test_the_entry_of_a_running_job_goes_back_to_its_owner_when_a_new_group_gave_it_away(url: str) -> None:
    """Somebody removed the group. A job whose entry nobody finds under its owner's name would be lost with that one."""
    async with Bench(url) as bench:
        held = await bench.run()
        stream = bench.a.keys(0).stream(QUEUE)
        await bench.redis.xgroup_destroy(stream, "busq")
        again = await bench.take(held.jid, bench.b)
        assert again.entry == held.entry
        answer = await bench.begin(again, bench.b)
        assert (answer.word, answer.detail) == ("stale", "running")
        assert [entry.id for entry in await watch.held_by(bench.dog, 0, QUEUE, "a")] == [held.entry]
        assert await watch.held_by(bench.dog, 0, QUEUE, "b") == []
        bench.clock.advance(LEASE_S)
        assert (await bench.reclaim(held))[0] == "reclaimed"


# Sent again -----------------------------------------------------------------------------------------------

Twice = Callable[[Bench], Awaitable[tuple[Callable[[], Awaitable[object]], bool]]]


async def _enqueue(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    return lambda: bench.admit("job", call="one"), True


async def _enqueue_later(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    return lambda: bench.admit("job", call="one", delay_s=1), True


async def _enqueue_tombstoned(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    await bench.cancel("job", tombstone_s=60)
    return lambda: bench.admit("job", call="one"), True


async def _start(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    held = await put_in(bench, S.QUEUED)
    return lambda: bench.begin(held, token="one"), True


async def _cancel_queued(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    jid = await bench.enqueue()
    return lambda: bench.cancel(jid, request="one", grace_s=1), True


async def _cancel_running(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    held = await put_in(bench, S.RUNNING)
    return lambda: bench.cancel(held.jid, request="one", grace_s=1), True


async def _hasten(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    held = await put_in(bench, S.CANCELLING)
    return lambda: bench.cancel(held.jid, request="two", grace_s=1), True


async def _tombstone(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    return lambda: bench.cancel("nobody", request="one", tombstone_s=60), True


def _settles(verb: Verb, state: State, retries: int = 0) -> Twice:
    async def prepare(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
        held = await put_in(bench, state, retries=retries)
        return lambda: bench.settle(verb, held, delay_s=1, cause="error", notes=[Note("stopped")]), True

    return prepare


async def _promote(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    held = await put_in(bench, S.SCHEDULED)
    bench.clock.advance(DELAY_S)
    return lambda: bench.promote(held.jid), False


async def _expire(bench: Bench, state: State) -> tuple[Callable[[], Awaitable[object]], bool]:
    held = await put_in(bench, state, due_by=1000)
    bench.clock.advance(1)
    return lambda: bench.expire(held.jid), False


async def _finalize(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    held = await put_in(bench, S.CANCELLING)
    bench.clock.advance(DEADLINE_S)
    return lambda: bench.finalize(held.jid), False


async def _reclaim(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    held = await put_in(bench, S.RUNNING)
    bench.clock.advance(LEASE_S)
    return lambda: bench.reclaim(held), False


async def _refuse(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    held = await put_in(bench, S.QUEUED)
    refusal = Refusal(jid=held.jid, entry=held.entry, why="unknown_kind", delay_ms=1, most_ms=1, limit=10)
    return lambda: bench.a.refuse(0, QUEUE, [refusal]), False


async def _renew(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    held = await put_in(bench, S.CANCELLING)
    return lambda: bench.beat(held=[held]), True


async def _note(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    held = await put_in(bench, S.RUNNING)
    line = Note("tripped", facts="user")
    return lambda: bench.a.note(held.jid, token=held.token, attempt=held.attempt, note=line, saved=b"kept"), True


async def _bury(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    await bench.redis.xadd(bench.a.keys(0).stream(QUEUE), {"no": "job"})
    (entry,) = await bench.read()
    return lambda: bench.a.bury(0, QUEUE, entry.id, reason="bad_entry", raw=b"raw"), False


async def _decide(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    await bench.enqueue()
    return lambda: bench.decide("scope", kind=KIND), True


async def _revoke(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    await bench.decide("scope", kind=KIND)
    return lambda: bench.scopes.revoke("scope"), True


async def _declare(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    return lambda: bench.a.declare(0, {KIND: "always", "other": ""}, keep_s=60), True


async def _forget(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    await bench.beat()
    await bench.read()
    return lambda: bench.a.forget(0, "a", [QUEUE], own_wish=True), True


async def _drain(bench: Bench) -> tuple[Callable[[], Awaitable[object]], bool]:
    await bench.beat()
    return lambda: drains.ask(bench.a, "a", drains.Whole.POD), True


AGAIN: dict[str, Twice] = {
    "note": _note,
    "bury": _bury,
    "decide": _decide,
    "revoke": _revoke,
    "declare": _declare,
    "forget": _forget,
    "drain": _drain,
    "enqueue": _enqueue,
    "enqueue with a delay": _enqueue_later,
    "enqueue of a tombstoned jid": _enqueue_tombstoned,
    "start": _start,
    "cancel of a queued job": _cancel_queued,
    "cancel of a running job": _cancel_running,
    "cancel that hastens": _hasten,
    "cancel that leaves a tombstone": _tombstone,
    "finish": _settles(Verb.FINISH, S.RUNNING),
    "finish after a cancel": _settles(Verb.FINISH, S.CANCELLING),
    "retry": _settles(Verb.RETRY, S.RUNNING, retries=1),
    "retry with none left": _settles(Verb.RETRY, S.RUNNING),
    "retry after a cancel": _settles(Verb.RETRY, S.CANCELLING),
    "release": _settles(Verb.RELEASE, S.RUNNING),
    "release after a cancel": _settles(Verb.RELEASE, S.CANCELLING),
    "renew": _renew,
    "promote": _promote,
    "expire of a queued job": lambda bench: _expire(bench, S.QUEUED),
    "expire of a running job": lambda bench: _expire(bench, S.RUNNING),
    "finalize": _finalize,
    "reclaim": _reclaim,
    "refuse": _refuse,
}


@pytest.mark.parametrize("what", AGAIN)
async def test_a_call_that_is_sent_again_is_answered_alike_and_writes_nothing(url: str, what: str) -> None:
    """The watchdog's verbs and `refuse` have no id of their own: their second call is `stale`, and writes nothing."""
    async with Bench(url) as bench:
        send, alike = await AGAIN[what](bench)
        first = await send()
        held = await bench.snapshot()
        second = await send()
        assert await bench.snapshot() == held
        if what == "cancel that hastens" or alike:
            assert second == first
        else:
            assert "stale" in str(second)


async def test_a_line_that_is_sent_again_after_others_have_written_theirs_is_not_written_twice(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)

        async def note(name: str) -> tuple[str, str]:
            line = Note(name, facts="user")
            return await bench.a.note(held.jid, token=held.token, attempt=held.attempt, note=line)

        await note("tripped")
        await bench.cancel(held.jid)
        assert (await note("tripped"))[0] == "noted"
        await note("forced")
        names = [event.name for event in await bench.history(held.jid)]
        assert names == ["enqueued", "started", "tripped", "requested", "forced"]


STEPS = ("carry_out", "cascade", "prune", "rewind")
"""What a watchdog does step by step: a step whose answer was lost is done, and the next one goes on from there."""


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_after_the_last_one_writes_nothing(url: str, step: str) -> None:
    async with Bench(url) as bench:
        parent = await bench.run()
        await bench.spawn(parent, "child", call="one")
        await bench.cancel(parent.jid)
        await bench.enqueue(group="g")
        await bench.decide("scope", group="g")
        await bench.cancel("nobody", tombstone_s=1)
        bench.clock.advance(2)
        if step == "rewind":
            await set_back(bench)
        send: Callable[[], Awaitable[object]] = {
            "carry_out": lambda: bench.dog.carry_out(0, step=100),
            "cascade": lambda: bench.dog.cascade(0, step=100),
            "prune": lambda: bench.dog.prune(0, limit=100, suspect_s=60),
            "rewind": lambda: bench.dog.rewind(0, index="deadlines", rank=0, step=100),
        }[step]
        pictures = [await bench.snapshot()]
        for _ in range(20):
            await send()
            pictures.append(await bench.snapshot())
        assert pictures[0] != pictures[-1]
        changes = [was != now for was, now in itertools.pairwise(pictures)]
        assert changes == sorted(changes, reverse=True), "once it is done, it is done"
        assert not changes[-1]


def test_every_script_that_writes_is_among_those_that_are_sent_again() -> None:
    reading = {each for each in scripts.names() if "no-writes" in scripts.load(each).source.partition("\n")[0]}
    assert {what.split()[0] for what in AGAIN} | set(STEPS) == set(scripts.names()) - reading


@pytest.mark.parametrize(
    "what", ["enqueue", "cancel of a running job", "cancel that hastens", "finish", "retry", "start"]
)
async def test_a_call_that_is_sent_again_later_still_writes_nothing(url: str, what: str) -> None:
    async with Bench(url) as bench:
        send, _ = await AGAIN[what](bench)
        first = await send()
        held = await bench.snapshot()
        bench.clock.advance(0.5)
        assert await send() == first
        assert await bench.snapshot() == held


async def test_another_call_for_a_jid_in_use_writes_nothing(url: str) -> None:
    async with Bench(url) as bench:
        await bench.admit("job", call="one")
        before = await bench.snapshot()
        assert await bench.admit("job", call="two", delay_s=1) == ("in_use", S.QUEUED)
        assert await bench.snapshot() == before


# Children --------------------------------------------------------------------------------------------------


async def test_a_running_attempt_may_have_children(url: str) -> None:
    async with Bench(url) as bench:
        held = await bench.run()
        assert await bench.spawn(held, "child", call="one") == ("enqueued", "queued", "")
        assert await bench.spawn(held, "child", call="one") == ("enqueued", "queued", "")
        assert await bench.spawn(held, "child", call="two") == ("in_use", "queued", "")
        assert len(await bench.entries()) == 2


@pytest.mark.parametrize("how", ["asked to stop", "ended", "owned by another attempt"])
async def test_an_attempt_that_is_over_or_was_asked_to_stop_gains_no_children(url: str, how: str) -> None:
    async with Bench(url) as bench:
        held = await bench.run()
        answer: tuple[str, str, str]
        if how == "asked to stop":
            await bench.cancel(held.jid)
            answer = ("orphan", "cancelling", "user")
        elif how == "ended":
            await bench.settle(Verb.FINISH, held)
            answer = ("orphan", "succeeded", "")
        else:
            held = Held(held.jid, held.entry, "an-older-token", 0)
            answer = ("orphan", "running", "")
        before = await bench.snapshot()
        assert await bench.spawn(held, "child") == answer
        assert await bench.snapshot() == before


async def test_a_child_that_was_admitted_in_time_is_told_so_again(url: str) -> None:
    """The reply was lost, and the cancel came before the call was sent again."""
    async with Bench(url) as bench:
        held = await bench.run()
        first = await bench.spawn(held, "child", call="one")
        await bench.cancel(held.jid)
        assert await bench.spawn(held, "child", call="one") == first


# What is spent --------------------------------------------------------------------------------------------


async def test_hand_backs_spend_nothing(url: str) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue()
        for _ in range(3):
            held = await bench.run(jid)
            assert await bench.settle(Verb.RELEASE, held, cause="shutdown") == ("settled", "queued")
        job = await bench.job(jid)
        assert (job.attempt, job.failures, job.losses) == (3, 0, 0)
        assert (await bench.events(jid)).count("handed_back") == 3


async def test_what_was_delivered_but_never_started_costs_no_loss(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.QUEUED)
        assert await bench.reclaim(held) == ("reclaimed", "queued")
        job = await bench.job(held.jid)
        assert (job.attempt, job.failures, job.losses) == (0, 0, 0)
        again = await bench.take(held.jid, bench.b)
        assert (await bench.begin(held)).word == "stale"
        assert (await bench.begin(again, bench.b)).word == "started"


@pytest.mark.parametrize("max_losses", [0, 2])
async def test_a_job_fails_as_lost_when_more_workers_died_of_it_than_it_may(url: str, max_losses: int) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue()
        for loss in range(1, max_losses + 2):
            held = await bench.run(jid, max_losses=max_losses)
            bench.clock.advance(LEASE_S)
            word, _ = await bench.reclaim(held)
            assert word == ("lost" if loss > max_losses else "reclaimed")
        job = await bench.job(jid)
        assert (job.state, job.cause, job.losses, job.failures) == (S.FAILED, "lost", max_losses + 1, 0)
        assert await bench.entries() == []
        assert await bench.pending() == {}


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_job_fails_after_as_many_failures_as_it_has_retries_and_one(url: str, retries: int) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue()
        for failure in range(1, retries + 2):
            held = await bench.run(jid, retries=retries)
            _, state = await bench.settle(Verb.RETRY, held, error=b"\x01e", cause="error", delay_s=1)
            assert state == ("failed" if failure > retries else "scheduled")
            assert await bench.entries() == []
            if state == "scheduled":
                assert (await bench.promote(jid))[0] == "early"
                bench.clock.advance(1)
                assert await bench.promote(jid) == ("promoted", "queued")
        job = await bench.job(jid)
        assert (job.state, job.cause, job.failures, job.losses) == (S.FAILED, "error", retries + 1, 0)


async def test_what_the_producer_said_stands_before_what_the_handler_says(url: str) -> None:
    async with Bench(url) as bench:
        jid = await bench.enqueue(retries=7, max_losses=0, timeout=9000, backoff=10)
        held = await bench.take(jid)
        answer = await bench.begin(held, retries=1, max_losses=5)
        assert (answer.retries, answer.timeout_s, answer.backoff_s, answer.backoff_max_s) == (7, 9.0, 0.01, None)
        assert await bench.reclaim(held) == ("lost", "failed")


# Reclaim --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [S.QUEUED, S.RUNNING, S.CANCELLING])
async def test_a_good_lease_keeps_everything_as_it_is(url: str, state: State) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, state)
        await bench.beat()
        bench.clock.advance(LEASE_S - 0.001)
        before = await bench.snapshot()
        assert (await bench.reclaim(held, gone=True))[0] == "alive"
        assert await bench.snapshot() == before


async def test_a_reclaimed_job_stands_in_the_queue_once_and_nobody_holds_it(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        assert await bench.reclaim(held) == ("reclaimed", "queued")
        entries = await bench.entries()
        assert len(entries) == 1
        assert held.entry not in entries
        assert await bench.pending() == {}
        assert await bench.reclaim(held) == ("stale", "queued")
        assert await bench.entries() == entries


async def test_an_attempt_of_another_owner_is_not_reclaimed(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        before = await bench.snapshot()
        assert await bench.reclaim(held, owner="b") == ("stale", "running")
        assert await bench.snapshot() == before


async def test_an_entry_that_the_record_does_not_name_takes_no_attempt_away(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        await bench.redis.xadd(bench.a.keys(0).stream(QUEUE), {"jid": held.jid, "kind": "k"})
        leftover = await bench.take(held.jid)
        assert await bench.reclaim(leftover) == ("stale", "running")
        assert await bench.pending() == {held.entry: b"a"}
        assert (await bench.job(held.jid)).losses == 0


async def test_a_leftover_entry_is_removed_and_the_attempt_elsewhere_goes_on(url: str) -> None:
    """An entry that the record does not name, as a server that lost its last second may leave behind."""
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        stream = bench.a.keys(0).stream(QUEUE)
        leftover = await bench.redis.xadd(stream, {"jid": held.jid, "kind": "k"})
        twin = await bench.take(held.jid, bench.b)
        assert twin.entry == leftover
        assert (await bench.begin(twin, bench.b)).word == "stale"
        assert await bench.entries() == [held.entry]
        assert await bench.settle(Verb.FINISH, held) == ("settled", "succeeded")


# Progress, notes, saved -----------------------------------------------------------------------------------


async def test_what_a_handler_saves_is_handed_to_the_next_attempt(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        assert await bench.a.note(held.jid, token=held.token, attempt=1, saved=b"\x01here") == ("noted", "running")
        await bench.reclaim(held)
        answer = await bench.begin(await bench.take(held.jid))
        assert answer.saved == b"\x01here"


async def test_a_note_that_says_nothing_is_harmless(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        before = await bench.snapshot()
        assert await bench.a.note(held.jid, token=held.token, attempt=1) == ("noted", "running")
        assert await bench.snapshot() == before


async def test_a_beat_hands_in_progress_and_nothing_else(url: str) -> None:
    from busq.store.forms import Renewal

    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        before = await bench.record(held.jid)
        (answer,) = await bench.a.renew(0, [Renewal(held.jid, held.token, "0.5", "half")])
        assert answer.word == "running"
        assert await bench.record(held.jid) == before | {b"progress": b"0.5", b"progress_note": b"half"}


async def test_a_record_with_words_for_numbers_is_not_started(redis_url: str) -> None:
    """
    Nobody but a stranger writes so: the worker is told, and the record is left alone.
    """
    async with Bench(redis_url) as bench:
        held = await bench.take(await bench.enqueue(retries="many"))
        answer = await bench.begin(held)
        assert (answer.word, answer.detail) == ("odd", "a record with many for a number")
        assert await bench.state(held.jid) is State.QUEUED


async def test_an_answer_about_a_record_of_a_stranger_is_an_error_of_ours(url: str) -> None:
    async with Bench(url) as bench:
        held = await bench.run()
        await bench.cancel(held.jid)
        await bench.redis.hset(bench.a.job_key(held.jid), mapping={"cancel_grace": "long", "deadline": "1"})
        assert (await bench.beat(held=[held]))[0].grace_ms == 0
        await bench.redis.hset(bench.a.job_key(held.jid), "state", "no state")
        with pytest.raises(BadRecord, match="no state"):
            await bench.admit(held.jid)
        assert (await bench.cancel(held.jid)).state is None
        await bench.redis.delete(bench.a.job_key(held.jid))
