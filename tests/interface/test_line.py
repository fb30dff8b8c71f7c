"""The line between a supervisor and its worker: when the loop answers, when it does not, when the line breaks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading

import msgspec
import pytest

from busq.cli import line
from busq.cli.line import Answer
from busq.store.drains import Whole


class Health(msgspec.Struct, frozen=True, kw_only=True):
    started: bool = True
    live: dict[str, str] = {}
    ready: dict[str, str] = {}


class Worker:
    lifeless = ""
    empties_pod = False

    def __init__(self) -> None:
        self.drained: list[Whole] = []

    def asked_to_drain(self, whole: Whole) -> None:
        self.drained.append(whole)
        self.empties_pod = True

    def health(self) -> Health:
        return Health()


async def test_it_answers_also_for_a_loop_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """This test blocks its own loop while it reads."""
    monkeypatch.setattr(os, "kill", lambda *_: None)
    monkeypatch.setattr(line, "ANSWER_S", 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as answers:
        worker = Worker()

        def ask() -> Answer:
            ours.sendall(line.ASK)
            return msgspec.json.decode(answers.readline(), type=Answer)

        line.answer(theirs, worker)
        first = ask()
        worker.lifeless = "blocked past a deadline"
        second = ask()
        assert (first.lifeless, second.lifeless) == ("", "blocked past a deadline")
        assert first.late
        assert second.late
        assert msgspec.json.decode(second.health) is None
        free = await asyncio.to_thread(ask)
        assert not free.late
        assert msgspec.json.decode(free.health)["started"] is True


async def test_a_drain_by_way_of_the_line_is_heard_and_answered_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: None)
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as answers:
        worker = Worker()

        def ask() -> Answer:
            ours.sendall(line.ASK)
            return msgspec.json.decode(answers.readline(), type=Answer)

        line.answer(theirs, worker)
        assert not (await asyncio.to_thread(ask)).empties_pod
        ours.sendall(line.DRAIN)
        assert (await asyncio.to_thread(ask)).empties_pod
        assert worker.drained == [Whole.POD]


async def test_a_worker_whose_supervisor_is_gone_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, signals = threading.Event(), []

    def kill(pid: int, number: int) -> None:
        signals.append((pid, number))
        asked.set()

    monkeypatch.setattr(os, "kill", kill)
    ours, theirs = socket.socketpair()
    with theirs:
        line.answer(theirs, Worker())
        ours.close()
        assert asked.wait(30)
    assert signals == [(os.getpid(), signal.SIGTERM)]
