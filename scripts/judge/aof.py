"""
Redis's own log of every write, read by hand: the commands of an append-only file, transaction by transaction.

A transaction is what lies between MULTI and EXEC (a script's effects), or one lone command. A position is a byte in
the parts of one server's log, laid end to end; `Log.place` tells it as file and offset. What a SIGKILL left half
written at the very end is cut off, and `Log.cut` says how much: Redis does the same when it loads the file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from judge.verdict import Unusable

Command = list[bytes]


class Transaction(NamedTuple):
    """`at` is the second that the log was stamped with last, 0 before the first stamp."""

    position: int
    at: int
    commands: list[Command]
    whole: bool  # MULTI … EXEC; False for a lone command
    base: bool  # of a base file: no history, but a state written down


class Log:
    """The append-only files of one server."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.parent.name
        self._folder = folder
        self.cut = 0
        self._parts = _parts(folder)
        self._starts: list[int] = []

    def place(self, position: int) -> str:
        """A position as file and offset."""
        part = bisect_right(self._starts, position) - 1
        return f"{self._parts[part][0]}:{position - self._starts[part]}"

    def transactions(self) -> Iterator[Transaction]:
        """Everything that was ever written, in the server's order. To be read once."""
        start = 0
        for number, (name, base) in enumerate(self._parts):
            self._starts.append(start)
            path = self._folder / name
            try:
                data = path.read_bytes()
            except OSError as error:
                raise Unusable(f"{path} is named by the manifest and cannot be read: {error}") from None
            if data.startswith(b"REDIS"):
                raise Unusable(f"{path} is an RDB file: the server wants aof-use-rdb-preamble no")
            last = number == len(self._parts) - 1
            yield from self._read(name, data, start, base, last)
            start += len(data)

    def _read(self, name: str, data: bytes, start: int, base: bool, last: bool) -> Iterator[Transaction]:
        at, open_at = 0, -1
        inside: list[Command] = []
        whole_until = 0  # everything before this byte has been handed out
        position = 0
        while position < len(data):
            if data[position] == 35:  # '#', an annotation
                end = data.find(b"\n", position)
                if end < 0:
                    break
                if data.startswith(b"#TS:", position):
                    at = int(data[position + 4 : end])
                position = end + 1
                continue
            command, end = _command(data, position, name)
            if end < 0:
                break
            word = command[0]
            if word == b"MULTI":
                open_at, inside = position, []
            elif word == b"EXEC":
                yield Transaction(start + open_at, at, inside, True, base)
                open_at, whole_until = -1, end
            elif open_at >= 0:
                inside.append(command)
            else:
                yield Transaction(start + position, at, [command], False, base)
                whole_until = end
            position = end
        left = len(data) - (whole_until if open_at >= 0 else position)
        if left and not last:
            raise Unusable(f"{self._folder / name} ends in the middle of a command, and other files follow")
        self.cut = left


def _command(data: bytes, position: int, name: str) -> tuple[Command, int]:
    """The command that begins here and where it ends; -1 where the data does."""
    if data[position] != 42:  # '*'
        raise Unusable(f"{name}:{position}: no command begins here: {data[position : position + 20]!r}")
    find = data.find
    line = find(b"\r\n", position)
    if line < 0:
        return [], -1
    arguments = []
    end = line + 2
    size = len(data)
    for _ in range(int(data[position + 1 : line])):
        line = find(b"\r\n", end)
        if line < 0:
            return [], -1
        begin = line + 2
        stop = begin + int(data[end + 1 : line])
        end = stop + 2
        if end > size:
            return [], -1
        arguments.append(data[begin:stop])
    return arguments, end


def _parts(folder: Path) -> list[tuple[str, bool]]:
    """The files that the manifest names, in order; whether each is the base."""
    manifests = sorted(folder.glob("*.manifest"))
    if len(manifests) != 1:
        raise Unusable(f"{folder} has {len(manifests)} manifests; one is wanted (Redis 7, appendonly yes)")
    bases, increments = [], []
    for line in manifests[0].read_text().splitlines():
        words = line.split(" ")
        told = dict(zip(words[::2], words[1::2], strict=False))
        if told.get("type") == "b":
            bases.append((told["file"].strip('"'), True))
        elif told.get("type") == "i":
            increments.append((int(told["seq"]), told["file"].strip('"')))
    return bases + [(name, False) for _, name in sorted(increments)]
