"""What a wide cancel covers: each field of a filter is checked, and together they become one condition."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from busq.errors import BadWhere, TooLarge, UsageError
from busq.protocol.cancel import Ended, Verdict
from busq.protocol.scope import Filter, Rule, ScopeLook, ScopeState, Survey, check_moment, check_standing
from tests.store.judge import matches
from tests.wheres import JOB

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
ZONE_EAST, ZONE_WEST = timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=11, seconds=7))
MS = 1_767_323_045_678

FULL: dict[str, Any] = {
    "group": "user:42",
    "kind": "upload",
    "queue": "media",
    "tags": {"tenant": "a", "odd name": "ü"},
    "worker": "w-1",
    "jid_prefix": "order-",
    "enqueued_before": MOMENT,
    "descendants_of": "root",
    "where": "attempt > 3 or args.x == 1",
}


# What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "an empty filter would cancel every job of the bus; say which ones (group=, kind=, "),
        ({"everything": 1}, "everything: 1 will not do; it takes True or False"),
        ({"group": ""}, "group: it is empty; leave it out"),
        ({"group": 42}, "group takes text, not int"),
        ({"group": "g" * 1001}, "group has 1001 characters"),
        ({"worker": ""}, "worker: it is empty"),
        ({"worker": b"w"}, "worker takes text, not bytes"),
        ({"kind": ""}, "kind: a kind takes 1 to 128 characters"),
        ({"kind": "a b"}, "has ' ' at position 1"),
        ({"kind": ["a"]}, "kind: a kind is a str"),
        ({"kind": "upload/on_cancel"}, "names with / are busq's own (clean-ups, finalizers)"),
        ({"queue": "media/on_cancel"}, "names with / are busq's own (clean-ups, finalizers)"),
        ({"queue": "q" * 65}, "at most 64 characters"),
        ({"queue": "a\n"}, r"has '\n' at position 1"),
        ({"jid_prefix": ""}, "jid_prefix: the start of a jid takes 1 to 128 characters"),
        ({"jid_prefix": "a*"}, "has '*' at position 1"),
        ({"descendants_of": "a b"}, "descendants_of: a jid takes 1 to 128"),
        ({"descendants_of": None, "tags": {}}, "tags: {} will not do"),
        ({"tags": "tenant=a"}, "tags: 'tenant=a' will not do"),
        ({"tags": {"tenant": 1}}, "tags: 'tenant': 1 will not do; names and values are text"),
        ({"tags": {1: "a"}}, "names and values are text"),
        ({"enqueued_before": datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001
        ({"enqueued_before": "yesterday"}, "enqueued_before: 'yesterday' will not do; it takes a datetime"),
        ({"enqueued_before": 1_700_000_000}, "it takes a datetime with a time zone"),
        ({"enqueued_before": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))}, "outside the years"),
        ({"where": b"kind"}, "where takes text, not bytes"),
        ({"where": " "}, "it is empty"),
        ({"everything": True, "kind": "a b"}, "has ' ' at position 1"),
    ],
)
def test_a_field_that_will_not_do_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Filter(**given).checked()
    assert words in str(caught.value)


def test_a_bad_expression_is_pointed_at() -> None:
    with pytest.raises(BadWhere) as caught:
        Filter(group="g", where="knd == 'a'").checked()
    assert caught.value.at == 0


def test_a_filter_may_not_be_larger_than_its_limit() -> None:
    Filter(tags={str(n): "x" * 800 for n in range(9)}).checked()
    with pytest.raises(TooLarge, match="over the limit of 8192"):
        Filter(tags={str(n): "x" * 800 for n in range(10)}).checked()


@pytest.mark.parametrize("field", ["kind", "queue", "group", "worker", "tags", "jid_prefix", "where"])
def test_a_long_value_makes_no_long_message(field: str) -> None:
    with pytest.raises(UsageError) as caught:
        Filter(**{field: "a/" * 100_000}).checked()
    assert len(str(caught.value)) < 500


# What it becomes -------------------------------------------------------------------------------------------


def test_every_field_becomes_one_node_and_all_must_hold() -> None:
    assert Filter(**FULL).checked().condition() == [
        "and",
        ["==", {"f": "queue"}, {"v": "media"}],
        ["==", {"f": "kind"}, {"v": "upload"}],
        ["==", {"f": "group"}, {"v": "user:42"}],
        ["==", {"f": "worker"}, {"v": "w-1"}],
        ["^=", {"f": "jid"}, {"v": "order-"}],
        ["<", {"f": "enqueued"}, {"v": MS}],
        ["==", {"f": "tags", "p": ["odd name"]}, {"v": "ü"}],
        ["==", {"f": "tags", "p": ["tenant"]}, {"v": "a"}],
        ["under", "root"],
        ["or", [">", {"f": "attempt"}, {"v": 3}], ["==", {"f": "args", "p": ["x"]}, {"v": 1}]],
    ]


@pytest.mark.parametrize("field", FULL)
def test_each_field_alone_narrows_and_stands_in_its_words(field: str) -> None:
    chosen = Filter(**{field: FULL[field]}).checked()
    assert len(chosen.condition()) == (3 if field == "tags" else 2)
    assert chosen.words() != "everything"


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        ({"group": "user:42"}, True),
        ({"group": "user:4"}, False),
        ({"kind": "upload-part", "queue": "media"}, True),
        ({"kind": "upload-part", "queue": "default"}, False),
        ({"tags": {"tenant": "a", "a.b": "point"}}, True),
        ({"tags": {"tenant": "a", "a.b": "other"}}, False),
        ({"tags": {"missing": "a"}}, False),
        ({"worker": "w"}, False),
        ({"jid_prefix": "order-17"}, True),
        ({"jid_prefix": "order-17.1"}, False),
        ({"descendants_of": "root"}, True),
        ({"descendants_of": "order-17"}, False),
        ({"enqueued_before": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)}, False),
        ({"enqueued_before": datetime(2023, 11, 14, 22, 13, 20, 1, tzinfo=UTC)}, True),
        ({"where": "attempt == 2", "group": "user:42"}, True),
        ({"where": "attempt == 9", "group": "user:42"}, False),
        ({"where": "attempt == 9 or attempt == 2", "group": "other"}, False),
        ({"everything": True}, True),
        ({"everything": True, "group": "other"}, False),
    ],
)
def test_a_job_is_meant_when_it_fits_every_field(given: dict[str, Any], fits: bool) -> None:
    assert matches(Filter(**given).checked().condition(), JOB) is fits


MOMENTS = st.integers(-(10**9), 10**16).map(lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us))


@given(MOMENTS, st.integers(-3, 3))
def test_enqueued_before_means_exactly_that_at_every_microsecond(moment: datetime, away: int) -> None:
    enqueued = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) + away
    before = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=enqueued) < moment
    assert matches(Filter(enqueued_before=moment).condition(), {"enqueued": enqueued}) is before


def test_a_checked_filter_comes_back_from_json_as_it_was() -> None:
    there = Filter(**FULL | {"tags": MappingProxyType({"a": "b"}), "where": "kind == 'ü'"}).checked()
    back = msgspec.json.decode(msgspec.json.encode(there), type=Filter)
    assert back == there == back.checked()
    assert back.condition() == there.condition()
    assert msgspec.json.decode(msgspec.json.encode(Filter(everything=True).checked()), type=Filter).everything


@given(st.datetimes(timezones=st.sampled_from([UTC, ZONE_EAST, ZONE_WEST])))
def test_any_aware_moment_comes_back_from_json_as_it_was(moment: datetime) -> None:
    try:
        there = Filter(enqueued_before=moment).checked()
    except UsageError:  # at the very ends of the calendar
        assert moment.year in (1, 9999)
        return
    assert msgspec.json.decode(msgspec.json.encode(there), type=Filter) == there
    assert there.enqueued_before == moment


@pytest.mark.parametrize("words", [{"group": "a\nb"}, {"tags": {"x\t": "y"}}, {"tags": {"x": "y\0"}}], ids=repr)
def test_words_that_a_job_does_not_take_are_refused_as_it_refuses_them(words: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"takes printable characters, and .* has .* at position 1"):
        Filter(**words).checked()


def test_a_moment_is_kept_in_utc() -> None:
    given = MOMENT.astimezone(timezone(timedelta(hours=2)))
    assert check_moment(given, "until").tzinfo is UTC
    with pytest.raises(UsageError, match=r"until: .* has no time zone"):
        check_moment(datetime(2026, 1, 1), "until")  # noqa: DTZ001


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"group": "user:42", "kind": "upload"}, "group 'user:42' and kind 'upload'"),
        ({"everything": True}, "everything"),
        ({"everything": True, "queue": "q"}, "queue 'q'"),
        ({"tags": {"b": "2", "a": "1"}}, "tag a='1' and tag b='2'"),
        ({"worker": "w", "jid_prefix": "a."}, "running on worker 'w' and jids that start with 'a.'"),
        ({"enqueued_before": MOMENT}, "enqueued before 2026-01-02T03:04:05.678000+00:00"),
        ({"descendants_of": "root", "where": "age > 3 or age < 1"}, "descendants of 'root' and (age > 3 or age < 1)"),
        ({"where": "age > 3 or age < 1"}, "where age > 3 or age < 1"),
    ],
)
def test_a_filter_says_in_words_what_it_covers(given: dict[str, Any], words: str) -> None:
    assert Filter(**given).checked().words() == words


# Standing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"worker": "w"}, "worker"),
        ({"where": "worker == null"}, "worker"),
        ({"where": "not (kind == 'a' or state == 'queued')"}, "state"),
        ({"group": "g", "where": "args.x == attempt"}, "attempt"),
        ({"where": "kind == 'a' and (losses > 0 or failures > 0)"}, "failures, losses"),
        ({"where": "age > 60"}, "age"),
    ],
)
def test_a_standing_rule_may_not_ask_for_what_a_new_job_has_not_yet(given: dict[str, Any], asked: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_standing(Filter(**given).checked())
    assert f"a standing rule cannot ask for {asked}: it is judged when a job arrives" in str(caught.value)


def test_a_standing_rule_may_ask_for_all_that_an_arriving_job_has() -> None:
    check_standing(Filter(**FULL | {"worker": None, "where": "args.state == 1 and tags.worker == 'a'"}).checked())
    check_standing(Filter(everything=True).checked())


# What is known afterwards ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "unfinished", "done"),
    [
        (ScopeState.SETTLING, 0, False),
        (ScopeState.STANDING, 1, False),
        (ScopeState.STANDING, 0, True),
        (ScopeState.SETTLED, 1, False),
        (ScopeState.SETTLED, 0, True),
        (ScopeState.REVOKED, 1, False),
        (ScopeState.REVOKED, 0, True),
    ],
)
def test_a_scope_is_done_when_it_is_settled_and_everything_that_it_hit_has_ended(
    state: ScopeState, unfinished: int, done: bool
) -> None:
    look = ScopeLook(id="s", state=state, counts={}, endings={}, unfinished=unfinished, examined=1, total=1)
    assert look.done is done


def test_counts_are_found_under_the_words_of_the_bus() -> None:
    look = msgspec.json.decode(
        b'{"id":"s","state":"settled","counts":{"signalled":2},"endings":{"killed":1},"unfinished":1,"examined":9,'
        b'"total":9}',
        type=ScopeLook,
    )
    assert (look.counts[Verdict.SIGNALLED], look.endings[Ended.KILLED], look.state) == (2, 1, ScopeState.SETTLED)


def test_rules_and_surveys_come_back_from_json_as_they_were() -> None:
    rule = Rule(id="s", filter=Filter(**FULL).checked(), standing=True, until=MOMENT, reason="enough", source="api",
                grace_s=2.5, decided_at=MOMENT, by="p", state=ScopeState.STANDING)  # fmt: skip
    survey = Survey(jobs=1, kinds={"k": 1}, queues={"q": 1}, states={"queued": 1}, digest="d")
    assert msgspec.json.decode(msgspec.json.encode(rule), type=Rule) == rule
    assert msgspec.json.decode(msgspec.json.encode(survey), type=Survey) == survey
