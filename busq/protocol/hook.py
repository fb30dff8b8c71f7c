"""
The clean-up after a cancelled job, which is a job of its own.

The script that makes a job `cancelled` admits it: kind `<kind>/on_cancel`, in queue `<queue>/on_cancel`. A '/' stands
in no kind or queue that a user names, so whatever cancels those by name never reaches a clean-up.

What the handler's hook is told travels from the record to the executor as `CleanUp`: the job's own payload inside, as
it was sent, for only the handler's signature can read it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from busq.errors import BadPayload
from busq.protocol.cancel import Cause, Ended
from busq.protocol.codec import reason_of

_MARK = "/on_cancel"


class Occasion(StrEnum):
    """After which cancelled jobs a kind's hook runs: all of them, or only those that had an attempt."""

    ALWAYS = "always"
    ATTEMPTED = "attempted"


class CancelledJob(msgspec.Struct, frozen=True, kw_only=True):
    """
    What an `on_cancel` hook is told of the job that it cleans up after.

    `args` are the handler's parameters by name, defaults included. `ended` says how the execution ended: with
    `abandoned`, code of the handler may still be running; `attempt` counts the runs, 0 when it never started.
    `saved` is what the handler kept with `job.save(...)`; what an earlier try of the hook itself saved takes its place.
    """

    jid: str
    kind: str
    args: dict[str, Any]
    cause: Cause
    reason: str
    source: str
    ended: Ended
    saved: Any
    attempt: int


class CleanUp(msgspec.Struct, frozen=True, array_like=True):
    """The same as it travels, with `payload` and `saved` as they stand in the record."""

    payload: bytes
    jid: str
    attempt: int
    cause: Cause
    reason: str
    source: str
    ended: Ended
    saved: bytes


def hook_kind(kind: str) -> str:
    """The kind of the clean-up after jobs of this kind."""
    return kind + _MARK


def hook_queue(queue: str) -> str:
    """Where clean-ups after jobs of this queue wait. A queue of clean-ups has none of its own."""
    return queue if is_hook(queue) else queue + _MARK


def without_hook(name: str) -> str:
    """The kind or queue whose clean-up, or clean-ups, this one names."""
    return name.removesuffix(_MARK)


def is_hook(name: str) -> bool:
    """Whether this kind is that of a clean-up, or this queue one of clean-ups."""
    return name.endswith(_MARK)


_decoder = msgspec.msgpack.Decoder(CleanUp)


def write_clean_up(*facts: Any) -> bytes:
    """The facts of a `CleanUp`, in its order, as bytes for an executor. Nothing is checked."""
    return msgspec.msgpack.encode(facts)


def read_clean_up(data: bytes) -> CleanUp:
    """Raise `BadPayload` for anything else than what `write_clean_up` gives of sound facts."""
    try:
        return _decoder.decode(data)
    except Exception as error:
        raise BadPayload(f"not the facts of a cancelled job: {reason_of(error)}") from error
