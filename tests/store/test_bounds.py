"""What stays in Redis and for how long: tombstones, expiries, indexes, history, dead letters, the roster."""

from __future__ import annotations

import re

import pytest

from busq import events
from busq.protocol.cancel import Cause, Ended, Verdict
from busq.protocol.keys import KEY_TABLE
from busq.protocol.states import State, Verb, is_terminal
from busq.store import drains
from busq.store.drains import Whole
from busq.store.forms import Note
from busq.store.lineage import Lineage
from busq.store.streams import Streams, read_entry
from tests.store.bench import DEADLINE_S, KIND, LEASE_S, QUEUE, Bench, put_in
from tests.store.residue import row_of

S = State


# Tombstones -----------------------------------------------------------------------------------------------


async def test_a_tombstone_makes_the_next_enqueue_of_exactly_this_jid_born_cancelled(url: str) -> None:
    async with Bench(url) as bench:
        answer = await bench.cancel("job-1", cause=Cause.USER, reason="too late", source="api", tombstone_s=60)
        assert answer.verdict is Verdict.TOMBSTONED
        assert answer.deadline is not None
        assert answer.deadline.timestamp() == bench.clock.now_ms / 1000 + 60
        for other in ("job-10", "job", "xjob-1"):
            assert await bench.admit(other) == ("enqueued", S.QUEUED)
        requested_ms = bench.clock.now_ms
        bench.clock.advance(59)
        assert await bench.admit("job-1") == ("tombstoned", S.CANCELLED)
        job = await bench.job("job-1")
        assert (job.ended, job.cause, job.reason, job.source) == (Ended.BEFORE_START, "user", "too late", "api")
        assert job.requested_at is not None
        assert job.requested_at.timestamp() * 1000 == requested_ms
        assert await bench.events("job-1") == ["enqueued", "requested", "finalized"]
        assert len(await bench.entries()) == 3


async def test_a_tombstone_is_consumed_by_the_enqueue_that_it_stops(url: str) -> None:
    async with Bench(url) as bench:
        await bench.cancel("job", tombstone_s=60)
        await bench.enqueue("job")
        assert not await bench.is_marked("job")
        assert await bench.redis.hlen(bench.a.keys(0).tombstones) == 0
        await bench.redis.delete(bench.a.job_key("job"))
        assert await bench.admit("job") == ("enqueued", S.QUEUED)


async def test_an_expired_tombstone_stops_nothing_and_leaves_nothing(url: str) -> None:
    async with Bench(url) as bench:
        await bench.cancel("job", tombstone_s=60)
        bench.clock.advance(60)
        assert await bench.admit("job") == ("enqueued", S.QUEUED)
        assert not await bench.is_marked("job")
        assert await bench.redis.hlen(bench.a.keys(0).tombstones) == 0


async def test_a_tombstone_is_put_off_once_by_each_request_and_keeps_its_cause(url: str) -> None:
    async with Bench(url) as bench:
        await bench.cancel("job", request="one", reason="first", tombstone_s=60)
        longer = await bench.cancel("job", request="two", reason="second", tombstone_s=600)
        bench.clock.advance(5)
        again = await bench.cancel("job", request="two", reason="second", tombstone_s=600)
        within = await bench.cancel("job", request="three", tombstone_s=590)
        bench.clock.advance(15)
        once_more = await bench.cancel("job", request="three", tombstone_s=590)
        assert longer.deadline == again.deadline == within.deadline == once_more.deadline
        bench.clock.advance(575)
        assert await bench.admit("job") == ("tombstoned", S.CANCELLED)
        assert (await bench.job("job")).reason == "first"


async def test_a_delayed_job_with_a_tombstone_is_not_scheduled(url: str) -> None:
    async with Bench(url) as bench:
        await bench.cancel("job", tombstone_s=60)
        assert await bench.admit("job", delay_s=600) == ("tombstoned", S.CANCELLED)
        assert await bench.redis.zcard(bench.a.keys(0).scheduled) == 0


async def test_a_cancel_whose_record_expired_unread_is_no_tombstone(url: str) -> None:
    """Nobody asked for one: the jid may be used again, and its old entry starts nothing."""
    async with Bench(url) as bench:
        await bench.enqueue("job")
        await bench.cancel("job")
        await bench.redis.delete(bench.a.job_key("job"))
        assert await bench.admit("job") == ("enqueued", S.QUEUED)
        old, new = await bench.read()
        held = (await bench.record("job"))[b"entry"]
        assert (old.id, new.id) == ((await bench.entries())[0], held)
        assert not await bench.is_marked("job")


async def test_a_tombstone_outlives_the_unread_entry_of_an_older_job(url: str) -> None:
    """The old entry leaves when it is read, and the tombstone stays for the enqueue that it was meant for."""
    async with Bench(url) as bench:
        await bench.enqueue("job")
        await bench.cancel("job")
        await bench.redis.delete(bench.a.job_key("job"))
        assert (await bench.cancel("job", tombstone_s=60)).verdict is Verdict.TOMBSTONED
        assert (await bench.begin(await bench.take("job"))).word == "stale"
        assert await bench.entries() == []
        assert await bench.admit("job") == ("tombstoned", S.CANCELLED)


# Pruning --------------------------------------------------------------------------------------------------


async def test_expired_tombstones_are_pruned_and_live_ones_are_kept(url: str) -> None:
    async with Bench(url) as bench:
        await bench.cancel("short", tombstone_s=10)
        await bench.cancel("long", tombstone_s=100)
        queued = await bench.enqueue()
        await bench.cancel(queued)
        running = await put_in(bench, S.CANCELLING)
        bench.clock.advance(10)
        assert await bench.dog.prune(0, limit=100, suspect_s=86400) == 1
        own = bench.a.keys(0)
        assert set(await bench.redis.zrange(own.cancelled, 0, -1)) == {b"long", queued.encode(), running.jid.encode()}
        assert await bench.redis.hkeys(own.tombstones) == [b"long"]


async def test_pruning_takes_a_bounded_number_at_a_time(url: str) -> None:
    async with Bench(url) as bench:
        for n in range(5):
            await bench.cancel(f"job-{n}", tombstone_s=1)
        bench.clock.advance(1)
        assert [await bench.dog.prune(0, limit=2, suspect_s=1) for _ in range(4)] == [2, 2, 1, 0]


@pytest.mark.parametrize("state", [S.SUCCEEDED, S.FAILED, S.CANCELLED])
async def test_an_index_of_ended_jobs_forgets_a_job_when_its_record_expires(url: str, state: State) -> None:
    async with Bench(url, keep_succeeded_s=100, keep_ended_s=200) as bench:
        held = await put_in(bench, state)
        own, keep_s = bench.a.keys(0), 100 if state is S.SUCCEEDED else 200
        index = {S.SUCCEEDED: own.succeeded, S.FAILED: own.failed, S.CANCELLED: own.cancelled_jobs}[state]
        bench.clock.advance(keep_s - 0.001)
        assert await bench.dog.prune(0, limit=10, suspect_s=1) == 0
        assert await bench.redis.zrange(index, 0, -1) == [held.jid.encode()]
        bench.clock.advance(0.001)
        assert await bench.dog.prune(0, limit=10, suspect_s=1) == 1
        assert await bench.redis.zcard(index) == 0


async def test_suspects_are_forgotten_after_their_time(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.CANCELLING)
        bench.clock.advance(DEADLINE_S)
        await bench.finalize(held.jid)
        bench.clock.advance(99)
        await bench.dog.prune(0, limit=10, suspect_s=100)
        assert await bench.redis.zcard(bench.a.keys(0).suspects) == 1
        bench.clock.advance(1)
        await bench.dog.prune(0, limit=10, suspect_s=100)
        assert await bench.redis.zcard(bench.a.keys(0).suspects) == 0


# Expiries and keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
async def test_live_records_have_no_expiry_and_terminal_ones_have(url: str, state: State) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, state)
        left_ms = await bench.redis.pttl(bench.a.job_key(held.jid))
        if not is_terminal(state):
            assert left_ms == -1
        else:
            kept_ms = 3600_000 if state is S.SUCCEEDED else 86400_000
            assert kept_ms - 60_000 < left_ms <= kept_ms


async def test_every_way_to_end_gives_the_record_an_expiry(url: str) -> None:
    async with Bench(url) as bench:
        queued = await bench.enqueue()
        await bench.cancel(queued)
        late, lost, gone = await put_in(bench, S.CANCELLING), await bench.run(max_losses=0), await bench.run()
        await bench.cancel(gone.jid)
        bench.clock.advance(LEASE_S)
        await bench.finalize(late.jid)
        await bench.reclaim(lost)
        await bench.reclaim(gone)
        spent = await bench.run()
        await bench.settle(Verb.RETRY, spent)
        for jid in (queued, late.jid, lost.jid, gone.jid, spent.jid):
            assert is_terminal((await bench.job(jid)).state)
            assert await bench.redis.pttl(bench.a.job_key(jid)) > 0


async def test_a_stale_call_does_not_keep_a_record_alive(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.SUCCEEDED)
        await bench.redis.pexpire(bench.a.job_key(held.jid), 50_000)
        await bench.settle(Verb.FINISH, held, token="another")
        await bench.cancel(held.jid)
        assert 0 < await bench.redis.pttl(bench.a.job_key(held.jid)) <= 50_000


async def test_every_key_that_exists_is_in_the_table_of_keys(url: str) -> None:
    async with Bench(url, queue_rate=1000) as bench:
        for state in State:
            await put_in(bench, state)
        await bench.cancel("nobody", tombstone_s=60)
        await bench.enqueue(expires=60_000)
        await bench.enqueue(key="a key")
        await bench.cancel((await put_in(bench, S.WAITING)).jid)
        root = await bench.run()
        between = await bench.run(await bench.enqueue(parent=root.jid))
        await bench.enqueue(parent=between.jid)
        await bench.settle(Verb.FINISH, between, "failed", cause="error")
        await bench.beat()
        await drains.ask(bench.a, "a", Whole.WORKER)
        await bench.a.declare(0, {KIND: "always"}, keep_s=60)
        await Lineage(bench.a, events.logger("test")).look(0)
        late = await put_in(bench, S.CANCELLING)
        bench.clock.advance(DEADLINE_S)
        await bench.finalize(late.jid)
        stream = bench.a.keys(0).stream(QUEUE)
        await bench.redis.xadd(stream, {"no": "job"})
        (entry,) = [each for each in await bench.read() if not each.jid]
        await bench.a.bury(0, QUEUE, entry.id, reason="bad_entry", raw=b"raw")
        await bench.decide(kind="other")
        assert (await bench.dog.carry_out(0, step=1))[0] == "more"
        found: dict[str, int] = {named: 0 for named, *_ in KEY_TABLE}
        for key in await bench.redis.keys("*"):
            found[row_of(key)[0]] += 1
        assert [named for named, count in found.items() if count == 0] == []


# History --------------------------------------------------------------------------------------------------


async def test_a_jobs_history_keeps_the_newest_lines_and_no_more(url: str) -> None:
    async with Bench(url, history_entries=10) as bench:
        held = await put_in(bench, S.RUNNING)
        for n in range(25):
            await bench.a.note(held.jid, token=held.token, attempt=1, note=Note("tripped", facts=str(n)))
        record = await bench.record(held.jid)
        assert len([k for k in record if re.fullmatch(rb"e\d+", k)]) == 10
        assert [event.facts for event in await bench.history(held.jid)] == [str(n) for n in range(15, 25)]


async def test_many_lines_in_one_call_stay_within_the_bound(url: str) -> None:
    async with Bench(url, history_entries=10) as bench:
        held = await put_in(bench, S.RUNNING)
        await bench.settle(Verb.FINISH, held, notes=[Note("tripped", facts=str(n)) for n in range(30)])
        record = await bench.record(held.jid)
        assert len([k for k in record if re.fullmatch(rb"e\d+", k)]) <= 10 + 30
        story = await bench.history(held.jid)
        assert story[-1].name == "finalized"


async def test_a_flood_of_stale_calls_does_not_make_a_record_grow(url: str) -> None:
    async with Bench(url, history_entries=10) as bench:
        held = await put_in(bench, S.SUCCEEDED)
        for _ in range(20):
            await bench.settle(Verb.FINISH, held, token="another")
        assert len([k for k in await bench.record(held.jid) if re.fullmatch(rb"e\d+", k)]) == 10


async def test_the_event_log_is_bounded(redis_url: str) -> None:
    """On a real server only: the fake one trims exactly, a real one whole nodes of about 100 entries."""
    async with Bench(redis_url, event_log_entries=100) as bench:
        held = await put_in(bench, S.RUNNING)
        for number in range(600):
            await bench.a.note(held.jid, token=held.token, attempt=1, note=Note("tripped", facts=f"{number}"))
        assert 100 <= await bench.redis.xlen(bench.a.keys(0).events) <= 300


async def test_the_event_log_tells_every_transition_of_a_job(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.CANCELLED)
        logged = await bench.redis.xrange(bench.a.keys(0).events)
        lines = [line.split(b"\t") for _, fields in logged for line in fields.values()]
        assert all(line[0] == held.jid.encode() for line in lines)
        names = [line[1].decode() for line in lines]
        assert names == await bench.events(held.jid) == ["enqueued", "started", "requested", "finalized"]


# Dead letters ---------------------------------------------------------------------------------------------

EVERY_BYTE = bytes(range(256))


@pytest.mark.parametrize(
    "fields",
    [{b"x": EVERY_BYTE}, {b"jid": EVERY_BYTE, b"kind": b"k"}, {b"jid": b"a b", b"kind": b"k"}, {b"jid": b"j"}],
    ids=["other fields", "a jid of bytes", "a jid with a blank", "no kind"],
)
async def test_an_entry_that_is_no_job_is_buried_with_its_bytes(url: str, fields: dict[bytes, bytes]) -> None:
    async with Bench(url) as bench:
        stream = bench.a.keys(0).stream(QUEUE)
        await bench.redis.xadd(stream, fields)
        (entry,) = await bench.read()
        assert entry.jid == ""
        assert entry.flaw.startswith("bad_entry")
        assert entry.raw == tuple(part for pair in fields.items() for part in pair)
        raw = b"\x00".join(entry.raw)
        assert await bench.a.bury(0, QUEUE, entry.id, reason=entry.flaw, raw=raw) == "buried"
        ((_, letter),) = await bench.redis.xrange(bench.a.keys(0).dead)
        assert (letter[b"raw"], letter[b"reason"], letter[b"entry"]) == (raw, entry.flaw.encode(), entry.id)
        assert await bench.entries() == []
        assert await bench.pending() == {}
        assert await bench.a.bury(0, QUEUE, entry.id, reason="again", raw=raw) == "stale"
        assert await bench.redis.xlen(bench.a.keys(0).dead) == 1


async def test_bad_entries_do_not_keep_good_ones_from_being_read(url: str) -> None:
    async with Bench(url) as bench:
        stream = bench.a.keys(0).stream(QUEUE)
        await bench.redis.xadd(stream, {EVERY_BYTE: EVERY_BYTE})
        jid = await bench.enqueue()
        assert [entry.jid for entry in await bench.read()] == ["", jid]
        streams = Streams(bench.a, [QUEUE])
        await streams.open()
        assert [entry.jid for entry in await streams.pending()] == ["", jid]


async def test_an_entry_that_was_deleted_while_pending_is_told_from_garbage(redis_url: str) -> None:
    async with Bench(redis_url) as bench:
        jid = await bench.enqueue()
        held = await bench.take(jid)
        await bench.redis.xdel(bench.a.keys(0).stream(QUEUE), held.entry)
        streams = Streams(bench.a, [QUEUE])
        await streams.open()
        (entry,) = await streams.pending()
        assert (entry.jid, entry.raw) == ("", ())
        assert entry.flaw.startswith("deleted")


def test_reading_an_entry_never_raises() -> None:
    for fields in (None, [], [b"jid"], [b"jid", b"\xff", b"kind", b"k"], [b"jid", b"j", b"kind", b"\xff"], [b""] * 4):
        assert read_entry(0, QUEUE, b"1-1", fields).jid == ""
    assert read_entry(0, QUEUE, b"1-1", [b"jid", b"j", b"kind", b"k"]).jid == "j"


# The roster -----------------------------------------------------------------------------------------------


async def test_a_worker_that_holds_entries_is_never_forgotten(url: str) -> None:
    async with Bench(url) as bench:
        held = await put_in(bench, S.RUNNING)
        await bench.beat()
        bench.clock.advance(LEASE_S)
        for own_wish in (False, True):
            before = await bench.snapshot()
            assert await bench.dog.forget(0, "a", [QUEUE], own_wish=own_wish) == "holding"
            assert await bench.snapshot() == before
        await bench.reclaim(held)
        assert await bench.dog.forget(0, "a", [QUEUE]) == "forgotten"
        own = bench.a.keys(0)
        assert await bench.redis.zscore(own.workers, "a") is None
        assert await bench.redis.hget(own.worker_info, "a") is None
        consumers = await bench.redis.xinfo_consumers(own.stream(QUEUE), "busq")
        assert b"a" not in {each["name"] for each in consumers}


async def test_a_worker_with_a_good_lease_is_forgotten_at_its_own_wish_only(url: str) -> None:
    async with Bench(url) as bench:
        await bench.beat()
        assert await bench.dog.forget(0, "a", [QUEUE]) == "alive"
        assert await bench.a.forget(0, "a", [QUEUE], own_wish=True) == "forgotten"


async def test_no_wish_to_drain_outlives_the_worker(url: str) -> None:
    async with Bench(url) as bench:
        await bench.beat()
        assert await drains.ask(bench.dog, "a", Whole.POD) == "asked"
        assert await drains.asked(bench.a, "a") is Whole.POD
        bench.clock.advance(LEASE_S)
        assert await drains.ask(bench.dog, "a", Whole.WORKER) == "silent"
        assert await drains.asked(bench.a, "a") is Whole.WORKER
        assert await bench.dog.forget(0, "a", [QUEUE]) == "forgotten"
        assert await drains.asked(bench.a, "a") is None
        assert await drains.ask(bench.dog, "a", Whole.WORKER) == "missing"
        assert await drains.asked(bench.a, "a") is None


async def test_a_queue_that_nobody_ever_read_does_not_keep_a_worker_on_the_roster(url: str) -> None:
    async with Bench(url) as bench:
        await bench.beat()
        await bench.redis.xgroup_destroy(bench.a.keys(0).stream(QUEUE), "busq")
        await bench.enqueue()
        bench.clock.advance(LEASE_S)
        assert await bench.dog.forget(0, "a", [QUEUE, "unheard-of"]) == "forgotten"
