"""Parents in child processes, found there by name with their finalizers. They say by files what they were told."""

from __future__ import annotations

import json
import os
from typing import Any

import busq
from tests.runtime.process_handlers import mark

bus = busq.Bus()


@bus.job
async def part(n: int) -> int:
    if n < 0:
        raise ValueError(f"part {n}")
    return n


@bus.job(pool="process")
def splits(folder: str, *parts: int) -> dict[str, Any]:
    job = busq.current_job()
    job.save({"pid": os.getpid()})
    for n in parts:
        job.spawn(part, n)
    return {"parts": len(parts)}


@splits.finalize
def joins(job: busq.FinishedJob) -> dict[str, Any]:
    told = [job.jid, job.kind, list(job.args["parts"]), job.result, job.saved, job.children, job.failed]
    mark(job.args["folder"], "finalized", json.dumps([*told, list(job.failed_children)]))
    return {"pid": os.getpid()}


@bus.job(pool="process")
def carries(load: bytes) -> bytes:
    raise AssertionError("only its finalizer is run")


@carries.finalize(retries=1)
def carries_too(job: busq.FinishedJob) -> int:
    own = busq.current_job()
    if own.attempt == 1:
        own.save(job.saved)
        raise ValueError("once more")
    return len(job.args["load"]) + len(job.result) + len(job.saved) + len(own.saved)


@bus.job(pool="process")
def spawns_too_deep() -> str:
    try:
        busq.current_job().spawn(part, 1)
    except busq.TooDeep as error:
        return error.jid
    return ""
