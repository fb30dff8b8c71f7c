"""
Jids: what one looks like, how new ones are made, and which shard each one lives in.

A jid alone finds its shard. For most jids the place is a checksum of the text; a jid that busq makes for a child
carries the place of its root instead, as four hex digits after a point, so that a whole tree of jobs shares a
shard whatever the number of shards is.

    0190b6a1c5d27e3f8a0c4d5e6f708192            made by busq: a UUIDv7, so that jids sort by the time they were made
    0190b6a1c5d27e3f8a0c4d5e6f708192.3fa1       made by busq for a child; 3fa1 is the place of its root
    0190b6a1c5d200000000000000000007.0003       made by a script for a clean-up: ms, a count, the number of its shard
    0190b6a1c5d27e3f8a0c4d5e6f708192.c850       made by busq for a key: all jobs of one key share a shard
    order-17                                    chosen by a caller
"""

from __future__ import annotations

import binascii
import os
import re
import threading
import time
from typing import Any

from busq.errors import BadJid, UsageError

PLACES = 1 << 16
"""Places are 0 to 65535."""

LONGEST = 128
"""A jid has 1 to 128 characters."""

LONGEST_KEY = 200
"""A key has 1 to 200 printable characters."""

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}\Z")
_ODD = re.compile(r"[^A-Za-z0-9_.:-]")
_CHILD = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{4}\Z")
_CHILD_LENGTH = 37


def check_jid(jid: str) -> str:
    """Give the jid back when it is well formed; raise `BadJid` that says what is wrong with it."""
    given: Any = jid
    if isinstance(given, str) and _NAME.match(given):
        return given
    raise BadJid(f"a jid {flaw_of(jid)}")


def flaw_of(name: Any) -> str | None:
    """Say what keeps `name` from being 1 to 128 characters of `A-Z a-z 0-9 - _ . :`; None when nothing does."""
    wanted = f"takes 1 to {LONGEST} characters of A-Z a-z 0-9 - _ . :"
    if not isinstance(name, str):
        return f"is a str, and {_shortened(name)} is of type {type(name).__name__}"
    if not name:
        return f"{wanted}, and this one is empty"
    if odd := _ODD.search(name):
        return f"{wanted}, and {_shortened(name)} has {odd.group()!r} at position {odd.start()} (counted from 0)"
    if len(name) > LONGEST:
        return f"{wanted}, and {_shortened(name)} has {len(name)}"
    return None


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."


# Where a jid lives ---------------------------------------------------------------------------------------


def place(jid: str) -> int:
    """The place of a jid, 0 to 65535; the same in every process and every version of busq."""
    if len(jid) == _CHILD_LENGTH and _CHILD.match(jid):
        return int(jid[33:], 16)
    return binascii.crc_hqx(jid.encode(), 0) & 0xFFFF


def shard_of(jid: str, shards: int) -> int:
    """Which of so many shards holds this jid."""
    return 0 if shards == 1 else place(jid) % shards


def child_jid(parent: str) -> str:
    """A fresh jid that lives where `parent` lives, under any number of shards."""
    return f"{new_jid()}.{place(parent):04x}"


def check_child(jid: str, parent: str, shards: int) -> None:
    """Raise `BadJid` when a child with this jid would not live in its parent's shard."""
    at, wanted = shard_of(jid, shards), shard_of(parent, shards)
    if at != wanted:
        raise BadJid(
            f"jid {jid!r} falls into shard {at} of {shards} and its parent {parent!r} lives in shard {wanted}; a tree "
            "of jobs lives in one shard. Leave the child's jid out and busq makes one that fits."
        )


def check_key(key: str) -> str:
    """Give a key back when it is well formed; raise `UsageError` that says what is wrong with it."""
    given: Any = key
    wanted = f"key takes 1 to {LONGEST_KEY} printable characters"
    if not isinstance(given, str):
        raise UsageError(f"{wanted}, and {_shortened(given)} is of type {type(given).__name__}")
    if not given:
        raise UsageError(f"{wanted}, and this one is empty")
    if len(given) > LONGEST_KEY:
        raise UsageError(f"{wanted}, and {_shortened(given)} has {len(given)}")
    if not given.isprintable():
        odd = next(i for i, c in enumerate(given) if not c.isprintable())
        raise UsageError(f"{wanted}, and {_shortened(given)} has {given[odd]!r} at position {odd} (counted from 0)")
    return given


def place_of_key(key: str) -> int:
    """The place of a key, 0 to 65535, where the jobs of it live; the same in every process and version of busq."""
    return binascii.crc_hqx(key.encode(), 0) & 0xFFFF


def keyed_jid(key: str) -> str:
    """A fresh jid that lives where this key's jobs do, under any number of shards."""
    return f"{new_jid()}.{place_of_key(key):04x}"


def check_keyed(jid: str, key: str, shards: int, *, parent: str | None = None) -> None:
    """Raise `BadJid` when a job with this jid, a child of `parent` if that is given, lives elsewhere than its key."""
    at, wanted = shard_of(jid, shards), place_of_key(key) % shards
    if at == wanted:
        return
    if parent is not None:
        raise BadJid(
            f"key {key!r} belongs to shard {wanted} of {shards} and the parent {parent!r} lives in shard {at}; a tree "
            "of jobs lives in one shard, and so do the jobs of a key. Leave the key out, or the parent."
        )
    raise BadJid(
        f"jid {jid!r} falls into shard {at} of {shards} and key {key!r} belongs to shard {wanted}; the jobs of a key "
        "live in one shard. Leave the jid out and busq makes one that fits."
    )


# Making new ones -----------------------------------------------------------------------------------------


class _Mint:
    """
    Makes UUIDv7s: 48 bits of time in ms, 26 bits that count up within one ms, 48 random bits.

    The count starts at a random number with its top bit clear, so there is room for 33 million jids in one ms. When
    the clock is set back, the mint stays at its latest ms and goes on counting: jids of one process never go down.
    """

    _TAILS = 512

    def __init__(self) -> None:
        self.start_afresh()

    def start_afresh(self) -> None:
        """Forget everything. A child process must: the same random bytes would give the same jids twice."""
        self._lock = threading.Lock()  # a new one: another thread may have held the old one at the fork
        self._ms = 0
        self._count = 0
        self._tails = ""
        self._used = 0

    def make(self) -> str:
        with self._lock:
            ms = time.time_ns() // 1_000_000
            if ms > self._ms:
                self._ms = ms
                self._count = int.from_bytes(os.urandom(4)) >> 7
            else:
                self._count += 1
                if self._count >> 26:
                    self._ms += 1
                    self._count = 0
            if self._used == len(self._tails):
                self._tails = os.urandom(6 * self._TAILS).hex()
                self._used = 0
            start = self._used
            self._used = start + 12
            count = self._count
            # Version 7 and the variant stand at fixed places in the middle of the count.
            middle = 0x70008000 | (count >> 14 << 16) | (count & 0x3FFF)
            return f"{self._ms:012x}{middle:08x}{self._tails[start : start + 12]}"


_mint = _Mint()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mint.start_afresh)


def new_jid() -> str:
    """A jid that nobody has: 32 hex digits, later ones sort after earlier ones. Safe in threads and after a fork."""
    return _mint.make()


def new_jids(n: int) -> list[str]:
    """So many new jids, in rising order."""
    make = _mint.make
    return [make() for _ in range(n)]
