"""
What a function is: its name, whether it is awaited, where it can run, what parameters it takes.

Decorators, partials and callable objects are looked through where they tell what is behind them, and refused with
the reason where they do not.
"""

from __future__ import annotations

import inspect
import sys
from enum import StrEnum
from functools import partial
from typing import Any

from busq.errors import ConfigError


class Pool(StrEnum):
    """Where a handler runs."""

    COROUTINE = "coroutine"
    THREAD = "thread"
    PROCESS = "process"


def kind_of(function: Any) -> str:
    name = getattr(_without_partials(function), "__name__", None)
    if not isinstance(name, str) or name == "<lambda>":
        raise ConfigError(f"{function!r} has no name to take the kind from; give it one with kind=")
    return name


def _without_partials(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return function


def _called(function: Any) -> Any:
    """The function that runs when this is called: of an object, its class's `__call__`."""
    function = _without_partials(function)
    plain = inspect.isfunction(function) or inspect.ismethod(function) or inspect.isbuiltin(function)
    return function if plain else type(function).__call__


def innermost(function: Any) -> Any:
    """The function as it was written: behind partials, objects, and decorators that say what they wrap."""
    called = _called(inspect.unwrap(_without_partials(function)))
    return getattr(called, "__func__", called)


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(_called(function))


def refuse_unfit(function: Any) -> None:
    if not callable(function):
        raise ConfigError(f"a handler is a function, and {function!r} cannot be called")
    if isinstance(function, type):
        raise ConfigError(f"a handler is a function, and {function!r} is a class; give a function or a method")
    called = _called(function)
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise ConfigError(
            f"handler {called.__qualname__} is a generator (it has a `yield`), and a job returns once; return a "
            "list, or enqueue a job for each item"
        )


def pool_of(kind: str, function: Any, asked: Pool | None) -> Pool:
    if _is_async(function):
        if asked not in (None, Pool.COROUTINE):
            raise ConfigError(
                f"handler {kind!r}: pool: {asked.value!r} runs `def` functions, and this is an `async def`; leave "
                "pool= out or write it as a `def`"
            )
        return Pool.COROUTINE
    # A plain wrapper around an `async def` may hand the coroutine out or run it itself; only its author knows.
    hidden = inspect.iscoroutinefunction(innermost(function))
    if hidden and asked is None:
        raise ConfigError(
            f"handler {kind!r}: a decorator that is a plain `def` hides an `async def`. Make the decorator's wrapper "
            "an `async def`, or say what calling it does: pool='coroutine' when it returns an awaitable, "
            "pool='thread' when it blocks until the work is done"
        )
    if asked is Pool.COROUTINE and not hidden:
        raise ConfigError(
            f"handler {kind!r}: pool: 'coroutine' runs `async def` functions, and this is a `def`, which would block "
            "every other job of the worker; leave pool= out or write it as an `async def`"
        )
    return asked or Pool.THREAD


def signature_of(kind: str, function: Any) -> inspect.Signature:
    try:
        if sys.version_info >= (3, 14):
            import annotationlib

            return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
        else:
            return inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"handler {kind!r}: {function!r} does not tell its parameters: {error}") from None
