"""
Bytes in and out: payloads, results and errors, as MessagePack with a version in front.

Nothing is ever unpickled, and every way in which bytes from the wire can be wrong comes out as one error,
`BadPayload`: a decoder alone raises half a dozen kinds, and one that slips through stops a worker.

    payload   01 [[positional ...], {name: value ...}]
    result    01 value; no bytes at all for None
    error     01 {type, message, traceback}

Written are the types that msgspec knows (numbers, text, bytes, containers, datetimes, UUID, Decimal, enums,
dataclasses, Structs) and paths, as text. Anything else is refused by name rather than guessed at.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import PurePath
from typing import Any

import msgspec

from busq.errors import BadArguments, BadPayload, BadResult, TooLarge
from busq.redaction import hide

VERSION = 1
SEARCHED = 1_000_000  # characters of an exception's words that secrets are looked for in
EMPTY_PAYLOAD = b"\x01\x92\x90\x80"
"""The payload of a call without arguments."""

NAMED_ONLY = b"\x01\x92\x90"
"""How a payload starts whose arguments are all given by name; the map of names follows, to the end."""

DEEPEST = 64
"""How many containers may stand within one another in one argument or result."""

_FRONT = bytes([VERSION])
_HEADS = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])  # with these bytes a MessagePack array or map begins

_CONTAINERS = frozenset({list, dict, tuple})  # what a decoder makes of them; tuples stand in keys


def _write_odd(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(
        f"busq does not write {type(value).__qualname__}; give numbers, text, bytes, lists, dicts, datetimes, "
        "UUIDs, Decimals, enums, paths, dataclasses or msgspec Structs"
    )


def read_odd(wanted: type, value: Any) -> Any:
    """What msgspec asks for types that it does not know itself: paths come back from text."""
    if issubclass(wanted, PurePath) and isinstance(value, str):
        return wanted(value)
    raise TypeError(f"Expected `{wanted.__qualname__}`, got `{type(value).__name__}`")


_encoder = msgspec.msgpack.Encoder(enc_hook=_write_odd)
_payload = msgspec.msgpack.Decoder(tuple[list[Any], dict[str, Any]])


# Payloads ------------------------------------------------------------------------------------------------


def encode_payload(args: tuple[Any, ...], kwargs: dict[str, Any], limit: int) -> bytes:
    """
    Write a call's arguments.

    Raise `BadArguments` that names the argument which cannot be written, `TooLarge` when there are more than
    `limit` bytes.
    """
    if not args and not kwargs:
        return EMPTY_PAYLOAD
    try:
        data = _FRONT + _encoder.encode((args, kwargs))
        _check_names(kwargs)
        _check_written(data, DEEPEST + 2)
    except Exception as error:
        raise BadArguments(_whats_wrong(args, kwargs) or reason_of(error)) from error
    if len(data) > limit:
        raise TooLarge(_too_large("payload", len(data), limit))
    return data


def decode_payload(data: bytes) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a payload. Raise `BadPayload` for everything else, and nothing else."""
    if data == EMPTY_PAYLOAD:
        return [], {}
    body = _behind_version(data, "payload")
    try:
        positional, named = _payload.decode(body)
        _check_depth(data, [positional, named], DEEPEST + 2)
    except Exception as error:
        raise BadPayload(f"not a payload: {reason_of(error)}") from error
    return positional, named


def _whats_wrong(args: tuple[Any, ...], kwargs: dict[Any, Any]) -> str | None:
    named = [(f"positional argument {n}", value) for n, value in enumerate(args)]
    named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
    for called, value in named:
        try:
            _check_written(_FRONT + _encoder.encode(value), DEEPEST)
        except Exception as error:
            return f"{called} cannot be written: {reason_of(error)}"
    return None


def _check_names(kwargs: dict[Any, Any]) -> None:
    for name in kwargs:
        if not isinstance(name, str):
            raise TypeError(f"names of arguments are str, and {name!r} is of type {type(name).__name__}")


# Results -------------------------------------------------------------------------------------------------


def encode_result(value: Any, limit: int) -> bytes:
    """Write what a handler returned. Raise `BadResult` when it cannot be written, `TooLarge` over `limit` bytes."""
    if value is None:
        return b""
    try:
        data = _FRONT + _encoder.encode(value)
        _check_written(data, DEEPEST)
    except Exception as error:
        raise BadResult(f"the result cannot be written: {reason_of(error)}") from error
    if len(data) > limit:
        raise TooLarge(_too_large("result", len(data), limit))
    return data


def decode_result(data: bytes, type: Any = Any) -> Any:
    """
    Read a result, as `type` where msgspec can read that type and as plain values where it cannot.

    Raise `BadPayload` for malformed bytes, `BadResult` for a value that does not fit the type.
    """
    if not data:
        value = None
    else:
        body = _behind_version(data, "result")
        try:
            value = msgspec.msgpack.decode(body)
            _check_depth(data, value, DEEPEST)
        except Exception as error:
            raise BadPayload(f"not a result: {reason_of(error)}") from error
    if type is Any:
        return value
    try:
        return fit(value, readable(type))
    except Exception as error:
        raise BadResult(f"the result does not fit {type!r}: {reason_of(error)}") from error


# Types ---------------------------------------------------------------------------------------------------


def readable(annotation: Any) -> Any:
    """The annotation when values can be read as that type; Any, which passes values as they are, when not."""
    try:
        known = _is_readable(annotation)
    except TypeError:  # not hashable, so not to be remembered
        known = _is_readable.__wrapped__(annotation)
    return annotation if known else Any


@lru_cache(maxsize=1024)
def _is_readable(annotation: Any) -> bool:
    # Only a schema walks the whole type, down to the fields of Structs; a decoder finds out when it is too late.
    try:
        msgspec.json.schema(annotation, schema_hook=_schema_of_odd)
        msgspec.msgpack.Decoder(annotation)
    except Exception:  # msgspec's own complaint, or that of a user's class which cannot be looked at
        return False
    return True


def _schema_of_odd(annotation: type) -> dict[str, Any]:
    if issubclass(annotation, PurePath):
        return {"type": "string"}
    raise NotImplementedError(annotation)


def fit(value: Any, wanted: Any) -> Any:
    """A decoded value as the wanted type, strictly: no number is made from text. Raises whatever msgspec raises."""
    return value if wanted is Any else msgspec.convert(value, wanted, dec_hook=read_odd)


# Errors --------------------------------------------------------------------------------------------------


class ErrorInfo(msgspec.Struct, frozen=True):
    """An exception as it is kept with a job: its type, its words, and the traceback where there is one."""

    type: str
    message: str
    traceback: str = ""


_error = msgspec.msgpack.Decoder(ErrorInfo)


def describe_error(exc: BaseException, limit_bytes: int) -> ErrorInfo:
    """
    Put an exception into words: the traceback within `limit_bytes`, type and message within a quarter of it each.

    Never raises, whatever the exception's own methods do: this runs where a job's failure is being recorded.
    """
    quarter = limit_bytes // 4
    return ErrorInfo(
        _within(_words(lambda: _name_of(type(exc))), quarter),
        _within(_without_secrets(_words(lambda: str(exc))), quarter),
        _within(_without_secrets(_words(lambda: "".join(traceback.format_exception(exc)))), limit_bytes),
    )


def _without_secrets(text: str) -> str:
    # Before it is cut to size: half a login does not look like one.
    plain = str.replace(text, "\0", "\\x00")  # a text of str's own, as in `_within`
    return hide(plain if len(plain) <= SEARCHED else _within(plain, SEARCHED))


def _name_of(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _words(say: Callable[[], str]) -> str:
    # A user's `__str__` may raise anything. A bare record of the failure is better than none.
    try:
        return say()
    except BaseException as error:
        return f"<no words: {type(error).__name__} was raised while asking for them>"


def encode_error(error: ErrorInfo) -> bytes:
    return _FRONT + _encoder.encode(error)


def decode_error(data: bytes) -> ErrorInfo:
    """Read an error. Raise `BadPayload` when the bytes are not one."""
    body = _behind_version(data, "error")
    try:
        return _error.decode(body)
    except Exception as error:
        raise BadPayload(f"not an error record: {reason_of(error)}") from error


def _within(text: str, limit: int) -> str:
    """The text in at most `limit` bytes of UTF-8, its middle left out, free of NULs and lone surrogates."""
    # `str.replace` and not `text.replace`: a `__str__` may have returned a subclass with methods of its own.
    data = str.replace(text, "\0", "\\x00").encode("utf-8", "backslashreplace")
    if len(data) <= limit:
        return data.decode()
    mark = f"\n... {len(data)} bytes, the middle left out ...\n".encode() if limit >= 128 else b"..."
    room = limit - len(mark)
    if room < 2:
        return "." * max(limit, 0)
    tail = room // 2
    return (data[: room - tail].decode(errors="ignore")) + mark.decode() + data[-tail:].decode(errors="ignore")


# Shared by all three -------------------------------------------------------------------------------------


def _behind_version(data: bytes, what: str) -> bytes:
    if not data:
        raise BadPayload(f"not a {what}: there are no bytes")
    if data[0] != VERSION:
        raise BadPayload(f"not a {what} for this busq: version {data[0]}, this busq reads {VERSION}")
    return data[1:]


def may_be_deep(data: bytes) -> bool:
    """Whether nesting over the limit is possible at all: every level costs at least one byte that begins one."""
    return len(data) > DEEPEST and len(data) - len(data.translate(None, _HEADS)) > DEEPEST


def _check_written(data: bytes, deepest: int) -> None:
    if may_be_deep(data):
        _check_depth(data, msgspec.msgpack.decode(data[1:]), deepest)


def _check_depth(data: bytes, value: Any, deepest: int) -> None:
    if not may_be_deep(data):
        return
    level = [value]
    for _ in range(deepest):
        level = [inner for outer in level for inner in _contents(outer) if type(inner) in _CONTAINERS]
    if any(type(outer) in _CONTAINERS for outer in level):
        raise RecursionError


def _contents(container: Any) -> Iterable[Any]:
    if type(container) is dict:
        return [*container, *container.values()]
    return container if type(container) in _CONTAINERS else ()


def reason_of(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested deeper than {DEEPEST} levels, or within itself"
    return _words(lambda: str(error)) or type(error).__name__


def _too_large(what: str, size: int, limit: int) -> str:
    return (
        f"the {what} has {size:,} bytes and the limit is {limit:,}; keep the data elsewhere and pass where it is, or "
        f"raise {what}_bytes"
    )
