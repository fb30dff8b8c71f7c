"""
A canceller: cancels one, many, a group, a tag; jobs that run, wait, have ended or are not there yet. And it reads.
"""

from __future__ import annotations

import asyncio
from typing import Any

from faults.client import Caller, run
from faults.tally import PRODUCERS


def main(argv: list[str]) -> None:
    run(argv, _cancel)


async def _cancel(caller: Caller) -> None:
    while not caller.over("cancelled"):
        if not caller.behind("cancelled"):
            await asyncio.sleep(0.05)
            continue
        lot = caller.chance.random()
        if lot < 0.08:
            await _wide(caller)
        elif lot < 0.30:
            await _read(caller)
        elif lot < 0.65:
            await _many(caller, [_some(caller)])
        else:
            await _many(caller, sorted({_some(caller) for _ in range(caller.chance.randint(2, 25))}))


def _some(caller: Caller) -> str:
    """A jid: mostly of a slow job of late, now and then of any, and now and then of one that is to come."""
    chance = caller.chance
    row = chance.randrange(PRODUCERS)
    sort = "slow" if chance.random() < 0.85 else "quick"
    newest = caller.tally.get(row, sort)
    lot = chance.random()
    if lot < 0.80:
        number = max(0, newest - 1 - int(chance.expovariate(1 / 30)))
    elif lot < 0.95:
        number = chance.randint(0, max(0, newest - 1))
    else:
        number = newest + chance.randint(0, 3)
    return f"p{row}-{sort[0]}-{number}"


async def _many(caller: Caller, jids: list[str]) -> None:
    chance = caller.chance
    options: dict[str, Any] = {"reason": f"by {caller.task.name}", "source": "chaos"}
    if chance.random() < 0.2:
        options["grace"] = chance.choice([0.0, 0.1, 1.0])
    if chance.random() < 0.2:
        options["tombstone"] = chance.choice([1.0, 10.0])
    lines = [{"jid": jid, "val": {"many": len(jids), **options}} for jid in jids]
    for _ in range(1 if chance.random() < 0.9 else 3):
        async with caller.told("cancel", lines) as told:
            answers = await caller.bus.cancel_many(jids, **options)
            for line, answer in zip(told, answers, strict=True):
                deadline = None if answer.deadline is None else round(answer.deadline.timestamp() * 1000)
                line["val"] = {
                    "verdict": str(answer.verdict), "state": answer.state and str(answer.state), "deadline": deadline,
                }  # fmt: skip
            caller.tally.add(caller.task.row, "cancelled", len(jids))


async def _wide(caller: Caller) -> None:
    chance, bus = caller.chance, caller.bus
    row = chance.randrange(PRODUCERS)
    newest = caller.tally.get(row, "slow")
    wanted = chance.choice(["group", "group", "tag", "where", "standing", "descendants"])
    filters: dict[str, Any] = {
        "group": {"group": f"p{row}-g-{max(0, newest // 20 - chance.randint(0, 2))}"},
        "tag": {"tags": {"tenant": f"t{chance.randint(0, 30)}"}},
        "where": {"kind": "steps", "where": "args.ms >= 1500 and attempt < 3"},
        "standing": {"tags": {"tenant": f"t{chance.randint(0, 30)}"}, "standing": True, "until": 0.5},
        "descendants": {"descendants_of": f"p{row}-s-{chance.randint(0, max(0, newest))}"},
    }[wanted]
    async with caller.told("cancel", [{"val": {"filter": filters}}]) as told:
        scope = await bus.cancel_where(reason="wide", source=caller.task.name, **filters)
        told[0]["val"] = {"scope": scope.id, "filter": filters}
        caller.tally.add(caller.task.row, "scopes")


async def _read(caller: Caller) -> None:
    jid, chance = _some(caller), caller.chance
    async with caller.told("read", [{"jid": jid}]) as told:
        if chance.random() < 0.1:
            job = await caller.bus.wait(jid, timeout=0.3)
        else:
            job = await caller.bus.get(jid)
        told[0]["val"] = {"state": str(job.state), "attempt": job.attempt}
        caller.tally.add(caller.task.row, "reads")
