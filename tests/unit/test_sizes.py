"""Everything that a caller may give has a size: one less and exactly so much will do, one more is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import busq
from busq.protocol.cancel import REASON_LIMIT, clean_words
from busq.protocol.codec import DEEPEST, decode_payload, decode_result, encode_payload, encode_result
from busq.protocol.jids import LONGEST, LONGEST_KEY
from busq.protocol.scope import LARGEST_FILTER, LONGEST_QUEUE, Filter
from busq.protocol.where import LONGEST_TEXT, parse_where

BUS = busq.Bus("redis://nowhere", payload_bytes=1000)


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def filter_of(size: int) -> Filter:
    """A filter of so many bytes as JSON."""
    tags = {f"{n}": "x" * 900 for n in range(8)}
    short = size - len(msgspec.json.encode(Filter(tags=tags | {"last": ""}).checked()))
    return Filter(tags=tags | {"last": "x" * short}).checked()


SIZES: dict[str, tuple[Callable[[int], Any], int, type[Exception]]] = {
    "payload": (lambda n: BUS.spec("k", "x" * (n - 7)), 1000, busq.TooLarge),
    "result": (lambda n: encode_result("x" * (n - 4), 500), 500, busq.TooLarge),
    "depth of an argument": (lambda n: BUS.spec("k", deep(n)), DEEPEST, busq.BadArguments),
    "depth of a named argument": (lambda n: BUS.spec("k", a=deep(n)), DEEPEST, busq.BadArguments),
    "depth of a result": (lambda n: encode_result(deep(n), 10_000), DEEPEST, busq.BusqError),
    "jid": (lambda n: BUS.options(jid="j" * n).spec("k"), LONGEST, busq.BadJid),
    "kind": (lambda n: BUS.spec("k" * n), LONGEST, busq.ConfigError),
    "queue": (lambda n: BUS.options(queue="q" * n).spec("k"), LONGEST_QUEUE, busq.ConfigError),
    "group": (lambda n: BUS.options(group="g" * n).spec("k"), REASON_LIMIT, busq.UsageError),
    "name of a tag": (lambda n: BUS.options(tags={"t" * n: "x"}).spec("k"), REASON_LIMIT, busq.UsageError),
    "tag": (lambda n: BUS.options(tags={"t": "x" * n}).spec("k"), REASON_LIMIT, busq.UsageError),
    "tags": (lambda n: BUS.options(tags={str(i): "x" for i in range(n)}).spec("k"), 32, busq.UsageError),
    "key": (lambda n: BUS.options(key="k" * n, supersede=True).spec("k"), LONGEST_KEY, busq.UsageError),
    "reason": (lambda n: clean_words("r" * n, "reason"), REASON_LIMIT, busq.UsageError),
    "expression": (lambda n: parse_where("kind == '" + "x" * (n - 10) + "'"), LONGEST_TEXT, busq.BadWhere),
    "filter": (filter_of, LARGEST_FILTER, busq.TooLarge),
    "delay": (lambda n: BUS.options(delay=n).spec("k"), 10 * 365 * 86_400, busq.UsageError),
}


@pytest.mark.parametrize("what", SIZES)
def test_one_more_than_the_limit_is_refused_by_name(what: str) -> None:
    give, limit, error = SIZES[what]
    give(limit - 1)
    give(limit)
    with pytest.raises(error) as refused:
        give(limit + 1)
    assert f"{limit:,}" in str(refused.value) or str(limit) in str(refused.value) or what == "delay"


@pytest.mark.parametrize("levels", [DEEPEST - 1, DEEPEST, DEEPEST + 1])
def test_what_is_nested_too_deeply_is_refused_by_who_reads_it_too(levels: int) -> None:
    payload = b"\x01" + msgspec.msgpack.encode([[deep(levels)], {}])
    result = b"\x01" + msgspec.msgpack.encode(deep(levels))
    if levels <= DEEPEST:
        assert encode_payload((deep(levels),), {}, 1000) == payload
        assert decode_payload(payload) == ([deep(levels)], {})
        assert decode_result(result) == deep(levels)
    else:
        for decode, data in ((decode_payload, payload), (decode_result, result)):
            with pytest.raises(busq.BusqError, match="nested deeper than 64 levels"):
                decode(data)
