"""Handlers: what may be one, how arguments are checked on both sides, and what a registry knows."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import functools
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from busq.callables import Pool
from busq.errors import BadArguments, BadPayload, ConfigError
from busq.handlers import Handler, HandlerOptions, Handlers
from busq.protocol.codec import EMPTY_PAYLOAD, encode_payload

if typing.TYPE_CHECKING:
    from fractions import Fraction as OnlyForCheckers

LIMIT = 1024 * 1024


class Preset(enum.StrEnum):
    FAST = "fast"
    SLOW = "slow"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Size(msgspec.Struct):
    w: int
    h: int

    def __post_init__(self) -> None:
        if self.w == 13:
            raise KeyError("thirteen")


class Odd:
    pass


async def transcode(path: str, preset: str = "slow") -> str:
    return path + preset


async def bare() -> None: ...


def plain(n: int) -> int:
    return n


async def mixed(a: int, /, b: int, *rest: int, c: int = 3, **others: int) -> None: ...


async def rich(  # type: ignore[no-untyped-def]
    path: Path,
    when: dt.datetime | None = None,
    point: Point | None = None,
    size: Size | None = None,
    preset: Preset = Preset.SLOW,
    mode: Literal["a", "b"] = "a",
    tags: set[str] | None = None,
    count: Annotated[int, msgspec.Meta(ge=1)] = 1,
    odd: Odd | None = None,
    odds: list[Odd] | None = None,
    either: int | list[int] | None = None,
    missing: OnlyForCheckers | None = None,
    bare=None,
) -> None: ...


def sent(handler: Handler, *args: Any, **kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    """What the worker gets from a producer that has the handler's code."""
    return handler.unbind(encode_payload(*handler.bind(args, kwargs), LIMIT))


def raw(handler: Handler, *args: Any, **kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    """What the worker gets from a producer that has not."""
    return handler.unbind(encode_payload(args, kwargs, LIMIT))


# What may be a handler


def test_the_kind_is_the_functions_name_unless_another_is_given() -> None:
    assert Handler(transcode).kind == "transcode"
    assert Handler(transcode, kind="media.transcode:v2").kind == "media.transcode:v2"


@pytest.mark.parametrize("kind", ["", "has space", "x" * 129, "a/b", "é", 5])
def test_an_odd_kind_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="a kind "):
        Handler(transcode, kind=kind)


def test_the_function_says_where_it_runs() -> None:
    assert Handler(transcode).pool is Pool.COROUTINE
    assert Handler(plain).pool is Pool.THREAD
    assert Handler(plain, options=HandlerOptions(pool=Pool.PROCESS)).pool is Pool.PROCESS


@pytest.mark.parametrize("pool", [Pool.THREAD, Pool.PROCESS])
def test_a_coroutine_function_runs_nowhere_else(pool: Pool) -> None:
    with pytest.raises(ConfigError, match="this is an `async def`"):
        Handler(transcode, options=HandlerOptions(pool=pool))


def test_a_plain_function_does_not_run_as_a_coroutine() -> None:
    with pytest.raises(ConfigError, match="would block"):
        Handler(plain, options=HandlerOptions(pool=Pool.COROUTINE))


def test_generators_classes_and_what_cannot_be_called_are_refused() -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def stream() -> AsyncIterator[int]:
        yield 1

    for function in (generator, stream, functools.partial(generator)):
        with pytest.raises(ConfigError, match="is a generator"):
            Handler(function)
    with pytest.raises(ConfigError, match="is a class"):
        Handler(Point)
    with pytest.raises(ConfigError, match="cannot be called"):
        Handler(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give it one with kind="):
        Handler(lambda: None)
    with pytest.raises(ConfigError, match="does not tell its parameters"):
        Handler(_Secret(), kind="x")


class _Secret:
    __signature__ = "none"

    def __call__(self) -> None: ...


def test_a_partial_is_its_function_with_less_to_give() -> None:
    handler = Handler(functools.partial(transcode, preset="fast"))
    assert (handler.kind, handler.pool) == ("transcode", Pool.COROUTINE)
    assert sent(handler, "a") == ([], {"path": "a"})
    assert sent(Handler(functools.partial(plain, 3))) == ([], {})


def test_a_bound_method_and_a_callable_object_are_handlers() -> None:
    class Codec:
        async def run(self, path: Path) -> None: ...

        async def __call__(self, path: Path) -> None: ...

        @staticmethod
        def still(path: Path) -> None: ...

    assert sent(Handler(Codec().run), "a") == ([], {"path": Path("a")})
    with pytest.raises(ConfigError, match="give it one with kind="):
        Handler(Codec())
    handler = Handler(Codec(), kind="codec")
    assert handler.pool is Pool.COROUTINE
    assert sent(handler, "a") == ([], {"path": Path("a")})
    assert Handler(Codec.__dict__["still"]).kind == "still"


def test_a_decorated_function_keeps_its_signature_and_types() -> None:
    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return wrapper

    handler = Handler(logged(rich))
    assert (handler.kind, handler.pool) == ("rich", Pool.COROUTINE)
    assert sent(handler, "a") == ([], {"path": Path("a")})
    assert "rich (line" in handler.where


def test_a_plain_wrapper_around_a_coroutine_function_must_say_what_it_does() -> None:
    @functools.wraps(transcode)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return transcode(*args, **kwargs)

    with pytest.raises(ConfigError, match="hides an `async def`"):
        Handler(wrapper)
    for pool in (Pool.COROUTINE, Pool.THREAD):
        assert Handler(wrapper, options=HandlerOptions(pool=pool)).pool is pool


# Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("queue", "a b"),
        ("queue", "x" * 65),
        ("queue", ""),
        ("queue", "media\n"),
        ("queue", 3),
        ("retries", -1),
        ("retries", 1.5),
        ("retries", True),
        ("retries", "2"),
        ("timeout_s", 0),
        ("timeout_s", float("nan")),
        ("timeout_s", float("inf")),
        ("expires_s", 0),
        ("deadline_s", -1),
        ("grace_s", -0.1),
        ("grace_s", float("nan")),
        ("backoff_s", 0),
        ("backoff_max_s", -1),
        ("max_losses", -1),
        ("late_success", "maybe"),
        ("pool", "gpu"),
    ],
)
def test_a_bad_setting_is_refused_naming_handler_and_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"handler 'transcode': {field}: .* will not do"):
        Handler(transcode, options=HandlerOptions(**{field: value}))


def test_good_settings_are_kept_with_their_proper_types() -> None:
    options: dict[str, Any] = {"queue": "media:hd", "retries": 0, "timeout_s": 600, "grace_s": 0, "pool": "process"}
    handler = Handler(plain, options=HandlerOptions(**options, late_success="keep"))
    assert handler.options == HandlerOptions(**{**options, "pool": Pool.PROCESS}, late_success="keep")
    assert handler.pool is Pool.PROCESS
    with pytest.raises(ConfigError, match=r"backoff_max_s: 1\.0 is below backoff_s"):
        Handler(plain, options=HandlerOptions(backoff_s=2.0, backoff_max_s=1.0))


@pytest.mark.parametrize("pool", ["coroutine", "process"])
def test_only_a_thread_can_be_raised_in(pool: str) -> None:
    async def awaits() -> None: ...

    function = awaits if pool == "coroutine" else plain
    with pytest.raises(ConfigError, match=f"raise_in_thread: this one runs in the {pool} pool"):
        Handler(function, options=HandlerOptions(raise_in_thread=True, pool=Pool(pool)))
    assert Handler(plain, options=HandlerOptions(raise_in_thread=True)).pool is Pool.THREAD


# The producer's side


def test_arguments_are_given_by_name_without_defaults() -> None:
    handler = Handler(transcode)
    assert handler.bind(("a",), {}) == ((), {"path": "a"})
    assert handler.bind(("a", "fast"), {}) == ((), {"path": "a", "preset": "fast"})
    assert handler.bind((), {"preset": "fast", "path": "a"}) == ((), {"path": "a", "preset": "fast"})
    assert Handler(bare).bind((), {}) == ((), {})


def test_what_only_a_position_carries_stays_positional() -> None:
    handler = Handler(mixed)
    assert handler.bind((1, 2), {"c": 4, "z": 5}) == ((1,), {"b": 2, "c": 4, "z": 5})
    assert handler.bind((1, 2, 3, 4), {"a": 9}) == ((1, 2, 3, 4), {"a": 9})


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, "missing a required argument: 'path'"),
        (("a", "b", "c"), {}, "too many positional arguments"),
        (("a",), {"speed": 3}, "got an unexpected keyword argument 'speed'"),
        ((), {"path": "a", "speed": 3}, "got an unexpected keyword argument 'speed'"),
        (("a",), {"path": "b"}, "multiple values for argument 'path'"),
        ((), {"preset": "fast"}, "missing a required argument: 'path'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_on_both_sides(args: Any, kwargs: Any, words: str) -> None:
    handler = Handler(transcode)
    heading = "transcode(path: str, preset: str = 'slow') -> str: "
    with pytest.raises(BadArguments) as caught:
        handler.bind(args, kwargs)
    assert str(caught.value) == heading + words
    with pytest.raises(BadArguments) as caught:
        raw(handler, *args, **kwargs)
    assert str(caught.value) == heading + words


@given(st.lists(st.integers(), max_size=5), st.dictionaries(st.sampled_from("abcdz"), st.integers(), max_size=4))
def test_binding_accepts_what_python_accepts_and_means_the_same(args: list[int], kwargs: dict[str, int]) -> None:
    def f1(a: int, b: int = 2) -> Any:
        return a, b

    def f2(a: int, /, b: int, *rest: int, c: int = 3, **others: int) -> Any:
        return a, b, rest, c, others

    def f3(a: int, *, c: int, d: int = 4) -> Any:
        return a, c, d

    def f4(a: int = 1, /, *rest: int) -> Any:
        return a, rest

    def f5(a: int, b: int = 2, **others: int) -> Any:
        return a, b, others

    for function in (f1, f2, f3, f4, f5):
        handler = Handler(function)
        try:
            expected = function(*args, **kwargs)
        except TypeError:
            with pytest.raises(BadArguments):
                handler.bind(tuple(args), kwargs)
            continue
        positional, named = handler.bind(tuple(args), kwargs)
        assert function(*positional, **named) == expected
        if all(abs(n) < 2**63 for n in (*args, *kwargs.values())):
            for positional_, named_ in (sent(handler, *args, **kwargs), raw(handler, *args, **kwargs)):
                assert function(*positional_, **named_) == expected


# The worker's side


def test_a_producer_without_the_code_may_give_arguments_as_it_likes() -> None:
    handler = Handler(transcode)
    assert raw(handler, "a.mp4", preset="fast") == ([], {"path": "a.mp4", "preset": "fast"})
    assert raw(handler, "a.mp4", "fast") == ([], {"path": "a.mp4", "preset": "fast"})
    assert raw(handler, preset="fast", path="a.mp4") == ([], {"path": "a.mp4", "preset": "fast"})


def test_a_call_without_arguments_costs_no_new_objects() -> None:
    handler = Handler(bare)
    assert handler.unbind(EMPTY_PAYLOAD) == ([], {})
    assert handler.unbind(EMPTY_PAYLOAD) is handler.unbind(EMPTY_PAYLOAD)
    with pytest.raises(BadArguments, match="missing a required argument: 'path'"):
        Handler(transcode).unbind(EMPTY_PAYLOAD)


WRITTEN: dict[str, tuple[Any, Any]] = {
    "when": ("2024-01-02T03:04:05", dt.datetime(2024, 1, 2, 3, 4, 5)),  # noqa: DTZ001
    "point": ({"x": 1}, Point(1)),
    "size": ({"w": 1, "h": 2}, Size(1, 2)),
    "preset": ("fast", Preset.FAST),
    "mode": ("b", "b"),
    "tags": (["a", "a"], {"a"}),
    "count": (2, 2),
    "odd": ({"any": 1}, {"any": 1}),
    "odds": ([1, "x"], [1, "x"]),
    "either": ([1], [1]),
    "missing": ("as it is", "as it is"),
    "bare": ({"a": [None]}, {"a": [None]}),
}


@given(st.sets(st.sampled_from(sorted(WRITTEN))))
def test_values_are_read_as_they_are_annotated_however_they_were_given(names: set[str]) -> None:
    handler = Handler(rich)
    assert handler._reader is not None
    expected = {"path": Path("a"), **{name: WRITTEN[name][1] for name in names}}
    named = {name: WRITTEN[name][0] for name in names}
    assert raw(handler, path="a", **named) == ([], expected)
    assert raw(handler, "a", **named) == ([], expected)
    assert sent(handler, "a", **named) == ([], expected)
    assert handler._unbind_one_by_one(encode_payload((), {"path": "a", **named}, LIMIT)) == ([], expected)


def test_positional_only_surplus_and_free_names_are_read_by_their_annotation() -> None:
    def join(first: Path, /, *rest: Path, **named: Preset) -> None: ...

    handler = Handler(join)
    assert raw(handler, "a", "b", "c", x="fast") == ([Path("a"), Path("b"), Path("c")], {"x": Preset.FAST})
    with pytest.raises(BadArguments, match=r"argument '\*rest' takes pathlib.Path and 3 was found"):
        raw(handler, "a", 3)
    with pytest.raises(BadArguments, match=r"argument 'y' takes .*Preset and 'quick' was found"):
        raw(handler, "a", y="quick")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("count", "2", "Annotated[int, msgspec.Meta(ge=1)] and '2' was found: Expected `int`, got `str`"),
        ("count", 0, "Expected `int` >= 1"),
        ("path", 3, "takes pathlib.Path and 3 was found"),
        ("point", {"x": "1"}, "Expected `int`, got `str` - at `$.x`"),
        ("size", {"w": 13, "h": 1}, "'thirteen'"),
        ("preset", "quick", "Invalid enum value 'quick'"),
        ("mode", "c", "Invalid enum value 'c'"),
        ("tags", "abc", "and 'abc' was found"),
        ("when", "yesterday", "Invalid RFC3339"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_type_and_itself(name: str, value: Any, words: str) -> None:
    with pytest.raises(BadArguments) as caught:
        raw(Handler(rich), **{"path": "a", name: value})
    assert f"rich: argument {name!r} takes " in str(caught.value)
    assert words in str(caught.value)


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(BadArguments) as caught:
        raw(Handler(plain), "x" * 100_000)
    assert len(str(caught.value)) < 250


def test_one_annotation_that_cannot_be_resolved_does_not_spoil_the_others() -> None:
    handler = Handler(rich)
    assert handler._types["missing"] is Any
    assert handler._types["odd"] is Any
    assert handler._types["path"] is Path


def test_annotations_are_resolved_at_the_first_job_and_not_before() -> None:
    scope: dict[str, Any] = {"__name__": "late"}
    exec("def late(p: 'Late') -> 'Late': ...", scope)
    handler = Handler(scope["late"])
    scope["Late"] = Point
    assert raw(handler, {"x": 1}) == ([], {"p": Point(1)})
    assert handler.result_type is Point


def test_the_result_type_is_the_annotation_or_any() -> None:
    assert Handler(transcode).result_type is str
    assert Handler(bare).result_type is type(None)
    assert Handler(lambda: 1, kind="x").result_type is Any


def test_a_payload_that_is_none_is_no_matter_of_arguments() -> None:
    for data in (b"", b"\x02\x92\x90\x80", b"\x01\x92\x90\x81\xa1a", b"\x01\x92\x90\x81\x01\x02", b"junk"):
        with pytest.raises(BadPayload):
            Handler(transcode).unbind(data)
    deep = b"\x01\x92\x90\x81\xa4path" + b"\x91" * 200 + b"\x01"
    with pytest.raises(BadPayload, match="deeper"):
        Handler(lambda path: None, kind="x").unbind(deep)


@given(st.binary(max_size=60))
def test_garbage_is_refused_and_nothing_else_happens(data: bytes) -> None:
    for handler in (Handler(transcode), Handler(rich), Handler(mixed), Handler(bare)):
        for payload in (data, b"\x01\x92\x90" + data, b"\x01\x92\x90\x81\xa4path" + data):
            with contextlib.suppress(BadArguments, BadPayload):
                handler.unbind(payload)


# All handlers


def test_a_kind_declared_twice_names_both_functions() -> None:
    handlers = Handlers()
    first = handlers.add(Handler(transcode))
    with pytest.raises(ConfigError) as caught:
        handlers.add(Handler(plain, kind="transcode"))
    assert "test_handlers.transcode (line" in str(caught.value)
    assert "test_handlers.plain (line" in str(caught.value)
    assert handlers.get("transcode") is first
    assert len(handlers) == 1


def test_the_registry_knows_kinds_and_queues() -> None:
    handlers = Handlers()
    assert (handlers.queues(), handlers.of_queue("default")) == ({"default"}, [])
    first = handlers.add(Handler(transcode, options=HandlerOptions(queue="media")))
    second = handlers.add(Handler(plain, options=HandlerOptions(queue="media", pool=Pool.PROCESS)))
    third = handlers.add(Handler(bare))
    assert handlers.kinds() == ["bare", "plain", "transcode"]
    assert handlers.queues() == {"default", "media"}
    assert handlers.of_queue("media") == [first, second]
    assert handlers.of_queue("default") == [third]
    assert handlers.of_queue("other") == []
    assert handlers.get("trancsode") is None
    assert handlers.near("trancsode") == ["transcode"]
    assert handlers.near("zzz") == []
