"""What every release has put on the wire is read by today's code, and means what it meant then."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from busq.errors import BadPayload, BadRecord, ConfigError
from busq.protocol import keys
from busq.protocol.codec import (
    decode_error,
    decode_payload,
    decode_result,
    encode_error,
    encode_payload,
    encode_result,
)
from busq.protocol.hook import read_clean_up
from busq.protocol.job import event_from_line, history_from_record, job_from_record
from busq.protocol.states import State
from busq.protocol.tree import read_finished
from busq.store import forms
from busq.store.card import WIRE_VERSION
from busq.store.streams import read_entry
from busq.worker.executors.frames import BrokenFrames, ChildsInbox, WorkersInbox
from tests.golden.making import MIB, read_wire, versions
from tests.store.bench import KIND, QUEUE, Bench

each_version = pytest.mark.parametrize("version", versions())


def plain(value: Any) -> Any:
    """A value as JSON has it, as in the folders."""
    return msgspec.json.decode(msgspec.json.encode(value))


def within(then: Any, now: Any) -> bool:
    """Whether all that was said then is said now; a newer busq may say more."""
    if isinstance(then, dict):
        return isinstance(now, dict) and all(name in now and within(value, now[name]) for name, value in then.items())
    if isinstance(then, list) and isinstance(now, list):
        return len(then) == len(now) and all(map(within, then, now))
    return bool(then == now)


def test_there_is_a_folder_for_this_version() -> None:
    import busq

    assert ".".join(busq.__version__.split(".")[:2]) in versions(), "write it: python scripts/golden.py VERSION"


@each_version
def test_payloads_results_and_errors_are_read_and_written_as_then(version: str) -> None:
    wire = read_wire(version)
    for data, args, kwargs in wire.payloads:
        assert decode_payload(data) == (args, kwargs)
        assert encode_payload(tuple(args), kwargs, MIB) == data
    for data, value in wire.results:
        assert decode_result(data) == value
        assert encode_result(value, MIB) == data
    for data, told in wire.errors:
        error = decode_error(data)
        assert within(told, plain(error))
        assert encode_error(error) == data


@each_version
def test_records_and_their_history_mean_what_they_meant(version: str) -> None:
    for jid, fields, then, history in read_wire(version).records:
        assert within(then, plain(job_from_record(jid, dict(fields))))
        assert within(history, plain(history_from_record(dict(fields))))


@each_version
def test_a_record_with_fields_of_a_newer_busq_is_read_without_them(version: str) -> None:
    for jid, fields, then, _ in read_wire(version).records:
        newer = dict(fields) | {b"v": b"2", b"place": b"\xff\x00", b"e9999999999": b"\xff", b"n2": b"x"}
        assert within(then, plain(job_from_record(jid, newer)))


@each_version
def test_entries_and_lines_of_the_log_are_read(version: str) -> None:
    wire = read_wire(version)
    for fields, jid, kind in wire.entries:
        entry = read_entry(0, QUEUE, b"1-1", fields)
        assert (entry.jid, entry.kind, entry.flaw) == (jid, kind, "")
    for line, told in wire.events:
        assert within(told, plain(event_from_line(line.partition(b"\t")[2])))


@each_version
def test_frames_are_read_by_a_child_or_a_worker_of_today(version: str) -> None:
    """A worker that goes on while busq is upgraded beneath it starts children of the new version."""
    for data, told in read_wire(version).frames:
        try:
            (frame,) = ChildsInbox(MIB).frames(data)
        except (msgspec.DecodeError, BrokenFrames):
            (frame,) = WorkersInbox(MIB).frames(data)
        assert type(frame).__name__ == told.pop("is")
        now = {name: plain(getattr(frame, name)) for name in frame.__struct_fields__}
        assert within(told, now)


@each_version
def test_what_hooks_and_finalizers_are_told_is_read(version: str) -> None:
    wire = read_wire(version)
    clean_up, finished = read_clean_up(wire.clean_up), read_finished(wire.finished)
    assert (clean_up.jid, clean_up.cause, clean_up.ended) == ("jid", "user", "confirmed")
    assert finished.jid == "jid"


@each_version
def test_messages_go_where_they_went(version: str) -> None:
    """What is published is a hint to look; so what matters is the channel."""
    known = (keys.notice_prefix("busq"), keys.done_prefix("busq"), keys.rules_channel("busq"))
    messages = read_wire(version).messages
    assert {next(each for each in known if channel.startswith(each)) for channel, _ in messages} == set(known)


@each_version
async def test_rules_and_tombstones_decide_today_as_they_did(redis_url: str, version: str) -> None:
    wire = read_wire(version)
    async with Bench(redis_url) as bench:
        own = bench.a.keys(0)
        await bench.redis.hset(own.rules, mapping=dict(wire.rules))
        await bench.redis.hset(own.tombstones, mapping=dict(wire.tombstones))
        for jid, _ in wire.tombstones:
            await bench.redis.zadd(own.cancelled, {jid: bench.clock.now_ms + 60_000})
            assert await bench.admit(jid.decode()) == ("tombstoned", State.CANCELLED)
        assert await bench.admit("fenced") == ("fenced", State.CANCELLED)
        job = await bench.job("fenced")
        assert (job.reason, job.source) == ("r", "s")
        await bench.redis.hset(own.scope(job.scope or ""), mapping=dict(wire.scope))
        (rule,) = await bench.scopes.rules()
        assert (rule.id, rule.standing, rule.grace_s, rule.filter.kind) == (job.scope, True, 1.5, KIND)
        assert (await bench.begin(await bench.take(await bench.enqueue(kind="other")), kind="other")).word == "started"


@each_version
async def test_a_bus_that_was_made_then_is_opened_today(redis_url: str, version: str) -> None:
    bench = Bench(redis_url)
    await bench.redis.hset(keys.meta("busq"), mapping=dict(read_wire(version).meta))
    async with bench:
        assert bench.a.shards == 1


async def test_a_bus_of_a_newer_wire_version_is_refused_with_both_versions(redis_url: str) -> None:
    bench = Bench(redis_url)
    await bench.redis.hset(keys.meta("busq"), mapping={"v": WIRE_VERSION + 1, "shards": 1})
    with pytest.raises(ConfigError, match=f"speaks version {WIRE_VERSION + 1}; this busq knows {WIRE_VERSION}"):
        await bench.a.open()
    assert await bench.redis.keys("*") == [keys.meta("busq")]
    for store in (bench.a, bench.b, bench.dog):
        await store.close()


@pytest.mark.parametrize("card", [{"v": "x"}, {"v": 1}, {"v": 1, "shards": "x"}, {"v": 1, "shards": 0}])
async def test_a_card_of_the_bus_that_no_busq_has_written_is_told(redis_url: str, card: dict[str, str]) -> None:
    bench = Bench(redis_url)
    await bench.redis.hset(keys.meta("busq"), mapping=card)
    with pytest.raises(BadRecord, match=r"busq:meta at .* which no busq has written"):
        await bench.a.open()
    for store in (bench.a, bench.b, bench.dog):
        await store.close()


@pytest.mark.parametrize("data", [b"\x02\x92\x90\x80", b"\x00", b"\xff" * 9])
def test_a_payload_of_another_version_is_refused_by_its_version(data: bytes) -> None:
    with pytest.raises(BadPayload, match=f"version {data[0]}, this busq reads 1"):
        decode_payload(data)


async def test_an_entry_with_fields_of_a_newer_busq_is_a_dead_letter_with_its_bytes(redis_url: str) -> None:
    """Never acknowledged away: what it says may matter to the job."""
    fields = [b"jid", b"j", b"kind", b"k", b"place", b"Rome"]
    entry = read_entry(0, QUEUE, b"1-1", fields)
    assert (entry.jid, entry.raw) == ("", tuple(fields))
    async with Bench(redis_url) as bench:
        await bench.redis.xadd(bench.a.keys(0).stream(QUEUE), dict(zip(fields[::2], fields[1::2], strict=True)))
        (read,) = await bench.read()
        raw = msgspec.msgpack.encode(list(read.raw))
        assert await bench.a.bury(0, QUEUE, read.id, reason=read.flaw, raw=raw) == "buried"
        ((_, letter),) = await bench.redis.xrange(bench.a.keys(0).dead)
        assert letter[b"raw"] == raw


async def test_a_record_of_a_newer_busq_is_handed_back_and_in_the_end_a_dead_letter(redis_url: str) -> None:
    async with Bench(redis_url) as bench:
        held = await bench.take(await bench.enqueue())
        await bench.redis.hset(bench.a.job_key(held.jid), "v", WIRE_VERSION + 1)
        assert (await bench.begin(held)).word == "newer"
        assert await bench.state(held.jid) is State.QUEUED
        await bench.redis.hset(bench.a.job_key(held.jid), "refusals", 10)
        refusal = forms.Refusal(jid=held.jid, entry=held.entry, why="newer_version", limit=10, error=b"\x01")
        assert await bench.a.refuse(0, QUEUE, [refusal]) == [("buried", "failed")]
        assert await bench.redis.xlen(bench.a.keys(0).dead) == 1
