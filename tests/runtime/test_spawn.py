"""
Children that a handler asks for: told to all three executors, and that an attempt which was asked to stop gains none.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

import busq
from busq.client.handle import BlockingHandle, JobHandle
from busq.client.jobs import AsyncJob, Enqueuer
from busq.protocol.jids import place, place_of_key
from tests.runtime import process_handlers, tree_handlers
from tests.runtime.bench import EXECUTORS, PATIENT, Ask, Bench, Wait, bench, declare, taken, until

LONG_S = 20.0


def child_kind(b: Bench) -> AsyncJob[[int], int]:
    @b.bus.job
    async def double(n: int) -> int:
        return 2 * n

    return double


def parent_kind(b: Bench, executor: str, child: Enqueuer[..., Any], found: list[Any]) -> Enqueuer[..., Any]:
    def parent() -> Any:
        found.append((yield Ask(lambda: busq.current_job().spawn(child, 21))))

    return declare(b.bus, executor, parent)


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_spawned_child_is_a_job_of_its_own_that_names_its_parent(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        found: list[Any] = []
        kind = parent_kind(b, executor, child_kind(b), found)
        await b.work()
        parent = await kind.enqueue()
        await parent.result(timeout=LONG_S)
        assert isinstance(found[0], JobHandle if executor == "coroutine" else BlockingHandle)
        job = await b.bus.wait(found[0].jid, timeout=LONG_S)
        assert (job.parent, job.result, place(job.jid)) == (parent.jid, 42, place(parent.jid))


@pytest.mark.parametrize("pool", ["coroutine", "process"])
async def test_a_child_spawned_by_a_child_process_is_the_same(redis_url: str, pool: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        await b.work(handlers=process_handlers.bus.handlers)
        kind = "spawns" if pool == "process" else "spawns_and_awaits"
        queue = "default" if pool == "process" else "others"
        parent = await b.bus.options(queue=queue).enqueue(kind, 21)
        jid = await parent.result(timeout=LONG_S)
        job = await b.bus.wait(jid, timeout=LONG_S)
        assert (job.parent, job.result) == (parent.jid, 42)


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_the_options_of_a_spawned_child_count(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        child = child_kind(b)
        first = await child.options(group="g").enqueue(1)
        raised: list[BaseException] = []

        def parent() -> Any:
            yield Ask(lambda: busq.current_job().spawn(child.options(group="family", delay=600.0), 1))
            try:
                yield Ask(lambda: busq.current_job().spawn(child.options(jid=first.jid), 2))
            except busq.JidInUse as error:
                raised.append(error)

        kind = declare(b.bus, executor, parent)
        await b.work()
        parent_job = await kind.enqueue()
        await b.reaches(parent_job.jid, "waiting", timeout=LONG_S)
        assert [error.jid for error in raised if isinstance(error, busq.JidInUse)] == [first.jid]
        family = await b.bus.list(group="family")
        assert [job.state for job in family] == ["scheduled"]


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_parent_that_was_asked_to_stop_gains_no_more_children(redis_url: str, executor: str) -> None:
    """Its handler ignores the cancel, and asks for a child after it."""
    async with bench(redis_url, **PATIENT) as b:
        gate, child, raised = b.gate(), child_kind(b), []

        def parent() -> Any:
            with contextlib.suppress(asyncio.CancelledError):
                yield Wait(gate, checking=False)
            try:
                yield Ask(lambda: busq.current_job().spawn(child.options(group="family"), 1))
            except busq.Cancelled as error:
                raised.append((error.cause, error.reason))

        kind = declare(b.bus, executor, parent)
        worker = await b.work()
        handle = await kind.enqueue()
        attempt = await taken(worker, handle.jid)
        await handle.cancel(reason="enough")
        await until(lambda: attempt.token.observed if executor == "coroutine" else attempt.token.tripped)
        gate.open()
        job = await handle.wait(timeout=LONG_S)
        assert (job.state, job.ended) == ("cancelled", "confirmed")
        assert [cause for cause, _ in raised] == ["user"]
        assert await b.bus.list(group="family") == []


async def test_a_spawn_whose_reply_is_lost_makes_one_child(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(redis_url, **PATIENT) as b:
        found: list[Any] = []
        kind = parent_kind(b, "coroutine", child_kind(b).options(group="family"), found)
        worker = await b.work()
        store = worker._store
        spawn, calls = store.spawn, []

        async def lossy(*args: Any, **named: Any) -> Any:
            calls.append(named["call"])
            answer = await spawn(*args, **named)
            if len(calls) == 1:
                raise busq.BusUnavailable("the reply was lost")
            return answer

        monkeypatch.setattr(store, "spawn", lossy)
        await (await kind.enqueue()).result(timeout=LONG_S)
        assert len(calls) == 2
        assert len(set(calls)) == 1
        assert len(await b.bus.list(group="family")) == 1


async def test_a_spawn_that_redis_does_not_take_keeps_no_ending_waiting(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        found: list[Any] = []
        kind = parent_kind(b, "coroutine", child_kind(b), found)

        @b.bus.job
        async def other() -> str:
            return "done"

        worker = await b.work()
        tried = asyncio.Event()

        async def full(*args: Any, **named: Any) -> Any:
            tried.set()
            raise busq.BusUnavailable("the server is out of memory")

        monkeypatch.setattr(worker._store, "spawn", full)
        parent = await kind.enqueue()
        await asyncio.wait_for(tried.wait(), LONG_S)
        assert await (await other.enqueue()).result(timeout=LONG_S) == "done"
        await parent.cancel()
        assert (await parent.wait(timeout=LONG_S)).ended == "confirmed"


def answer_spawns(monkeypatch: pytest.MonkeyPatch, worker: Any, *answer: str) -> None:
    """Have the store answer every child in this way, whatever it is."""

    async def spawn(*args: Any, **named: Any) -> tuple[str, ...]:
        return answer

    monkeypatch.setattr(worker._store, "spawn", spawn)


@pytest.mark.parametrize("executor", [*EXECUTORS, "process"])
async def test_a_child_that_would_stand_too_deep_is_refused_in_words_of_its_own(
    redis_url: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        child = child_kind(b)

        def spawns_too_deep() -> Any:
            try:
                yield Ask(lambda: busq.current_job().spawn(child, 1))
            except busq.TooDeep as error:
                return error.jid

        if executor != "process":
            declare(b.bus, executor, spawns_too_deep)
        worker = await b.work(handlers=tree_handlers.bus.handlers if executor == "process" else None)
        answer_spawns(monkeypatch, worker, "too_deep", "", "")
        handle = await b.bus.enqueue("spawns_too_deep")
        assert await handle.result(timeout=LONG_S) == handle.jid


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_child_that_a_standing_rule_caught_is_born_cancelled(
    redis_url: str, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        found: list[Any] = []
        kind = parent_kind(b, executor, child_kind(b), found)
        answer_spawns(monkeypatch, await b.work(), "fenced", "cancelled", "")
        await (await kind.enqueue()).result(timeout=LONG_S)
        assert [handle.state for handle in found] == ["cancelled"]


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_child_whose_key_belongs_elsewhere_than_its_parent_is_refused(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT, shards=4) as b:
        child, refused = child_kind(b), []

        def parent() -> Any:
            own = place(busq.current_job().jid) % 4
            key = next(key for key in map(str, range(99)) if place_of_key(key) % 4 != own)
            try:
                yield Ask(lambda: busq.current_job().spawn(child.options(key=key, supersede=True), 1))
            except busq.UsageError as error:
                refused.append(str(error))

        kind = declare(b.bus, executor, parent)
        await b.work()
        await (await kind.enqueue()).result(timeout=LONG_S)
        assert ["Leave the key out, or the parent" in words for words in refused] == [True]


@pytest.mark.parametrize("tripped", [True, False])
async def test_waiting_for_a_cancel_in_a_plain_function_answers_yes_or_no(redis_url: str, tripped: bool) -> None:
    async with bench(redis_url, **PATIENT) as b:
        said: list[Any] = []

        @b.bus.job
        def waits() -> None:
            said.append(busq.current_job().wait_cancelled(LONG_S if tripped else 0.01))

        await b.work()
        handle = await waits.enqueue()
        if tripped:
            await b.reaches(handle.jid, "running")
            await handle.cancel()
        await handle.wait(timeout=LONG_S)
        assert said == [tripped]
