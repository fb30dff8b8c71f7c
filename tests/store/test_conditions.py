"""
The evaluator in Lua beside the oracle in plain Python (judge.py): both say the same of every job and every condition.

Jobs are enqueued, and the fields that no single verb writes are put into their records afterwards. What a survey
counts, and what a look shows once a condition has become a rule, is what the oracle says.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from busq.protocol.codec import encode_payload
from busq.protocol.scope import Filter
from busq.protocol.where import parse_where
from busq.store.forms import NewJob
from busq.store.scopes import Scopes
from tests.store.bench import QUEUE, Bench
from tests.store.judge import matches
from tests.wheres import ANY_TEXTS, JOB, MEANINGS, NAMES, NUMBERS, PARTS, PLAIN, facts, nodes

Facts = dict[str, Any]

LIVE = ("scheduled", "queued", "running", "waiting")
EXAMPLES = 100
EXAMPLES_FAKE = 20  # it interprets Lua in Python, about 20 times slower
SAFE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
LARGEST = 1024 * 1024


class Ground:
    """A bus on which jobs and conditions are tried, again and again."""

    def __init__(self, bench: Bench, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self.bench = bench
        self.run = run

    async def admit(self, jobs: Sequence[Facts], payloads: Sequence[bytes] | None = None) -> None:
        """Make these the jobs of an empty bus; their `jid` and `age` are brought in line with it."""
        bench = self.bench
        await bench.redis.flushall()
        for i, job in enumerate(jobs):
            job["jid"] += f".{i}"
            job["age"] = round(job["age"] * 1000) / 1000
        payloads = payloads or [payload_of(job["args"]) for job in jobs]
        new = [
            NewJob(job["jid"], job["kind"], QUEUE, payload, 0, ("tags", msgspec.json.encode(job["tags"]).decode()))
            for job, payload in zip(jobs, payloads, strict=True)
        ]
        await bench.a.enqueue(new, call=bench.fresh("call"))
        pipe = bench.redis.pipeline(transaction=False)
        for job in jobs:
            fields = {name: job[name] for name in ("queue", "state", "attempt", "failures", "losses")}
            fields |= {name: job[name] for name in ("group", "parent") if job[name] is not None}
            fields["enqueued"] = bench.clock.now_ms - round(job["age"] * 1000)
            # What its last attempt left behind stays in a record; it is running there only while it runs.
            fields["owner"] = job["worker"] or "nobody"
            if job["state"] != "running":
                job["worker"] = None
            elif job["worker"] is None:
                job["worker"] = "nobody"
            pipe.hset(bench.a.job_key(job["jid"]), mapping=fields)
        await pipe.execute()

    async def surveyed(self, node: Any) -> set[str]:
        condition = msgspec.json.encode(node)
        named: dict[str, Any] = {
            "condition": condition, "at_ms": self.bench.clock.now_ms, "cutoff": 10**9,
            "place": f"queue:{QUEUE}", "cursor": "0", "step": 1000,
        }  # fmt: skip
        _, *found = await self.bench.a.run("survey", 0, (), (), named=named)
        return {jid.decode() for jid in found[::4]}

    async def decide(self, node: Any) -> str:
        """The same as a rule; its name."""
        scope = self.bench.fresh("scope")
        rule = {"id": scope, "reason": "", "source": "", "grace_ms": ""}
        named: dict[str, Any] = {
            "scope": scope, "condition": msgspec.json.encode(node), "rule": msgspec.json.encode(rule),
            "cutoff": "", "until_ms": 0, "most": 100,
        }  # fmt: skip
        await self.bench.a.run("decide", 0, (), (), named=named)
        return scope

    async def shown(self, jobs: Sequence[Facts]) -> dict[str, str | None]:
        """The scope that a look tells of, by jid; None where nothing was decided."""
        looks = await self.bench.a.look(0, [job["jid"] for job in jobs])
        return {job["jid"]: look.wish and look.wish[3] for job, look in zip(jobs, looks, strict=True)}


@contextmanager
def open_ground(url: str) -> Iterator[Ground]:
    bench = Bench(url)
    with asyncio.Runner() as runner:
        runner.run(bench.__aenter__())
        yield Ground(bench, runner.run)
        runner.run(bench.__aexit__())


@pytest.fixture
def ground(redis_url: str) -> Iterator[Ground]:
    with open_ground(redis_url) as ground:
        yield ground


@pytest.fixture
def fake_ground(fake_url: str) -> Iterator[Ground]:
    with open_ground(fake_url) as ground:
        yield ground


def payload_of(args: Any) -> bytes:
    if isinstance(args, Mapping):
        return encode_payload((), dict(args), LARGEST)
    return encode_payload(tuple(args), {}, LARGEST)


def fits(node: Any, job: Facts) -> bool:
    return job["state"] in LIVE and matches(node, job)


async def judged_alike(
    ground: Ground, conditions: Sequence[Any], jobs: Sequence[Facts], payloads: Sequence[bytes] | None = None
) -> None:
    """Each condition surveyed, and then all of them decided one after the other: the first that fits is shown."""
    await ground.admit(jobs, payloads)
    for node in conditions:
        expected = {job["jid"] for job in jobs if fits(node, job)}
        assert await ground.surveyed(node) == expected, node
    scopes = [await ground.decide(node) for node in conditions]
    decided = {
        job["jid"]: next((scope for scope, node in zip(scopes, conditions, strict=True) if fits(node, job)), None)
        for job in jobs
    }
    assert await ground.shown(jobs) == decided


MANY = {"conditions": st.lists(nodes(), min_size=1, max_size=8), "jobs": st.lists(facts(), min_size=1, max_size=8)}


@settings(max_examples=EXAMPLES, **SAFE)
@given(**MANY)
def test_every_condition_means_in_lua_what_the_oracle_says(
    ground: Ground, conditions: list[Any], jobs: list[Facts]
) -> None:
    ground.run(judged_alike(ground, conditions, jobs))


@settings(max_examples=EXAMPLES_FAKE, **SAFE)
@given(**MANY)
def test_every_condition_means_the_same_on_fakeredis(
    fake_ground: Ground, conditions: list[Any], jobs: list[Facts]
) -> None:
    fake_ground.run(judged_alike(fake_ground, conditions, jobs))


async def test_the_meanings_written_by_hand_hold_in_lua(url: str) -> None:
    async with Bench(url) as bench:
        ground = Ground(bench, asyncio.run)
        job = dict(JOB)
        await ground.admit([job])
        for text, fit in MEANINGS:
            if "order-" not in text:  # this job has another jid
                assert (await ground.surveyed(parse_where(text)) == {job["jid"]}) is fit, text


# Arguments as anybody may write them -----------------------------------------------------------------------

ARGUMENT = {"f": "args", "p": ["a"]}
WIDE = (
    PLAIN
    | NUMBERS
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(width=32)
    | st.floats()
    | st.binary(max_size=3)
    | st.just(datetime(2026, 1, 1, tzinfo=UTC))
)
VALUES = st.recursive(
    WIDE, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
ASKED = st.one_of(
    st.tuples(
        st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "^=", "$=", "~=", "in"]),
        st.lists(PARTS, max_size=2).map(lambda more: {"f": "args", "p": ["a", *more]}),
        PLAIN.map(lambda value: {"v": value})
        | st.lists(PARTS, max_size=2).map(lambda more: {"f": "args", "p": ["b", *more]}),
    ).map(list)
)


def packed(value: Any, random: Random) -> bytes:
    """MessagePack of a value, in any of the ways in which it may be written."""
    if value is None or isinstance(value, bool):
        return msgspec.msgpack.encode(value)
    if isinstance(value, int):
        return random.choice([struct.pack(f">B{form}", head, value) for head, form in _fitting(value)])
    if isinstance(value, float):
        short = struct.pack(">f", value) if abs(value) < 2**100 or value != value else b""
        if short and struct.unpack(">f", short)[0] == value and random.random() < 0.5:
            return b"\xca" + short
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, datetime):
        return random.choice([msgspec.msgpack.encode(value), b"\xc7\x03\x05abc", b"\xd4\x01a", b"\xd8\x01" + b"x" * 16])
    if isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        return _head(len(data), random, 0xA0, 0xD9 if isinstance(value, str) else 0xC4, 3) + data
    if isinstance(value, Mapping):
        inside = b"".join(packed(part, random) for pair in value.items() for part in pair)
        return _head(len(value), random, 0x80, 0xDE, 2) + inside
    return _head(len(value), random, 0x90, 0xDC, 2) + b"".join(packed(each, random) for each in value)


def _fitting(value: int) -> list[tuple[int, str]]:
    found = [(0xCC + k, form) for k, form in enumerate("BHIQ") if 0 <= value < 2 ** (8 << k)]
    return found + [
        (0xD0 + k, form) for k, form in enumerate("bhiq") if -(2 ** ((8 << k) - 1)) <= value < 2 ** ((8 << k) - 1)
    ]


def _head(length: int, random: Random, small: int, first: int, widths: int) -> bytes:
    forms = ["B", "H", "I"][-widths:]
    heads = [struct.pack(f">B{form}", first + k, length) for k, form in enumerate(forms)]
    if length < 16 and first != 0xC4:
        heads.append(bytes([small + length]))
    return random.choice(heads)


@settings(max_examples=EXAMPLES, **SAFE)
@given(
    given_args=st.lists(
        st.fixed_dictionaries({"a": VALUES, "b": VALUES}) | VALUES.map(lambda value: {"a": value, "b": value}),
        min_size=1,
        max_size=6,
    ),
    conditions=st.lists(ASKED, min_size=1, max_size=8),
    random=st.randoms(use_true_random=False),
)
def test_arguments_are_read_however_their_producer_wrote_them(
    ground: Ground, given_args: list[Any], conditions: list[Any], random: Random
) -> None:
    jobs = [{**JOB, "args": args} for args in given_args]
    payloads = [b"\x01\x92\x90" + packed(args, random) for args in given_args]
    ground.run(judged_alike(ground, conditions, jobs, payloads))


async def test_whole_numbers_are_read_exactly_in_every_width(redis_url: str) -> None:
    """`a` holds a number in all its widths, `b` the same as a double."""
    edges = {sign * (2**k + more) for k in range(54) for more in (-1, 0, 1) for sign in (1, -1)}
    forms = {value: _forms(value) for value in edges if abs(value) <= 2**53}
    async with Bench(redis_url) as bench:
        ground = Ground(bench, asyncio.run)
        payloads = [
            b"\x01\x92\x90\x82\xa1a" + _head(len(written), Random(0), 0x90, 0xDC, 2) + b"".join(written)
            + b"\xa1b" + struct.pack(">Bd", 0xCB, value)
            for value, written in forms.items()
        ]  # fmt: skip
        jobs = [{**JOB, "args": {}} for _ in payloads]
        await ground.admit(jobs, payloads)
        for k in range(8):
            having = {job["jid"] for job, written in zip(jobs, forms.values(), strict=True) if len(written) > k}
            assert await ground.surveyed(["==", {"f": "args", "p": ["a", k]}, {"f": "args", "p": ["b"]}]) == having


def _forms(value: int) -> list[bytes]:
    return [struct.pack(f">B{form}", head, value) for head, form in _fitting(value)]


@pytest.mark.parametrize(
    "data",
    [b"\xc7\x03\x05abc", b"\xc8\x00\x01\x05a", b"\xc9\x00\x00\x00\x01\x05a", b"\xd4\x01a", b"\xd8\x01" + b"x" * 16],
)
async def test_what_messagepack_extends_is_not_null_and_equal_to_nothing(redis_url: str, data: bytes) -> None:
    async with Bench(redis_url) as bench:
        ground = Ground(bench, asyncio.run)
        job = {**JOB, "args": {}}
        await ground.admit([job], [b"\x01\x92\x90\x82\xa1a" + data + b"\xa1b\x01"])
        for text in ("args.a != null", "args.a != args.a", "args.b == 1"):
            assert await ground.surveyed(parse_where(text)) == {job["jid"]}, text
        for text in ("args.a == null", "args.a == args.a", "args.a in [null, 1]", "args.a.0 == 1", "args.a < 1"):
            assert await ground.surveyed(parse_where(text)) == set(), text


async def test_a_list_does_not_hold_lists(redis_url: str) -> None:
    async with Bench(redis_url) as bench:
        ground = Ground(bench, asyncio.run)
        job = {**JOB, "args": {"a": [[1], 1]}}
        await ground.admit([job])
        assert await ground.surveyed(parse_where("args.a ~= args.a.0 or args.a.0 in args.a")) == set()
        assert await ground.surveyed(parse_where("args.a ~= args.a.1 and args.a.1 in args.a")) == {job["jid"]}


@pytest.mark.parametrize("key", [5, -5, 0, 2**40, b"5"])
async def test_a_map_is_asked_by_the_text_of_its_keys(redis_url: str, key: Any) -> None:
    async with Bench(redis_url) as bench:
        ground = Ground(bench, asyncio.run)
        job = {**JOB, "args": {"m": {key: "yes"}}}
        await ground.admit([job], [b"\x01\x92\x90" + packed(job["args"], Random(0))])
        name = key.decode() if isinstance(key, bytes) else str(key)
        assert await ground.surveyed(parse_where(f"args.m['{name}'] == 'yes'")) == {job["jid"]}
        assert await ground.surveyed(parse_where("args.m.5 == 'yes'")) == set(), "an index is for lists"


@pytest.mark.parametrize("key", [1.5, float("nan"), float("inf"), True, None])
async def test_keys_that_are_no_names_are_passed_over(redis_url: str, key: Any) -> None:
    async with Bench(redis_url) as bench:
        ground = Ground(bench, asyncio.run)
        job = {**JOB, "args": {"m": {key: "yes"}, "n": 1}}
        await ground.admit([job], [b"\x01\x92\x90" + packed(job["args"], Random(0))])
        for name in ("2", "1", "nan", "inf", "true", "nil", ""):
            assert await ground.surveyed(["==", {"f": "args", "p": ["m", name]}, {"v": "yes"}]) == set(), name
        assert await ground.surveyed(parse_where("args.n == 1")) == {job["jid"]}


HOSTILE = {
    "nothing": b"",
    "version only": b"\x01",
    "cut short": b"\x01\x92\x90\x81\xa1a",
    "text cut short": b"\x01\x92\x90\x81\xa1a\xdb\xff\xff\xff\xffx",
    "list of 4 billion": b"\x01\x92\xdd\xff\xff\xff\xff",
    "map of 4 billion": b"\x01\x92\x90\xdf\xff\xff\xff\xff\xa1a",
    "never used": b"\x01\xc1",
    "no list": b"\x01\x01",
    "deep lists": b"\x01" + b"\x91" * 100_000,
    "deep maps": b"\x01\x92\x90" + b"\x81\xa1a" * 100_000,
    "keys that are lists": b"\x01\x92\x90\x81\x91\x01\x02",
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_bytes_that_are_no_payload_have_no_arguments_and_stop_nobody(url: str, what: str) -> None:
    async with Bench(url) as bench:
        ground = Ground(bench, asyncio.run)
        jobs = [{**JOB, "args": {}}, {**JOB, "args": {"a": 1}}]
        await ground.admit(jobs, [HOSTILE[what], payload_of({"a": 1})])
        assert await ground.surveyed(parse_where("args.a == null and args.0 == null")) == {jobs[0]["jid"]}
        assert await ground.surveyed(parse_where("args.a == 1")) == {jobs[1]["jid"]}


@settings(max_examples=EXAMPLES, **SAFE)
@given(
    payloads=st.lists(st.binary(max_size=40) | st.binary(max_size=30).map(lambda tail: b"\x01\x92\x90\x81\xa1a" + tail))
)
def test_no_bytes_whatever_break_a_survey(ground: Ground, payloads: list[bytes]) -> None:
    jobs = [{**JOB, "args": {}} for _ in payloads] + [{**JOB, "args": {"sound": 1}}]

    async def look() -> None:
        await ground.admit(jobs, [*payloads, payload_of({"sound": 1})])
        found = await ground.surveyed(parse_where("args.sound == 1"))
        assert jobs[-1]["jid"] in found
        for node in (["==", ARGUMENT, {"v": 1}], ["<", ARGUMENT, {"v": "x"}], ["in", {"v": 1}, ARGUMENT]):
            await ground.surveyed(node)

    ground.run(look())


# What is not a field of one record -------------------------------------------------------------------------


@settings(max_examples=EXAMPLES, **SAFE)
@given(st.text(max_size=6), ANY_TEXTS)
def test_tags_are_found_by_any_name(ground: Ground, name: str, value: str) -> None:
    async def look() -> None:
        jobs = [{**JOB, "tags": {name: value}}, {**JOB, "tags": {}}]
        await ground.admit(jobs)
        assert await ground.surveyed(["==", {"f": "tags", "p": [name]}, {"v": value}]) == {jobs[0]["jid"]}

    ground.run(look())


@settings(max_examples=30, **SAFE)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=9))
def test_descendants_are_all_below_and_not_the_job_itself(ground: Ground, above: list[int]) -> None:
    """Job `i` is a child of job `above[i - 1]`, if there is one before it."""

    async def look() -> None:
        bench = ground.bench
        await bench.redis.flushall()
        ancestors: dict[str, set[str]] = {}
        jids: list[str] = []
        for k in above:
            parent = jids[k] if k < len(jids) else None
            jid = bench.fresh("job")
            await bench.enqueue(jid, **({"parent": parent} if parent else {}))
            ancestors[jid] = {parent, *ancestors[parent]} if parent else set()
            jids.append(jid)
        for jid in jids:
            expected = {each for each in jids if jid in ancestors[each]}
            assert await ground.surveyed(["under", jid]) == expected
            survey, _ = await Scopes(bench.a).survey(Filter(descendants_of=jid))
            assert survey.jobs == len(expected)

    ground.run(look())


async def test_enqueued_before_means_up_to_and_not_at_that_moment(url: str) -> None:
    async with Bench(url) as bench:
        scopes = Scopes(bench.a)
        at = datetime.fromtimestamp(bench.clock.now_ms / 1000, UTC)
        await bench.enqueue()
        bench.clock.advance(0.001)
        later = datetime.fromtimestamp(bench.clock.now_ms / 1000, UTC)
        assert (await scopes.survey(Filter(enqueued_before=at)))[0].jobs == 0
        assert (await scopes.survey(Filter(enqueued_before=later)))[0].jobs == 1
