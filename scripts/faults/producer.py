"""
A producer: jobs of all sorts in batches, some of them sent twice, until its share is accepted.

Jids are the producer's name, `q` or `s` for quick or slow, and a number from the tally, so that cancellers can name
them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import busq
from busq.protocol.jids import place_of_key, shard_of
from faults import app
from faults.client import Caller, run

BATCH = 80
TOO_MANY = 3000  # in the queues: then it waits, as a producer should
QUICK = 0.72  # of the jobs

Draw = Callable[[Any], Sequence[Any]]

SLOW: tuple[tuple[float, Any, Draw], ...] = (
    (12, app.steps, lambda r: [r.choice([100, 200, 400, 1500])]),
    (4, app.keeps, lambda r: [r.choice([50, 300])]),
    (5, app.fails, lambda r: [r.choice([1, 2, 9])]),
    (0.6, app.swallows, lambda r: [r.choice([300, 1500])]),
    (0.12, app.blocks, lambda r: [r.choice([100, 700, 4000])]),
    (1, app.raises, lambda r: [r.choice(["exit", "interrupt", "generator", "group", "cancelled", "base"])]),
    (1, app.answers, lambda r: [r.choice(["huge", "object", "deep", "odd"])]),
    (2, app.saves, lambda r: [r.randint(1, 8)]),
    (5, app.cleans, lambda r: [r.choice([100, 600])]),
    (1, app.tree, lambda r: [r.randint(1, 3), r.randint(0, 2)]),
    (3, app.thread_steps, lambda r: [r.choice([50, 200])]),
    (0.2, app.thread_deaf, lambda r: [r.choice([200, 2500])]),
    (3, app.process_steps, lambda r: [r.choice([50, 150])]),
    (0.25, app.process_dies, lambda r: [r.choice(["exit", "segfault", "kill", "close"])]),
    (0.15, app.process_deaf, lambda r: [r.choice([200, 2000])]),
    (0.3, app.process_family, lambda r: [r.choice([50, 300])]),
)


def main(argv: list[str]) -> None:
    run(argv, _produce)


async def _produce(caller: Caller) -> None:
    while not caller.over("accepted"):
        if not caller.behind("accepted") or await _backlog(caller) > TOO_MANY:
            await asyncio.sleep(0.1)
            continue
        specs = [_spec(caller) for _ in range(caller.chance.randint(1, BATCH))]
        if not await _send(caller, specs) or caller.chance.random() < 0.1:
            for spec in caller.chance.sample(specs, min(5, len(specs))):
                await _send(caller, [spec])  # the caller has no answer, or does not trust it


async def _backlog(caller: Caller) -> int:
    try:
        stats = await caller.bus.stats()
    except busq.BusUnavailable:
        return 0
    return stats.now["queued"]


async def _send(caller: Caller, specs: list[busq.JobSpec[Any]]) -> bool:
    """Enqueue them in one call; whether they were accepted."""
    sent = False
    lines = [{"jid": spec.jid, "val": {"kind": spec.kind, "queue": spec.job.queue}} for spec in specs]
    async with caller.told("enqueue", lines):
        await caller.bus.enqueue_many(specs)
        sent = True
        caller.tally.add(caller.task.row, "accepted", len(specs))
    return sent


def _key(caller: Caller, jid: str) -> str:
    """One of the keys that live where this job does."""
    shards = caller.task.settings["shards"]
    keys = [f"k{number}" for number in range(20 * shards)]
    return caller.chance.choice([key for key in keys if place_of_key(key) % shards == shard_of(jid, shards)])


def _spec(caller: Caller) -> busq.JobSpec[Any]:
    chance, row, name = caller.chance, caller.task.row, caller.task.name
    if chance.random() < QUICK:
        number = caller.tally.add(row, "quick")
        return app.quick.options(jid=f"{name}-q-{number}").spec(number)
    _, handler, draw = chance.choices(SLOW, [each[0] for each in SLOW])[0]
    number = caller.tally.add(row, "slow")
    options: dict[str, Any] = {"jid": f"{name}-s-{number}"}
    if chance.random() < 0.5:
        options["group"] = f"{name}-g-{number // 20}"
    if chance.random() < 0.3:
        options["tags"] = {"tenant": f"t{chance.randint(0, 30)}"}
    if chance.random() < 0.3:
        options["delay"] = chance.choice([0.05, 0.5, 3.0])
    if chance.random() < 0.05:
        options |= {"key": _key(caller, options["jid"]), "supersede": True}
    if chance.random() < 0.05:
        options["expires"] = options.get("delay", 0) + chance.choice([0.3, 2.0])
    if chance.random() < 0.05:
        options["deadline"] = options.get("delay", 0) + chance.choice([0.5, 3.0])
    if chance.random() < 0.05:
        options["timeout"] = chance.choice([0.2, 1.0])
    if chance.random() < 0.02:
        options["max_losses"] = 1
    return handler.options(**options).spec(*draw(chance))
