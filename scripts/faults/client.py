"""
What a producer and a canceller have in common: how they are told what to do, and how a call is written down.

Every call is an invoke before it is made, then ok (it took effect), fail (a definite no) or info (nobody knows: Redis
was away). What busq never should raise at such a call is written as info too, and printed: the verdict counts it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from busq import errors
from faults import app
from faults.history import FOLDER, History
from faults.tally import Tally

SURPRISE = "surprise: "

REFUSALS = (errors.JidInUse, errors.ParentClosed, errors.TooDeep, errors.JobNotFound, errors.TooManyRules,
            errors.ScopeNotFound)  # fmt: skip
UNKNOWN = (errors.BusUnavailable, TimeoutError)


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the nemesis tells a client: `row` in the tally, its share of the work and the moment it shall be done by."""

    name: str
    url: str
    row: int
    seed: int
    share: int
    began: float
    seconds: float
    settings: dict[str, Any]


class Caller:
    """One client at work: its bus, its chance, its history, and its place in the tally."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.bus = app.bus
        self.chance = random.Random(task.seed)
        self.tally = Tally(Path(os.environ[FOLDER]))
        self.history = History(task.name, "client")

    def behind(self, column: str) -> bool:
        """Whether less than what was due by now has been done."""
        done, task = self.tally.get(self.task.row, column), self.task
        return done < task.share * min(1.0, (time.monotonic() - task.began) / task.seconds)

    def over(self, column: str) -> bool:
        return self.tally.get(self.task.row, column) >= self.task.share

    @asynccontextmanager
    async def told(self, ev: str, each: list[dict[str, Any]]) -> AsyncIterator[list[dict[str, Any]]]:
        """A call about these jobs: the body fills in what came of it, each line's own `val`, and may set `type`."""
        lines = [{"op": secrets.token_hex(6), **facts} for facts in each]
        self.history.tell_all(ev, "invoke", lines)
        kind, err = "ok", None
        try:
            yield lines
        except REFUSALS as error:
            kind, err = "fail", type(error).__name__
            lines[0]["val"] = {**(lines[0].get("val") or {}), "state": str(getattr(error, "state", None))}
        except UNKNOWN as error:
            kind, err = "info", str(error)[:200]
            await asyncio.sleep(0.05)
        except Exception as error:
            traceback.print_exc()
            kind, err = "info", f"{SURPRISE}{type(error).__name__}: {error}"[:300]
        for line in lines:
            line.setdefault("err", err)
        self.history.tell_all(ev, kind, lines)


def run(argv: list[str], work: Callable[[Caller], Coroutine[Any, Any, None]]) -> None:
    """The main function of a client's process."""
    from busq.cli import application

    task = msgspec.json.decode(argv[0], type=Task)
    application.settle(app.bus, url=task.url, namespace=None, **task.settings)

    async def whole() -> None:
        async with app.bus:
            await work(Caller(task))

    asyncio.run(whole())
    print(json.dumps({"done": task.name}), file=sys.stderr)
