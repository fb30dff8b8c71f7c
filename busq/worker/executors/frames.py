"""
What a worker and a child of it say to each other: frames, each a length and one MessagePack array.

    worker ── work ──────> child     Hello once, then Run after Run; the child's main thread reads it when it is idle
    worker ── control ───> child     Trip, Saved, Born: heard by a thread of its own while a handler runs
    worker <── work ────── child     Ready or Refused once; Progress, Save, Spawn, Observed;
                                     then one of Done, Failed, Unfit for each Run

A Run says what to do; whether it may begin is said at the door (`door.py`), and a Run that was taken back there is
passed over. Nothing is ever unpickled. `observed` is what the handler had learned of at its end: the worker
may have heard of more meanwhile. `run` counts the runs of one child: what is said about an earlier one is not
taken for the one that is going on. Two sockets, because a job that ends at once must not cost the child a change of
threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from busq.protocol.cancel import Cause, TripFacts
from busq.protocol.codec import ErrorInfo
from busq.store.forms import NewJob

_PREFIX = 4
READ_BYTES = 32 * 1024  # at once, at most; much more than that costs more to allocate than to read


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """Each has its tag in front."""


class Address(msgspec.Struct, frozen=True, array_like=True):
    """Where a handler is found: a name in a module."""

    kind: str
    module: str
    name: str


class Hello(Frame, frozen=True, tag=0):
    """
    `main_name` or `main_path`: the program that the worker runs in, when a handler stands in it.

    `setup`: module:function.
    """

    handlers: list[Address]
    main_name: str
    main_path: str
    setup: str
    result_bytes: int
    traceback_bytes: int
    most_bytes: int


class Run(Frame, frozen=True, tag=1):
    run: int
    kind: str
    jid: str
    attempt: int
    payload: bytes
    saved: bytes


class Trip(Frame, frozen=True, tag=2):
    run: int
    facts: TripFacts


class Saved(Frame, frozen=True, tag=3):
    """`lost`: nothing was kept, and why."""

    number: int
    lost: str = ""


class Ready(Frame, frozen=True, tag=4):
    """The child has found all its handlers."""


class Refused(Frame, frozen=True, tag=5):
    """It has not, and ends."""

    message: str
    traceback: str


class Progress(Frame, frozen=True, tag=6):
    run: int
    fraction: str
    words: str


class Save(Frame, frozen=True, tag=7):
    run: int
    number: int
    data: bytes


class Done(Frame, frozen=True, tag=8):
    """`took_us`: for how long the run has kept the child busy, here and in the two below."""

    run: int
    took_us: int
    observed: Cause | None
    result: bytes


class Failed(Frame, frozen=True, tag=9):
    """The handler raised. `cancellation`: what it raised says "I was cancelled"."""

    run: int
    took_us: int
    observed: Cause | None
    cancellation: bool
    error: ErrorInfo


class Unfit(Frame, frozen=True, tag=10):
    """What goes in or comes out cannot be read or written, and another attempt would fare alike."""

    run: int
    took_us: int
    observed: Cause | None
    cause: str
    error: ErrorInfo


class Born(Frame, frozen=True, tag=11):
    """What became of a child that was asked for: a word and its detail, see `Hands.spawn`."""

    number: int
    word: str
    detail: str


class Spawn(Frame, frozen=True, tag=12):
    """A child that the handler asks for."""

    run: int
    number: int
    job: NewJob


class Observed(Frame, frozen=True, tag=13):
    """The handler has learned of its trip. Said at once: a handler that is killed later says nothing more."""

    run: int
    cause: Cause


ToChild = Hello | Run | Trip | Saved | Born
FromRun = Progress | Save | Spawn | Observed | Done | Failed | Unfit
FromChild = Ready | Refused | FromRun

_encode = msgspec.msgpack.Encoder().encode
_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


class BrokenFrames(Exception):
    """What came is no frame, or one over the limit: the other side cannot be talked to any more."""


def packed(frame: Frame) -> bytes:
    body = _encode(frame)
    return len(body).to_bytes(_PREFIX, "big") + body


class _Inbox:
    """Bytes as they come in, frames as they are complete. `most_bytes` is the limit of one frame."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._rest = bytearray()

    def bodies(self, data: bytes) -> Iterator[bytes]:
        """Whatever is complete now. Read it to its end."""
        rest = self._rest
        if rest:
            rest += data
        buffer = rest or data  # mostly there is no rest, and nothing is copied twice
        at, end = 0, len(buffer)
        while end - at >= _PREFIX:
            size = int.from_bytes(buffer[at : at + _PREFIX], "big")
            if size > self.most_bytes:
                raise BrokenFrames(f"a frame of {size:,} bytes; the limit is {self.most_bytes:,}")
            if end - at < _PREFIX + size:
                break
            yield bytes(buffer[at + _PREFIX : at + _PREFIX + size])
            at += _PREFIX + size
        if rest:
            del rest[:at]
        else:
            rest += data[at:]


class WorkersInbox(_Inbox):
    """What a worker hears of one child."""

    def frames(self, data: bytes) -> Iterator[FromChild]:
        for body in self.bodies(data):
            try:
                yield _from_child.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise BrokenFrames(f"no frame: {error}") from error


class ChildsInbox(_Inbox):
    """What a child hears of its worker."""

    def frames(self, data: bytes) -> Iterator[ToChild]:
        for body in self.bodies(data):
            yield _to_child.decode(body)
