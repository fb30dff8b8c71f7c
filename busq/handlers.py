"""
Handlers: kind -> the user's function, with its settings and the gate that its arguments pass through.

A producer that has the handler's code sends arguments by name (`bind`); one that has not sends them as they were
written. The worker takes both (`unbind`), checks them against the signature and reads each value as the parameter
is annotated, strictly. Annotations are read late, at the first job: they may name what was not yet defined where the
handler was declared. One that cannot be resolved, or that msgspec cannot read, lets the value pass as it is.
"""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union

import msgspec
from msgspec import UNSET, Meta, UnsetType

from busq.callables import Pool, innermost, kind_of, pool_of, refuse_unfit, signature_of
from busq.errors import BadArguments, ConfigError
from busq.protocol.codec import (
    EMPTY_PAYLOAD,
    NAMED_ONLY,
    decode_payload,
    fit,
    may_be_deep,
    read_odd,
    readable,
    reason_of,
)
from busq.protocol.hook import is_hook, without_hook
from busq.protocol.jids import flaw_of
from busq.protocol.tree import is_attendant

if TYPE_CHECKING:
    from busq.finalizers import Finalizer
    from busq.hooks import Hook

DEFAULT_QUEUE = "default"

_QUEUE = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")
_EMPTY = inspect.Parameter.empty

_CALL_WITHOUT_ARGUMENTS: Final[tuple[list[Any], dict[str, Any]]] = ([], {})  # shared: nobody may change it


# Settings of a handler -----------------------------------------------------------------------------------

Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Length = Annotated[float, Meta(ge=0, le=1e9)]
SomeLength = Annotated[float, Meta(gt=0, le=1e9)]


class HandlerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a handler says about its own jobs. None leaves it to the job, then to the worker's settings."""

    queue: str | None = None
    retries: Count | None = None
    timeout_s: SomeLength | None = None
    grace_s: Length | None = None
    backoff_s: SomeLength | None = None
    backoff_max_s: SomeLength | None = None
    max_losses: Count | None = None
    expires_s: SomeLength | None = None
    deadline_s: SomeLength | None = None
    late_success: Literal["cancel", "keep"] = "cancel"
    pool: Pool | None = None
    """Left out: coroutine for `async def`, thread for `def`."""
    raise_in_thread: bool = False
    """Force raises `Cancelled` in the thread; see `busq/worker/executors/raising.py` for how little that promises."""

    def checked(self, kind: str) -> HandlerOptions:
        """The same options with every value of its proper type. Raise `ConfigError` naming handler and field."""
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(self):
            given = getattr(self, field.name)
            try:
                values[field.name] = msgspec.convert(given, field.type)
            except ValueError as error:
                raise ConfigError(f"handler {kind!r}: {field.name}: {given!r} will not do: {error}") from None
        if self.queue is not None:
            check_queue(self.queue, f"handler {kind!r}: queue")
        if self.backoff_s and self.backoff_max_s and self.backoff_max_s < self.backoff_s:
            raise ConfigError(
                f"handler {kind!r}: backoff_max_s: {self.backoff_max_s} is below backoff_s ({self.backoff_s})"
            )
        return HandlerOptions(**values)


def check_queue(queue: str, what: str) -> str:
    """Give a queue's name back when it is well formed; raise `ConfigError` that says so when it is not."""
    if not _QUEUE.match(queue):
        raise ConfigError(
            f"{what}: {queue!r:.160} will not do: a queue's name takes 1 to 64 characters of A-Z a-z 0-9 - _ . :"
        )
    return queue


def check_kind(kind: str) -> str:
    """Give the kind back when it is well formed; raise `ConfigError` that says what is wrong with it."""
    if flaw := flaw_of(kind):
        raise ConfigError(f"a kind {flaw}")
    return kind


# One handler ---------------------------------------------------------------------------------------------


class Handler:
    """
    One kind of job: the function, where it runs, its settings.

    The kind is the function's name unless another is given. Any parameters will do, `*args`, `**kwargs` and
    positional-only ones included; what is refused is what cannot be run as one job: generators, classes, coroutine
    functions in a thread or process.
    """

    kind: Final[str]
    function: Final[Callable[..., Any]]
    options: Final[HandlerOptions]
    pool: Final[Pool]
    signature: Final[inspect.Signature]
    hook: Hook | None = None
    finalizer: Finalizer | None = None

    def __init__(
        self, function: Callable[..., Any], *, kind: str | None = None, options: HandlerOptions | None = None
    ) -> None:
        if isinstance(function, staticmethod):
            function = function.__func__
        self.function = function
        refuse_unfit(function)
        self.kind = self._check_kind(kind_of(function) if kind is None else kind)
        self.options = (options or HandlerOptions()).checked(self.kind)
        self.pool = pool_of(self.kind, function, self.options.pool)
        if self.options.raise_in_thread and self.pool is not Pool.THREAD:
            raise ConfigError(
                f"handler {self.kind!r}: raise_in_thread: this one runs in the {self.pool} pool, where force has "
                "better means; leave it out"
            )
        self.signature = signature_of(self.kind, function)
        parameters = self.signature.parameters.values()
        self._by_position = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
        self._required = {p.name for p in parameters if p.default is _EMPTY and p.kind not in _VARIABLE}
        self._names = {p.name for p in parameters if p.kind in _NAMED}
        self._all_named = len(self._names) == len(parameters)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.kind} ({self.pool}): {self.where}>"

    @staticmethod
    def _check_kind(kind: str) -> str:
        return check_kind(kind)

    @property
    def where(self) -> str:
        """The function's module, name and line, for messages."""
        inner = innermost(self.function)
        code = getattr(inner, "__code__", None)
        line = f" (line {code.co_firstlineno})" if code else ""
        name = getattr(inner, "__qualname__", type(inner).__qualname__)
        return f"{getattr(inner, '__module__', '?')}.{name}{line}"

    # Producer's side

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """
        Check arguments against the signature and give them by name wherever a name will do.

        What only a position can carry stays positional. Defaults are not filled in: they are the worker's. Raise
        `BadArguments` that says what does not fit.
        """
        if not args and not kwargs and not self._required:
            return (), {}
        if self._all_named and len(args) <= len(self._by_position):
            named = dict(zip(self._by_position, args, strict=False))
            clash = kwargs and not named.keys().isdisjoint(kwargs)
            named.update(kwargs)
            if not clash and self._required <= named.keys() <= self._names:
                return (), named
        return self._bind_by_python(args, kwargs)

    def _bind_by_python(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BadArguments(f"{self._heading()}: {error}") from None
        positional: list[Any] = []
        named: dict[str, Any] = {}
        # With surplus positions filled, those before them cannot be given by name.
        surplus = any(self.signature.parameters[n].kind is _SURPLUS and bound.arguments[n] for n in bound.arguments)
        for name, value in bound.arguments.items():
            match self.signature.parameters[name].kind:
                case inspect.Parameter.POSITIONAL_ONLY:
                    positional.append(value)
                case inspect.Parameter.POSITIONAL_OR_KEYWORD if surplus:
                    positional.append(value)
                case inspect.Parameter.VAR_POSITIONAL:
                    positional.extend(value)
                case inspect.Parameter.VAR_KEYWORD:
                    named.update(value)
                case _:
                    named[name] = value
        return tuple(positional), named

    def _heading(self) -> str:
        text = f"{self.kind}{_unquoted(self.signature)}"
        return text if len(text) <= 300 else text[:297] + "..."

    # Worker's side

    def unbind(self, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
        """
        The arguments of a payload, fit to call the function with. The caller must not change what it gets.

        Raise `BadPayload` for bytes that are no payload; `BadArguments` that names the parameter, what it wants and
        what was found.
        """
        if payload == EMPTY_PAYLOAD and not self._required:
            return _CALL_WITHOUT_ARGUMENTS
        reader = self._reader
        if reader is not None and payload.startswith(NAMED_ONLY) and not may_be_deep(payload):
            try:
                return [], reader(payload[3:])
            except Exception:  # whatever it is, the long way finds it again and can say which argument it was
                return self._unbind_one_by_one(payload)
        return self._unbind_one_by_one(payload)

    def _unbind_one_by_one(self, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
        raw_positional, raw_named = decode_payload(payload)
        positional, named = self.bind(tuple(raw_positional), raw_named)
        slots = zip(self._positions(), positional, strict=False)
        return (
            [self._read(name, wanted, value) for (name, wanted), value in slots],
            {name: self._read(name, self._wanted_by_name(name), value) for name, value in named.items()},
        )

    def _read(self, name: str, wanted: Any, value: Any) -> Any:
        try:
            return fit(value, wanted)
        except Exception as error:
            found = repr(value)
            found = found if len(found) <= 80 else found[:77] + "..."
            raise BadArguments(
                f"{self.kind}: argument {name!r} takes {inspect.formatannotation(wanted)} and {found} was found: "
                f"{reason_of(error)}"
            ) from error

    # Types

    @cached_property
    def result_type(self) -> Any:
        """The annotated type of what the function returns; Any where there is none or it cannot be resolved."""
        return self._resolved("return", self.signature.return_annotation)

    @cached_property
    def _types(self) -> dict[str, Any]:
        parameters = self.signature.parameters.values()
        return {p.name: readable(self._resolved(p.name, p.annotation)) for p in parameters}

    def _resolved(self, name: str, annotation: Any) -> Any:
        if annotation is _EMPTY:
            return Any
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        scope = getattr(innermost(self.function), "__globals__", {})
        try:
            return typing.get_type_hints(holder, scope, include_extras=True)[name]
        except Exception:  # a name that only type checkers import, say
            return Any

    def _positions(self) -> Iterator[tuple[str, Any]]:
        """Name and type for each position, without end when there is `*args`."""
        for parameter in self.signature.parameters.values():
            if parameter.kind in _POSITIONAL:
                yield parameter.name, self._types[parameter.name]
            while parameter.kind is _SURPLUS:
                yield f"*{parameter.name}", self._types[parameter.name]

    def _wanted_by_name(self, name: str) -> Any:
        if name in self._names:
            return self._types[name]
        return self._types[next(p.name for p in self.signature.parameters.values() if p.kind is p.VAR_KEYWORD)]

    @cached_property
    def _reader(self) -> Callable[[bytes], dict[str, Any]] | None:
        """Reads a whole map of named arguments in one step; None when the signature is no fixed set of names."""
        if not self._all_named or any(name.startswith("__") for name in self._names):
            return None
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        for name, wanted in self._types.items():
            optional = (name, Union[wanted, UnsetType], UNSET)  # noqa: UP007 - `None | ...` needs real types
            fields.append((name, wanted) if name in self._required else optional)
        try:
            arguments = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
            decode = msgspec.msgpack.Decoder(arguments, dec_hook=read_odd).decode
        except Exception:  # a name or a union that msgspec will not have in a Struct: go one by one
            return None
        as_dict = msgspec.structs.asdict
        if self._required == self._names:
            return lambda data: as_dict(decode(data))
        return lambda data: {k: v for k, v in as_dict(decode(data)).items() if v is not UNSET}


_SURPLUS = inspect.Parameter.VAR_POSITIONAL
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class _Bare(str):
    __repr__ = str.__str__


def _unquoted(signature: inspect.Signature) -> inspect.Signature:
    """The signature as its author wrote it: annotations that are kept as text show without quotes."""

    def bare(annotation: Any) -> Any:
        return _Bare(annotation) if isinstance(annotation, str) else annotation

    parameters = [p.replace(annotation=bare(p.annotation)) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=bare(signature.return_annotation))


# All handlers --------------------------------------------------------------------------------------------


class Handlers:
    """The handlers of one application, by kind."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Handler] = {}

    def __len__(self) -> int:
        return len(self._by_kind)

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._by_kind.values())

    def add(self, handler: Handler) -> Handler:
        """Take a handler in. Raise `ConfigError` when its kind is taken."""
        first = self._by_kind.get(handler.kind)
        if first is not None:
            raise ConfigError(
                f"kind {handler.kind!r} is declared twice, by {first.where} and by {handler.where}; give one of them "
                "another with kind="
            )
        self._by_kind[handler.kind] = handler
        return handler

    def get(self, kind: str) -> Handler | None:
        return self._by_kind.get(kind)

    def near(self, kind: str) -> list[str]:
        """Up to three kinds that read much like this one, the nearest first."""
        return difflib.get_close_matches(kind, self.kinds(), n=3, cutoff=0.6)

    def kinds(self) -> list[str]:
        """Every kind that may be enqueued: those of hooks and finalizers are not among them."""
        return sorted(kind for kind in self._by_kind if not is_attendant(kind))

    @property
    def have_hooks(self) -> bool:
        return any(handler.hook is not None for handler in self)

    def queues(self) -> set[str]:
        """Every queue that a handler names, and `default`."""
        return {DEFAULT_QUEUE, *map(_queue_of, self)}

    def of_queue(self, queue: str) -> list[Handler]:
        """
        The handlers whose jobs come from this queue unless told otherwise, and the finalizers of those jobs.

        Of a queue of hooks: the hooks of those handlers, and with none among them, all hooks.
        """
        if not is_hook(queue):
            own = [h for h in self if _queue_of(h) == queue and not is_attendant(h.kind)]
            return own + [h.finalizer for h in own if h.finalizer is not None]
        hooked = [handler for handler in self if handler.hook is not None]
        chosen = [handler for handler in hooked if _queue_of(handler) == without_hook(queue)] or hooked
        return [handler.hook for handler in chosen if handler.hook is not None]


def _queue_of(handler: Handler) -> str:
    return handler.options.queue or DEFAULT_QUEUE
