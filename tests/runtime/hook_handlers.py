"""Hooks in child processes: found there by name, as their handlers are. They meet the test at files in a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import busq
from tests.runtime.process_handlers import mark, wait_for

bus = busq.Bus()


@bus.job(pool="process")
def writes(folder: Path, *, parts: int = 3) -> None:
    job = busq.current_job()
    job.save({"pid": os.getpid()})
    mark(str(folder), "running")
    job.wait_cancelled()
    job.check_cancelled()


@writes.on_cancel
def removes(job: busq.CancelledJob) -> dict[str, Any]:
    folder: Path = job.args["folder"]
    own = busq.current_job()
    mark(str(folder), "removed", f"{job.jid} {job.args['parts']} {job.saved['pid']} {job.ended} {own.kind} {own.saved}")
    return {"pid": os.getpid()}


@bus.job(pool="process")
def waits(folder: str) -> None:
    wait_for(folder, "go on")


@waits.on_cancel(timeout=0.1, retries=0)
def hangs(job: busq.CancelledJob) -> None:
    while True:
        wait_for(job.args["folder"], "go on")


@bus.job(pool="process")
def dies(folder: str) -> None:
    wait_for(folder, "go on")


@dies.on_cancel(retries=1)
def dies_too(job: busq.CancelledJob) -> None:
    os._exit(3)
