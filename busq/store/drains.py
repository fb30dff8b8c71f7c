"""
The wish that a worker shall drain: written down, and read by that worker on its beat.

A wish stands in the first shard beside the worker's place on the roster, and leaves with it. So a worker that is cut
off hears it when it comes back, and no wish outlives the worker that it is for.
"""

from __future__ import annotations

from enum import StrEnum

from busq.store.connection import reaching
from busq.store.store import Store

SHARD = 0  # every worker is on the roster of every shard; one is enough to be told


class Whole(StrEnum):
    """What is to be empty in the end. With `POD`, whoever keeps several workers alive there drains them all."""

    WORKER = "worker"
    POD = "pod"


async def ask(store: Store, worker: str, whole: Whole) -> str:
    """Ask a worker to drain. Answers asked, silent (its lease has run out) or missing; safe to repeat."""
    answer = await store.run("drain", SHARD, (), (), named={"worker": worker, "whole": whole})
    return str(answer[0].decode())


async def asked(store: Store, worker: str) -> Whole | None:
    """What this worker has been asked to empty; None as long as it has not."""
    with reaching(store.connections.place):
        word = await store.redis.hget(store.keys(SHARD).drains, worker)
    return None if word is None else Whole.POD if word == Whole.POD.encode() else Whole.WORKER
