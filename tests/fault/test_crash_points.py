"""
Killed at every command: producer, canceller, worker and watchdog die before and after each one that they send.

Each point has a server of its own. Its log is what the judge reads afterwards, when successors have brought everything
to an end: nothing is lost, nothing is doubled, nothing is half done, and no key is left that a drained bus has not.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from busq.protocol.codec import encode_payload
from tests.fault import crash_flows
from tests.fault.counting import CountingProxy
from tests.fault.crash_flows import PARKED, PATIENCE_S, SETTINGS, Jobs
from tests.runtime.bench import Bench, bench, until
from tests.servers import RedisServer
from tests.store.bench import Bench as StoreBench

ROOT = Path(__file__).parents[2]
AT_ONCE = 4  # points that are tried beside each other
SENT = {
    "producer": {"enqueue"},
    "canceller": {"cancel", "decide"},
    "worker": {"start", "finish", "retry", "release", "renew", "note", "bury", "enqueue"},
    "watchdog": {"promote", "expire", "finalize", "reclaim", "carry_out", "cascade", "prune"},
}
"""Scripts that a role's life is made of: each was sent by processes that died before it and after it."""

OPTIONS = (
    "--appendfsync", "no", "--aof-use-rdb-preamble", "no", "--auto-aof-rewrite-percentage", "0",
    "--aof-timestamp-enabled", "yes",
)  # fmt: skip
"""`no`: written before it is answered. `everysec` keeps writes back while the disk is busy."""
LEFT_BEHIND = (
    "job:", "queue:", "ended:", "scope:", "queues", "counters", "events", "hooks", "workers", "worker_info",
    "tombstones", "suspects", "birth", "dead",
)  # fmt: skip
"""Keys that a drained bus still has, after the tag of their shard; streams empty. Suspects: some owners never were."""

processes = multiprocessing.get_context("forkserver")  # starts them from a process that has imported everything
processes.set_forkserver_preload([crash_flows.__name__])

StartServer = Callable[..., RedisServer]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("role", ["producer", "canceller", "worker", "watchdog"])
async def test_a_role_may_die_at_each_command_that_it_sends(
    start_server: StartServer, tmp_path: Path, role: str, after: bool
) -> None:
    """The points are tried from the first on, until a life is over before it comes to its point."""
    points = itertools.count(1)
    trial = Trial(start_server, tmp_path, role, after=after)
    whole: list[set[str]] = []

    async def some() -> None:
        while not whole:
            if (sent := await trial.whole_life(next(points))) is not None:
                whole.append(sent)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())
    assert SENT[role] <= whole[0]


class Trial:
    def __init__(self, start_server: StartServer, folder: Path, role: str, *, after: bool) -> None:
        self._start_server = start_server
        self._folder = folder
        self._role = role
        self._after = after

    async def whole_life(self, point: int) -> set[str] | None:
        """
        What was sent in a life that was over before it came to this point; None: it came to it and ended there. Raise
        `AssertionError` for what is wrong afterwards.
        """
        folder = self._folder / str(point)
        server = await asyncio.to_thread(lambda: self._start_server(aof=True, users=True, options=OPTIONS))
        try:
            async with CountingProxy(server.url, at=point, after=self._after) as proxy:
                killed = await self._story(server, proxy)
                where = proxy.point if killed else f"at the end, after {len(proxy.sent)} commands"
            try:
                await asyncio.to_thread(judge, server, folder)
            except AssertionError as error:
                raise AssertionError(f"{self._role} killed {where}: {error}") from None
            return None if killed else set(proxy.sent)
        finally:
            server.close()

    async def _story(self, server: RedisServer, proxy: CountingProxy) -> bool:
        async with bench(server.url, **{**SETTINGS, "keep_succeeded_s": 600.0}) as b:
            async with SCENES[self._role](b) as expected:
                killed = await _live(self._role, proxy, server.url)
            await _recover(b, self._role)
            left: list[Any] = []
            try:
                await _ended(b, expected)
                await until(lambda: _tidy(b, left), PATIENCE_S)
            except AssertionError as error:
                where = proxy.point if killed else "nowhere"
                raise AssertionError(f"{self._role} killed {where}: {error}; left: {left}") from None
        return killed


async def _live(role: str, proxy: CountingProxy, direct: str) -> bool:
    """Let it live until it comes to its point, and kill it there. False: it has lived to its end."""
    process = processes.Process(target=crash_flows.live, args=(role, proxy.url, direct))
    process.start()
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    # Not joined in a thread: each start of another process looks after this one too, and only one may collect it.
    loop.add_reader(process.sentinel, over.set)
    ended, reached = asyncio.create_task(over.wait()), asyncio.create_task(proxy.reached.wait())
    await asyncio.wait({ended, reached}, timeout=2 * PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    killed = reached.done()
    process.kill()
    await ended
    loop.remove_reader(process.sentinel)
    reached.cancel()
    process.join()
    if not killed:
        assert process.exitcode == 0, f"{role} ended with {process.exitcode} before its point"
    return killed


# What each of them finds ---------------------------------------------------------------------------------

Expected = dict[str, set[str]]


@asynccontextmanager
async def _nothing(b: Bench) -> AsyncIterator[Expected]:
    yield {
        "plain": {"succeeded"}, "later": {"succeeded"}, "tagged": {"succeeded"}, "parked": {"succeeded"},
        "older": {"cancelled"}, "newer": {"succeeded"},
    }  # fmt: skip


@asynccontextmanager
async def _jobs_to_cancel(b: Bench) -> AsyncIterator[Expected]:
    """One in each state, some in a group, and a family; a worker runs what is in its queue."""
    jobs = Jobs(b.bus)
    worker = await b.work(queues=["default"])
    await jobs.waits.options(jid="running").enqueue()
    await jobs.waits.options(jid="running-in-group", group="g").enqueue()
    await jobs.waits.options(jid="family").enqueue()
    for jid in ("running", "running-in-group", "family"):
        await b.reaches(jid, "running")
    await b.bus.enqueue_many(
        [
            jobs.waits.options(jid="queued", queue=PARKED).spec(),
            jobs.waits.options(jid="scheduled", queue=PARKED, delay=600).spec(),
            jobs.waits.options(jid="queued-in-group", queue=PARKED, group="g").spec(),
            jobs.waits.options(jid="child", queue=PARKED, parent="family").spec(),
        ]
    )
    cancelled = ("running", "running-in-group", "queued", "scheduled", "queued-in-group", "child", "unknown")
    yield {jid: {"cancelled"} for jid in cancelled} | {"family": {"cancelled"}}
    assert worker.ready


@asynccontextmanager
async def _jobs_to_run(b: Bench) -> AsyncIterator[Expected]:
    jobs = Jobs(b.bus)
    await b.watch()
    await jobs.work.options(jid="works").enqueue(1)
    await jobs.fails_once.options(jid="fails").enqueue()
    await jobs.cancels_itself.options(jid="cancels").enqueue()
    await jobs.has_child.options(jid="parent").enqueue()
    await jobs.lingers.options(jid="lingers").enqueue()
    store = await b.store()
    await store.redis.xadd(store.keys(0).stream("default"), {"no": "job"})
    yield {
        "works": {"succeeded"}, "fails": {"succeeded"}, "cancels": {"cancelled"}, "parent": {"succeeded"},
        "lingers": {"succeeded"},
    }  # fmt: skip


@asynccontextmanager
async def _overdue_jobs(b: Bench) -> AsyncIterator[Expected]:
    """Everything that a watchdog looks after, left by workers that have been gone for years."""
    Jobs(b.bus)
    payload = encode_payload((1,), {}, 1000)
    job = {"kind": "work", "payload": payload}
    async with StoreBench(b.url) as past:
        for jid in ("overdue", "lapsed", "family"):
            held = await past.take(await past.enqueue(jid, **job))
            assert (await past.begin(held, kind="work")).word == "started"
        await past.enqueue("scheduled", delay_s=5, **job)
        await past.enqueue("expired", expires=5000, **job)
        await past.enqueue("child", parent="family", **job)
        await past.enqueue("in-group", group="g", **job)
        for jid in ("overdue", "family"):
            await past.cancel(jid)
        await past.decide(group="g")
        await past.beat()
    cancelled = ("overdue", "family", "child", "expired", "in-group")
    yield {jid: {"cancelled"} for jid in cancelled} | {"lapsed": {"succeeded"}, "scheduled": {"succeeded"}}


SCENES = {"producer": _nothing, "canceller": _jobs_to_cancel, "worker": _jobs_to_run, "watchdog": _overdue_jobs}


# And what becomes of it ----------------------------------------------------------------------------------


async def _recover(b: Bench, role: str) -> None:
    """What did not get through is done again; workers and a watchdog are there."""
    if role == "producer":
        await crash_flows.produce(b.url, b.url)
        Jobs(b.bus)
    if role == "canceller":
        await crash_flows.cancel(b.url, b.url)
        await b.bus.options(jid="unknown", queue=PARKED).enqueue("waits")
    await b.watch()
    if role == "canceller":
        await b.bus.cancel("family")
    await b.work(queues=["default", PARKED, "q"])


async def _ended(b: Bench, expected: Expected) -> None:
    """All of them have ended as they had to, each of them once."""
    for jid, states in expected.items():
        job = await b.bus.wait(jid, timeout=PATIENCE_S)
        await until(partial(_recorded, b, jid), PATIENCE_S)
        assert job.state in states, f"{jid} is {job.state}: {await b.names(jid)}"
        names = await b.names(jid)
        assert names.count("finalized") == 1, f"{jid}: {names}"
        assert job.attempt <= 1 + job.losses + job.failures + names.count("handed_back"), f"{jid}: {names}"


async def _recorded(b: Bench, jid: str) -> bool:
    """Whether the record itself says so: a decision is read a little earlier."""
    return "finalized" in await b.names(jid)


async def _tidy(b: Bench, left: list[Any]) -> bool:
    """Whether nothing is left that a drained bus has not; `left` says what is."""
    redis = (await b.store()).redis
    left.clear()
    for key in await redis.keys("busq:{*"):
        name = key.decode().partition("}:")[2]
        if name.startswith("queue:"):
            left += [name] * await redis.xlen(key)
        elif name == "rules":
            left += [field for field in await redis.hkeys(key) if field.isdigit()]
        elif name == "cancelled":
            left += [jid for jid in await redis.zrange(key, 0, -1) if jid != b"unknown"]
        elif not name.startswith(LEFT_BEHIND):
            left.append(name)
    return not left


def judge(server: RedisServer, folder: Path) -> None:
    """What the judge says of the server's log."""
    sys.path[:0] = [str(ROOT / "scripts")]
    try:
        from judge.run import judge_run
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    (folder / "history").mkdir(parents=True)
    (folder / "server").symlink_to(Path(server.aof_folder).parent)
    told = {
        "run": "crash", "seed": 0, "namespace": "busq", "shards": 1, "settings": SETTINGS, "expect_drained": True,
        "slack_s": 1e10,  # some of it was left lying for years
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(told))
    verdict = judge_run(folder)
    assert not [*verdict.violations, *verdict.void]
