"""
What the processes of a run wrote down: lines of JSON, one file for each process.

A process that was killed may have left half a line at the end of its file; it is left out and counted. Anything else
that is no line makes the run void: the judge does not guess.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from judge.verdict import Unusable

VERSION = 1


class Event(NamedTuple):
    """One line. `mono` is the machine's monotonic clock in ns, the same for all; `wall` ms by the process's clock."""

    proc: str
    role: str
    ev: str
    type: str
    op: str | None
    jid: str | None
    fence: int | None
    attempt: str | None
    mono: int
    wall: int
    val: Any
    err: str | None
    source: int  # which file: one for each process, also where a pid was given away again

    def told(self, name: str) -> Any:
        return self.val.get(name) if isinstance(self.val, dict) else None

    @property
    def verdict(self) -> str | None:
        """The word that a call was answered with."""
        word = next((self.told(name) for name in ("ret", "verdict", "state") if self.told(name) is not None), self.val)
        return str(word) if isinstance(word, str) else None


class Call(NamedTuple):
    """An operation of a client: its invoke and what closed it; `ended` None when nothing did."""

    began: Event
    ended: Event | None

    @property
    def type(self) -> str:
        return self.ended.type if self.ended is not None else "info"

    @property
    def jid(self) -> str | None:
        return (self.ended.jid if self.ended is not None else None) or self.began.jid

    @property
    def answer(self) -> str | None:
        return self.ended.verdict if self.ended is not None else None


class History:
    """All lines of a run, by the machine's clock."""

    def __init__(self, events: Iterable[Event], torn: int = 0) -> None:
        self.events = sorted(events, key=lambda event: event.mono)
        self.torn = torn
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.by_ev: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            self.by_ev[event.ev].append(event)
        self._pair()

    def _pair(self) -> None:
        open_calls: dict[tuple[str, str, str], Event] = {}
        for event in self.events:
            if event.role not in ("client", "probe"):
                continue
            key = (event.proc, event.ev, f"{event.op}/{event.jid}" if event.op is None else event.op)
            if event.type == "invoke":
                # A batch has one operation and many jids.
                open_calls[(*key[:2], f"{key[2]}/{event.jid}")] = event
            else:
                began = open_calls.pop((*key[:2], f"{key[2]}/{event.jid}"), None) or open_calls.pop(
                    (*key[:2], f"{key[2]}/None"), None
                )
                self.calls[event.ev].append(Call(began or event, event))
        for (_, ev, _), began in open_calls.items():
            self.calls[ev].append(Call(began, None))

    @property
    def has_clients(self) -> bool:
        return bool(self.calls["enqueue"])


def read_history(folder: Path) -> History:
    events: list[Event] = []
    torn = 0
    for source, path in enumerate(sorted(folder.glob("*.jsonl"))):
        data = path.read_bytes()
        lines = data.split(b"\n")
        torn += bool(lines[-1])
        for number, line in enumerate(lines[:-1], 1):
            try:
                told = json.loads(line)
                if told["v"] != VERSION:
                    raise Unusable(f"{path}:{number} is of version {told['v']!r}; the judge reads {VERSION}")
                fence = told.get("fence")
                events.append(
                    Event(
                        told["proc"],
                        told["role"],
                        told["ev"],
                        told["type"],
                        told.get("op"),
                        told.get("jid"),
                        None if fence is None else int(fence),
                        told.get("attempt"),
                        int(told["mono"]),
                        int(told["wall"]),
                        told.get("val"),
                        told.get("err"),
                        source,
                    )
                )
            except (ValueError, KeyError, TypeError) as error:
                raise Unusable(f"{path}:{number} is no line of history: {error!r}: {line[:120]!r}") from None
    return History(events, torn)
