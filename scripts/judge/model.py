"""
The server, played again: keys as plain Python values, changed by the commands of the log.

Only commands that busq's scripts and clients leave in the log are known; any other makes the run void, for then the
model might not be what the server was. `Watcher` is told of everything that concerns jobs, as it happens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from judge.aof import Command
from judge.schema import GROUP, Key, Keys
from judge.streams import Stream
from judge.verdict import Unusable


class Watcher(Protocol):
    """Who follows what becomes of jobs."""

    def record_written(self, key: bytes, before: dict[bytes, bytes], fields: dict[bytes, bytes]) -> None: ...
    def fields_removed(self, key: bytes, fields: list[bytes]) -> None: ...
    def record_gone(self, key: bytes) -> None: ...
    def entry_added(self, stream: bytes, entry: bytes, job: bytes) -> None: ...
    def entry_gone(self, stream: bytes, entry: bytes, job: bytes) -> None: ...
    def touched(self, job: bytes) -> None: ...
    def vandalised(self, stream: bytes) -> None: ...
    def flushed(self) -> None: ...
    def field_written(self, key: Key, name: bytes, value: bytes) -> None: ...
    def marked(self, job: bytes, score: float) -> None: ...
    def unmarked(self, job: bytes) -> None: ...


class Model:
    """`keys` is the whole data set. Apply the commands of a transaction one after the other."""

    def __init__(self, keys: Keys, watcher: Watcher) -> None:
        self.names = keys
        self.keys: dict[bytes, Any] = {}
        self.expiries: dict[bytes, int] = {}
        self.commands: Counter[str] = Counter()
        self.foreign = 0
        self.alone = False  # what is applied is a command by itself, no script's
        self._watcher = watcher
        self._acts: dict[bytes, Callable[[Key, Command], None]] = {
            name.removeprefix("_do_").upper().encode(): getattr(self, name) for name in dir(self) if name[:4] == "_do_"
        }

    def apply(self, command: Command) -> None:
        word = command[0]
        act = self._acts.get(word)
        if act is None:
            word = word.upper()
            act = self._acts.get(word)
        self.commands[word.decode("ascii", "replace")] += 1
        if word in (b"SELECT", b"PUBLISH", b"SPUBLISH", b"PING"):
            if word == b"SELECT" and command[1] != b"0":
                raise Unusable(f"the log writes to database {command[1].decode()}; busq lives in 0")
            return
        if word in (b"FLUSHALL", b"FLUSHDB"):
            self.keys.clear()
            self.expiries.clear()
            self._watcher.flushed()
            return
        if word in (b"DEL", b"UNLINK"):
            for name in command[1:]:
                self._remove(name)
            return
        name = command[2] if word == b"XGROUP" and len(command) > 2 else command[1] if len(command) > 1 else b""
        key = self.names.apart(name)
        if key is None:
            self.foreign += 1
        elif act is None:
            raise Unusable(f"the judge does not know {word.decode('ascii', 'replace')}, which touches {name!r}")
        else:
            act(key, command)

    # Reading -------------------------------------------------------------------------------------------

    def record(self, key: bytes) -> dict[bytes, bytes]:
        return self.keys.get(key) or {}

    def score(self, key: bytes, member: bytes) -> float | None:
        held = self.keys.get(key)
        return held.get(member) if held else None

    # Hashes --------------------------------------------------------------------------------------------

    def _hash(self, name: bytes) -> dict[bytes, Any]:
        held = self.keys.get(name)
        if held is None:
            held = self.keys[name] = {}
        return held

    def _do_hset(self, key: Key, command: Command) -> None:
        self._write(key, command[1], dict(zip(command[2::2], command[3::2], strict=True)))

    _do_hmset = _do_hset

    def _do_hsetnx(self, key: Key, command: Command) -> None:
        if command[2] not in self.keys.get(command[1], ()):
            self._write(key, command[1], {command[2]: command[3]})

    def _do_hincrby(self, key: Key, command: Command) -> None:
        number = int(self.keys.get(command[1], {}).get(command[2], 0)) + int(command[3])
        self._write(key, command[1], {command[2]: b"%d" % number})

    def _write(self, key: Key, name: bytes, fields: dict[bytes, bytes]) -> None:
        held = self._hash(name)
        if key.part == "job":
            self._watcher.record_written(name, held, fields)
        elif key.part in ("rules", "scope"):
            for field, value in fields.items():
                self._watcher.field_written(key, field, value)
        held.update(fields)

    def _do_hdel(self, key: Key, command: Command) -> None:
        held = self._hash(command[1])
        there = [field for field in command[2:] if held.pop(field, None) is not None]
        if key.part == "job":
            self._watcher.fields_removed(command[1], there)
        if not held:
            self._remove(command[1])

    # Sorted sets and sets --------------------------------------------------------------------------------

    def _do_zadd(self, key: Key, command: Command) -> None:
        first = 2
        while command[first].upper() in (b"NX", b"XX", b"GT", b"LT", b"CH"):
            first += 1
        if first > 2:
            raise Unusable(f"the judge does not know ZADD with {command[2]!r}")
        held = self._hash(command[1])
        part = key.part
        for score, member in zip(command[2::2], command[3::2], strict=True):
            held[member] = number = float(score)
            if part in ("scheduled", "cancelled", "deadlines", "waiting"):
                job = self.names.job(key.shard, member)
                if part == "cancelled":
                    self._watcher.marked(job, number)
                self._watcher.touched(job)

    def _do_zrem(self, key: Key, command: Command) -> None:
        held = self._hash(command[1])
        part = key.part
        for member in command[2:]:
            if held.pop(member, None) is not None and part in ("scheduled", "cancelled", "deadlines", "waiting"):
                job = self.names.job(key.shard, member)
                self._watcher.touched(job)
                if part == "cancelled":
                    self._watcher.unmarked(job)
        if not held:
            self._remove(command[1])

    def _do_sadd(self, key: Key, command: Command) -> None:
        self._hash(command[1]).update(dict.fromkeys(command[2:], b""))

    _do_srem = _do_zrem

    # Strings ---------------------------------------------------------------------------------------------

    def _do_set(self, key: Key, command: Command) -> None:
        self.keys[command[1]] = command[2]
        self.expiries.pop(command[1], None)
        words = [word.upper() for word in command[3:]]
        if b"PXAT" in words:
            self.expiries[command[1]] = int(command[4 + words.index(b"PXAT")])

    def _do_incrby(self, key: Key, command: Command) -> None:
        self.keys[command[1]] = b"%d" % (int(self.keys.get(command[1], b"0")) + int(command[2]))

    # Expiry and removal -----------------------------------------------------------------------------------

    def _do_pexpireat(self, key: Key, command: Command) -> None:
        self.expiries[command[1]] = int(command[2])
        if key.part == "job":
            self._watcher.touched(command[1])

    def _do_persist(self, key: Key, command: Command) -> None:
        self.expiries.pop(command[1], None)

    def _remove(self, name: bytes) -> None:
        held = self.keys.pop(name, None)
        key = self.names.apart(name)
        if key is None or held is None:
            return
        if key.part == "job":
            self._watcher.record_gone(name)
        elif key.part == "queue":
            self._watcher.vandalised(name)
        self.expiries.pop(name, None)

    # Streams -----------------------------------------------------------------------------------------------

    def stream(self, name: bytes) -> Stream:
        held = self.keys.get(name)
        if held is None:
            held = self.keys[name] = Stream()
        return held

    def _do_xadd(self, key: Key, command: Command) -> None:
        at = 2
        most = None
        while command[at].upper() in (b"NOMKSTREAM", b"MAXLEN", b"MINID"):
            if command[at].upper() == b"NOMKSTREAM":
                at += 1
                continue
            exact = command[at + 1] in (b"=", b"~")
            most = int(command[at + 1 + exact]) if command[at].upper() == b"MAXLEN" else None
            at += 2 + exact
            if command[at].upper() == b"LIMIT":
                at += 2
        stream = self.stream(command[1])
        entry = command[at]
        if key.part != "queue":
            stream.add(entry, b"")
            if most is not None:
                stream.trim(most)
            return
        fields = dict(zip(command[at + 1 :: 2], command[at + 2 :: 2], strict=False))
        # busq writes an entry together with its record; one that comes alone is somebody else's, whatever it says.
        job = self.names.job(key.shard, fields[b"jid"]) if b"jid" in fields and not self.alone else b""
        stream.add(entry, job)
        self._watcher.entry_added(command[1], entry, job)

    def _do_xdel(self, key: Key, command: Command) -> None:
        stream = self.stream(command[1])
        for entry in command[2:]:
            job = stream.entries.pop(entry, None)
            if job and key.part == "queue":
                self._watcher.entry_gone(command[1], entry, job)

    def _do_xtrim(self, key: Key, command: Command) -> None:
        if key.part == "queue":
            raise Unusable(f"the log trims {command[1]!r}, which nobody of busq does")
        self.stream(command[1]).trim(int(command[-1]))

    def _do_xsetid(self, key: Key, command: Command) -> None:
        pass  # where the next entry goes: of no consequence for those that are there

    def _do_xack(self, key: Key, command: Command) -> None:
        stream = self.stream(command[1])
        group = stream.groups.get(command[2])
        if group is None:
            return
        for entry in command[3:]:
            if group.pending.pop(entry, None) is not None:
                self._entry_touched(stream, entry)

    def _do_xclaim(self, key: Key, command: Command) -> None:
        stream = self.stream(command[1])
        group = stream.group(command[2])
        consumer = command[3]
        at = 5
        while at < len(command) and command[at][:1].isdigit():
            group.pending[command[at]] = consumer
            self._entry_touched(stream, command[at])
            at += 1
        words = [word.upper() for word in command[at:]]
        if b"LASTID" in words:
            group.read_up_to(command[at + words.index(b"LASTID") + 1])

    def _entry_touched(self, stream: Stream, entry: bytes) -> None:
        job = stream.entries.get(entry)
        if job:
            self._watcher.touched(job)

    def _do_xgroup(self, key: Key, command: Command) -> None:
        word, name, group = command[1].upper(), command[2], command[3]
        stream = self.stream(name)
        if word == b"CREATE" or word == b"SETID":
            stream.group(group).read_up_to(command[4])
        elif word == b"DELCONSUMER":
            held = stream.group(group).drop(command[4])
            for entry in held:
                self._entry_touched(stream, entry)
        elif word == b"DESTROY":
            stream.groups.pop(group, None)
            if group == GROUP and key.part == "queue":
                self._watcher.vandalised(name)
        elif word != b"CREATECONSUMER":
            raise Unusable(f"the judge does not know XGROUP {word.decode('ascii', 'replace')}")
