"""
Settings: read once, checked at once, then frozen.

Each field can be given in Python (`Bus(url, beat_s=2)`) or in the environment (`BUSQ_BEAT_S=2`); Python wins. A
bad value stops the program at the start, with the field's name, what was given and what would do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta

from busq.errors import ConfigError
from busq.redaction import hide

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=16)]

ENVIRONMENT_PREFIX = "BUSQ_"
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Everything that can be set. Lengths of time end in `_s` and are seconds; sizes end in `_bytes`.

    The defaults are those of the contract's table; `url` has none on purpose.
    """

    url: str | None = None
    namespace: str = "busq"
    shards: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """How many shards the bus has. Left out: what the bus says in Redis, and 1 for a new bus."""

    host: str | None = None
    """What this pod or machine is called on the roster. Left out: what the system calls it."""

    # Cancels
    beat_s: Positive = 1.0
    grace_s: NotNegative = 5.0
    force_s: NotNegative = 1.0
    lease_s: Positive = 15.0
    watchdog_interval_s: Positive = 0.5

    # Failures
    backoff_s: Positive = 1.0
    backoff_max_s: Positive = 300.0
    max_losses: Annotated[int, Meta(ge=0)] = 5

    # Hooks
    hook_limit_s: Positive = 10.0

    # Shutdown of a worker
    shutdown_timeout_s: NotNegative = 30.0
    cleanup_s: NotNegative = 3.0
    suspects_limit: Annotated[int, Meta(ge=0)] = 10
    """Abandoned handlers that may run on in one process; past it the worker drains and ends."""

    # Bounds
    keep_succeeded_s: Positive = 3600.0
    keep_ended_s: Positive = 86400.0
    payload_bytes: Bytes = 1024 * 1024
    result_bytes: Bytes = 1024 * 1024
    traceback_bytes: Bytes = 16 * 1024
    queue_limit: Count | None = None
    """Jobs that may wait in a queue; an enqueue beyond that is refused. None: any number."""
    queue_rate: Positive | None = None
    """Jobs a second that may come to one queue; None: any number. At once may come what comes in a second."""
    group_rate: Positive | None = None
    """The same of one group."""
    history_entries: Annotated[int, Meta(ge=10)] = 200
    event_log_entries: Annotated[int, Meta(ge=100)] = 100_000

    # Talking to Redis
    connect_timeout_s: Positive = 2.0
    command_timeout_s: Positive = 3.0
    tls_ca_file: str | None = None
    """PEM file of the authorities whose certificates are believed; left out: those of the system."""
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    """Certificate and key that we show, for servers that want one (PEM files)."""
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    """The login at Sentinels; that in the URL is for the servers that hold the data."""

    # Confirmed writes
    confirm_replicas: Count = 1
    """How many replicas must have taken a write for `durability="replicated"`."""
    confirm_within_s: Positive = 1.0
    """How long a confirmation is waited for, and never longer than four fifths of `command_timeout_s`."""

    def __repr__(self) -> str:
        shown = (f"{name}={hide(repr(getattr(self, name)))}" for name in self.__struct_fields__)
        return f"Settings({', '.join(shown)})"

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Self:
        """
        Settings from the environment and from Python, checked.

        `given` values of None count as not given. Raise `ConfigError` that names the field, what was given and
        what would do.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for field in cls.__struct_fields__:
            text = environ.get(ENVIRONMENT_PREFIX + field.upper())
            if text:
                values[field] = _convert(cls, field, text, ENVIRONMENT_PREFIX + field.upper())
        for field, value in given.items():
            if field not in cls.__struct_fields__:
                raise ConfigError(f"no setting {field!r}; there are: {', '.join(cls.__struct_fields__)}")
            if value is not None:
                values[field] = _convert(cls, field, value, field)
        settings = cls(**values)
        settings._check()
        return settings

    def _check(self) -> None:
        if not _NAMESPACE.match(self.namespace):
            raise ConfigError(
                f"namespace: {self.namespace!r} will not do; it takes 1 to 64 characters of A-Z a-z 0-9 _ . -"
            )
        if self.lease_s < 3 * self.beat_s:
            raise ConfigError(
                f"lease_s: {self.lease_s} is too short for a beat of {self.beat_s} s; a lease must outlast three "
                f"missed beats, so {3 * self.beat_s} or more"
            )
        if self.backoff_max_s < self.backoff_s:
            raise ConfigError(f"backoff_max_s: {self.backoff_max_s} is below backoff_s ({self.backoff_s})")


def _convert(settings: type[Settings], field: str, value: Any, called: str) -> Any:
    wanted = next(f.type for f in msgspec.structs.fields(settings) if f.name == field)
    try:
        return msgspec.convert(value, wanted, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{called}: {hide(repr(value))} will not do: {error}") from None
