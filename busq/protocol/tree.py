"""
Trees of jobs: what a parent's children are told when it is cancelled, and the `finalize` that runs after them all.

A parent is not over when its handler has returned, but when its children are. The script that ends the last of them
admits one more job, of kind `<kind>/finalize`, in the parent's own queue: the parent ends as that one does. A '/'
stands in no kind that a user names, so nobody enqueues or cancels one of these by its kind.

What the finalizer is told travels from the records to the executor as `Finished`: the parent's payload inside, as it
was sent, for only the handler's signature can read it.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

import msgspec

from busq.errors import BadPayload
from busq.protocol.codec import reason_of
from busq.protocol.hook import is_hook

_MARK = "/finalize"

DEEPEST: Final = 100
"""So many generations may stand under a root: who goes through a tree must come to its end."""

OnParentCancel = Literal["cancel", "wait", "abandon"]
"""
What a child does when its parent is cancelled: it is cancelled too; it goes on and the parent waits for it; it goes on
and nobody waits.
"""

ON_PARENT_CANCEL: Final[tuple[str, ...]] = get_args(OnParentCancel)


class FinishedJob(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a finalizer is told of its job, whose handler returned and whose children have all ended, none cancelled.

    `args` are the handler's parameters by name, defaults included; `result` is what it returned, as its annotation
    says. `saved` is what it kept with `job.save(...)`, `attempt` counts its runs. `children` is how many there ever
    were, `failed` how many of them failed; `failed_children` names the first 100 of those.
    """

    jid: str
    kind: str
    args: dict[str, Any]
    result: Any
    saved: Any
    attempt: int
    children: int
    failed: int
    failed_children: tuple[str, ...]


class Finished(msgspec.Struct, frozen=True, array_like=True):
    """The same as it travels, with `payload`, `result` and `saved` as they stand in the record."""

    payload: bytes
    jid: str
    attempt: int
    children: int
    failed: int
    failed_children: tuple[str, ...]
    result: bytes
    saved: bytes


def finalizer_kind(kind: str) -> str:
    """The kind of the job that finalizes jobs of this kind."""
    return kind + _MARK


def without_finalizer(kind: str) -> str:
    """The kind whose jobs are finalized by this one."""
    return kind.removesuffix(_MARK)


def is_finalizer(kind: str) -> bool:
    """Whether jobs of this kind finalize others."""
    return kind.endswith(_MARK)


def is_attendant(kind: str) -> bool:
    """Whether jobs of this kind are about other jobs, and made by busq alone: clean-ups and finalizers."""
    return is_hook(kind) or is_finalizer(kind)


_decoder = msgspec.msgpack.Decoder(Finished)


def write_finished(*facts: Any) -> bytes:
    """The facts of a `Finished`, in its order, as bytes for an executor. Nothing is checked."""
    return msgspec.msgpack.encode(facts)


def read_finished(data: bytes) -> Finished:
    """Raise `BadPayload` for anything else than what `write_finished` gives of sound facts."""
    try:
        return _decoder.decode(data)
    except Exception as error:
        raise BadPayload(f"not the facts of a job whose children have ended: {reason_of(error)}") from error
