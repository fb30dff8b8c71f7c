"""The codec: what goes in comes out, and whatever is wrong with bytes from the wire is a `BadPayload`."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import traceback
import uuid
from collections import deque
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from busq.errors import BadArguments, BadPayload, BadResult, TooLarge
from busq.protocol import codec
from busq.protocol.codec import (
    DEEPEST,
    EMPTY_PAYLOAD,
    NAMED_ONLY,
    ErrorInfo,
    decode_error,
    decode_payload,
    decode_result,
    describe_error,
    encode_error,
    encode_payload,
    encode_result,
)

LIMIT = 1024 * 1024

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text("abc"), inner, max_size=5),
    max_leaves=40,
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Size(msgspec.Struct):
    w: int
    h: int


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


# Payloads


@given(st.lists(PLAIN, max_size=4), st.dictionaries(NAMES, PLAIN, max_size=4))
def test_plain_arguments_come_back_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    assert decode_payload(encode_payload(tuple(args), kwargs, LIMIT)) == (args, kwargs)


def test_a_call_without_arguments_is_one_constant() -> None:
    assert encode_payload((), {}, 0) is EMPTY_PAYLOAD
    assert b"\x01" + msgspec.msgpack.encode([[], {}]) == EMPTY_PAYLOAD
    assert decode_payload(EMPTY_PAYLOAD) == ([], {})


def test_the_bytes_of_a_payload_stay_the_same_from_release_to_release() -> None:
    data = encode_payload(("a.mp4",), {"preset": "fast", "n": 3}, LIMIT)
    assert data.hex() == "019291a5612e6d703482a6707265736574a466617374a16e03"
    assert encode_payload((), {"n": 3}, LIMIT).startswith(NAMED_ONLY)


def test_rich_types_are_written() -> None:
    moment = dt.datetime(2024, 1, 2, 3, 4, tzinfo=dt.UTC)
    key = uuid.uuid4()
    args = (moment, key, decimal.Decimal("1.50"), Colour.RED, Point(1, 2), Size(3, 4), {7}, Path("a/b"), (1, 2))
    positional, _ = decode_payload(encode_payload(args, {}, LIMIT))
    assert positional == [moment, str(key), "1.50", "red", {"x": 1, "y": 2}, {"w": 3, "h": 4}, [7], "a/b", [1, 2]]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "busq does not write object"),
        (deque([1]), "busq does not write deque"),
        (2**64, "2**64"),
        ("\ud800", "surrogates"),
        (Path("\udcff"), "surrogates"),
        (nested(DEEPEST + 1), "deeper than 64"),
        (nested(900), "deeper than 64"),
        ({"key": nested(DEEPEST)}, "deeper than 64"),
    ],
)
def test_the_argument_that_cannot_be_written_is_named(value: Any, words: str) -> None:
    with pytest.raises(BadArguments, match=r"positional argument 1 cannot be written") as caught:
        encode_payload((1, value), {"fine": 2}, LIMIT)
    assert words in str(caught.value)
    with pytest.raises(BadArguments, match=r"argument 'preset' cannot be written") as caught:
        encode_payload((1,), {"fine": 2, "preset": value}, LIMIT)
    assert words in str(caught.value)


def test_a_value_within_itself_is_refused() -> None:
    knot: list[Any] = []
    knot.append(knot)
    with pytest.raises(BadArguments, match="within itself"):
        encode_payload((knot,), {}, LIMIT)


def test_names_of_arguments_are_text() -> None:
    with pytest.raises(BadArguments, match="of type int"):
        encode_payload((), {1: 2}, LIMIT)  # type: ignore[dict-item]


def test_the_deepest_value_allowed_goes_in_and_comes_out() -> None:
    data = encode_payload((nested(DEEPEST),), {"also": nested(DEEPEST)}, LIMIT)
    assert decode_payload(data) == ([nested(DEEPEST)], {"also": nested(DEEPEST)})
    with pytest.raises(BadPayload, match="deeper than 64"):
        decode_payload(b"\x01" + msgspec.msgpack.encode([[nested(DEEPEST + 1)], {}]))


def test_wide_values_are_not_taken_for_deep_ones() -> None:
    rows = [{"id": n, "tags": [n, [n]]} for n in range(500)]
    assert decode_payload(encode_payload((), {"rows": rows}, LIMIT)) == ([], {"rows": rows})


def test_a_payload_over_the_limit_names_its_size_and_the_limit() -> None:
    size = len(encode_payload((b"x" * 2000,), {}, LIMIT))
    assert encode_payload((b"x" * 2000,), {}, size)
    with pytest.raises(TooLarge, match=f"{size:,} bytes and the limit is {size - 1:,}"):
        encode_payload((b"x" * 2000,), {}, size - 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no bytes"),
        (b"\x07\x92\x90\x80", "version 7, this busq reads 1"),
        (b"\x01", "truncated"),
        (b"\x01\x92\x90\x80\x00", "trailing"),
        (b"\x01\x93\x90\x80\x80", "length 2"),
        (b"\x01\x92\x90\x81\x01\x02", "Expected `str`"),
        (b"\x01\x92\x91\xa1\xff\x80", "utf-8"),
        (b"\x01\x92\x91\xc1\x80", "invalid opcode"),
        (b"\x01\x92\xdd\xff\xff\xff\xff\x80", "truncated"),
        (b"\x01\x92" + b"\x91" * 100_000, "deeper than 64"),
        (b"\x01\x92\x91\x81\x80\x01\x80", "hashable"),
        (b"\x80\x04\x95", "version 128"),
    ],
)
def test_malformed_bytes_are_a_bad_payload_that_says_what_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(BadPayload) as caught:
        decode_payload(data)
    assert words in str(caught.value)


def _survives(data: bytes) -> None:
    for decode in (decode_payload, decode_result, decode_error):
        with contextlib.suppress(BadPayload):
            decode(data)


@given(st.binary(max_size=200))
@example(b"\x01\xd6\xff\xff\xff\xff\xff")
@example(b"\x01\xc7\x0c\xff\x00\x00\x00\x00\x7f" + b"\xff" * 7)
def test_garbage_never_raises_anything_else(data: bytes) -> None:
    _survives(data)
    _survives(b"\x01" + data)
    _survives(b"\x01\x92" + data)


@given(st.lists(PLAIN, max_size=3), st.dictionaries(NAMES, PLAIN, max_size=3), st.data())
def test_a_damaged_payload_never_raises_anything_else(
    args: list[Any], kwargs: dict[str, Any], data: st.DataObject
) -> None:
    damaged = bytearray(encode_payload(tuple(args), kwargs, LIMIT))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not damaged:
            break
    _survives(bytes(damaged))


# Results


def test_none_is_no_bytes_at_all() -> None:
    assert encode_result(None, LIMIT) == b""
    assert decode_result(b"") is None
    assert decode_result(b"", None) is None


@given(PLAIN)
def test_plain_results_come_back_as_they_were(value: Any) -> None:
    assert decode_result(encode_result(value, LIMIT)) == value


@pytest.mark.parametrize(
    ("value", "type"),
    [
        (Point(1, 2), Point),
        (Size(1, 2), Size),
        (Path("a/b"), Path),
        ([Path("a")], list[Path]),
        (None, Path | None),
        (Colour.RED, Colour),
        ({1, 2}, set[int]),
        (dt.timedelta(seconds=3), dt.timedelta),
        (decimal.Decimal("0.1"), decimal.Decimal),
        (dt.datetime(2024, 1, 2, tzinfo=dt.UTC), dt.datetime),
        (dt.datetime(2024, 1, 2), dt.datetime),  # noqa: DTZ001
        ({1: (2, "x")}, dict[int, tuple[int, str]]),
    ],
)
def test_a_typed_result_comes_back_as_its_type(value: Any, type: Any) -> None:
    assert decode_result(encode_result(value, LIMIT), type) == value


def test_a_result_that_does_not_fit_its_type_says_so() -> None:
    with pytest.raises(BadResult, match=r"does not fit .*int.*Expected `int`, got `str`"):
        decode_result(encode_result("3", LIMIT), int)
    with pytest.raises(BadResult, match="Expected `int`, got `null`"):
        decode_result(b"", int)


@pytest.mark.parametrize("type", [object, deque, complex, Path | str, "Unknown", list[deque[int]]])
def test_a_type_that_cannot_be_read_leaves_the_value_as_it_is(type: Any) -> None:
    assert decode_result(encode_result(["a", 1], LIMIT), type) == ["a", 1]


def test_a_result_that_cannot_be_written_or_is_too_large_is_named() -> None:
    with pytest.raises(BadResult, match="busq does not write object"):
        encode_result(object(), LIMIT)
    with pytest.raises(BadResult, match="deeper than 64"):
        encode_result(nested(DEEPEST + 1), LIMIT)
    assert decode_result(encode_result(nested(DEEPEST), LIMIT)) == nested(DEEPEST)
    with pytest.raises(TooLarge, match="the result has 104 bytes and the limit is 100"):
        encode_result("x" * 101, 100)


def test_a_result_of_another_version_is_refused() -> None:
    with pytest.raises(BadPayload, match="version 2, this busq reads 1"):
        decode_result(b"\x02\xc0")


# Errors


def caught(raise_it: Any) -> BaseException:
    try:
        raise_it()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit("no words")


class Sly(str):
    def replace(self, *_: Any) -> str:
        raise RuntimeError

    encode = replace  # type: ignore[assignment]


class SlyError(Exception):
    def __str__(self) -> str:
        return Sly("sly")


def test_an_error_is_described_with_type_message_and_traceback() -> None:
    info = describe_error(caught(lambda: [].pop()), 16_384)
    assert (info.type, info.message) == ("IndexError", "pop from empty list")
    assert info.traceback.startswith("Traceback (most recent call last)")
    assert info.traceback.rstrip().endswith("IndexError: pop from empty list")
    assert describe_error(Mute(), 16_384).type == f"{__name__}.Mute"


def test_an_exception_whose_words_raise_is_still_described() -> None:
    info = describe_error(Mute(), 16_384)
    assert "SystemExit" in info.message
    assert describe_error(SlyError(), 16_384).message == "sly"


def test_a_traceback_that_cannot_be_had_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> list[str]:
        raise MemoryError

    monkeypatch.setattr(traceback, "format_exception", broken)
    info = describe_error(ValueError("x"), 1000)
    assert (info.message, "MemoryError" in info.traceback) == ("x", True)


def test_surrogates_and_nuls_in_a_message_are_made_harmless() -> None:
    info = describe_error(ValueError("a\0b\ud800c"), 16_384)
    assert info.message == "a\\x00b\\ud800c"
    assert decode_error(encode_error(info)) == info


def test_exception_groups_show_their_members() -> None:
    group = ExceptionGroup("two", [ValueError("first"), KeyError("second")])
    text = describe_error(group, 16_384).traceback
    assert "ValueError: first" in text
    assert "KeyError: 'second'" in text


def test_a_long_traceback_keeps_its_head_and_its_tail() -> None:
    info = describe_error(caught(lambda: exec("raise ValueError('é' * 50_000 + 'the end')")), 4_000)
    assert len(info.traceback.encode()) <= 4_000
    assert len(info.message.encode()) <= 1_000
    assert info.traceback.startswith("Traceback")
    assert info.traceback.rstrip().endswith("the end")
    assert info.message.startswith("éé")
    assert "the middle left out" in info.traceback


@given(st.text(), st.integers(0, 2_000))
def test_a_described_error_stays_within_its_limit_and_can_be_written(message: str, limit: int) -> None:
    info = describe_error(ValueError(message * 20), limit)
    assert len(info.traceback.encode()) <= limit
    assert len(info.message.encode()) <= limit // 4
    assert decode_error(encode_error(info)) == info


def test_a_newer_errors_unknown_fields_are_passed_over() -> None:
    data = b"\x01" + msgspec.msgpack.encode({"type": "E", "message": "m", "notes": ["n"]})
    assert decode_error(data) == ErrorInfo("E", "m")


@given(PLAIN)
def test_looking_for_depth_agrees_with_counting_levels(value: Any) -> None:
    def levels(inner: Any) -> int:
        if isinstance(inner, dict):
            return 1 + max(map(levels, inner.values()), default=0)
        return 1 + max(map(levels, inner), default=0) if isinstance(inner, list) else 0

    data = b"\x01" + msgspec.msgpack.encode([value] * 70)  # enough heads for the count to be taken
    for deepest in range(1, 5):
        try:
            codec._check_depth(data, [value] * 70, deepest)
            assert levels([value]) <= deepest
        except RecursionError:
            assert levels([value]) > deepest
