"""
Trees of jobs with real workers and watchdogs: parents that wait for their children, cancels that go down a tree, and
`finalize`; and jobs that take the place of older ones.

Every tree has a watchdog: it carries a parent's cancel to children that nobody else would touch.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import busq
from busq.client.jobs import AsyncJob
from busq.protocol.jids import place_of_key, shard_of
from busq.protocol.tree import DEEPEST
from tests.runtime import tree_handlers
from tests.runtime.bench import EXECUTORS, PATIENT, Ask, Bench, Gate, Wait, bench, declare, until

LONG_S = 20.0


class House:
    """A bench with a handler for children, whose gates tests open, and lists of what is told to whom."""

    def __init__(self, b: Bench) -> None:
        self.b = b
        self.bus = b.bus
        self.gates: dict[str, Gate] = {}
        self.cleaned: list[busq.CancelledJob] = []
        self.finalized: list[busq.FinishedJob] = []

        @b.bus.job
        async def child(name: str) -> str:
            """Waits for the gate of its name; a name with a minus in front fails."""
            await self.gate(name).wait()
            if name.startswith("-"):
                raise ValueError(name)
            return name

        @child.on_cancel
        async def cleans(job: busq.CancelledJob) -> None:
            self.cleaned.append(job)

        self.child: AsyncJob[[str], str] = child

    def gate(self, name: str) -> Gate:
        if name not in self.gates:
            self.gates[name] = self.b.gate()
        return self.gates[name]

    def parent(self, executor: str, *children: Any, gate: Gate | None = None, finalizer: bool = True) -> Any:
        """
        A handler that spawns `children`, each a name or a handler with options and a name, and returns their jids.

        With a `gate` it waits there before it returns.
        """

        def parent(word: str = "") -> Any:
            jids = []
            for each in children:
                handler, name = (self.child, each) if isinstance(each, str) else each
                handle = yield Ask(lambda handler=handler, name=name: busq.current_job().spawn(handler, name))
                jids.append(handle.jid)
            yield Ask(lambda: busq.current_job().save(jids))
            if gate is not None:
                yield Wait(gate)
            return jids

        made: Any = declare(self.bus, executor, parent)
        if finalizer:

            @made.finalize
            async def done(job: busq.FinishedJob) -> None:
                self.finalized.append(job)

        return made

    async def spawned(self, jid: str) -> list[str]:
        """The jids of the children, once all are there; the parent runs or waits then."""

        async def saved() -> Any:
            return (await self.bus.get(jid)).saved

        return list(await until(saved, LONG_S))

    async def states(self, jids: Sequence[str]) -> list[str]:
        return [str((await self.bus.get(jid)).state) for jid in jids]

    async def ended(self, jid: str) -> busq.Job:
        """When its own record says so: what has been decided to stop is shown as cancelled before that."""
        await self.bus.wait(jid, timeout=LONG_S)
        await until(lambda: self._is_written(jid))
        return await self.bus.get(jid)

    async def _is_written(self, jid: str) -> bool:
        return (await self.bus.get(jid)).finished_at is not None


@asynccontextmanager
async def house(url: str, **settings: Any) -> AsyncIterator[House]:
    """A house with a watchdog; whoever uses it starts the worker once its handlers are declared."""
    async with bench(url, **{**PATIENT, **settings}) as b:
        await b.watch()
        yield House(b)


# A parent and its children ---------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_parent_waits_for_its_children_without_a_slot_and_keeps_its_own_result(
    redis_url: str, executor: str
) -> None:
    """There is one slot, and the children need it."""
    async with house(redis_url) as h:
        kind = h.parent(executor, "a", "b", finalizer=False)
        await h.b.work(concurrency=1)
        with capture_logs() as logs:
            parent = await kind.enqueue()
            waiting = await h.b.reaches(parent.jid, "waiting", timeout=LONG_S)
            await until(lambda: [each for each in logs if each["event"] == "job.waiting"], LONG_S)
        assert (waiting.children, waiting.open_children, waiting.depth) == (2, 2, 0)
        jids = waiting.saved
        h.gate("a").open()
        first = await h.ended(jids[0])
        assert (first.state, first.parent, first.depth, first.on_parent_cancel) == (
            "succeeded", parent.jid, 1, "cancel",
        )  # fmt: skip
        assert (await parent.get()).state == "waiting"
        h.gate("b").open()
        job = await h.ended(parent.jid)
        assert (job.state, job.result, job.children, job.open_children) == ("succeeded", jids, 2, 0)


async def test_a_parent_whose_children_have_ended_before_it_returns_waits_for_nobody(redis_url: str) -> None:
    async with house(redis_url) as h:
        gate = h.b.gate()
        kind = h.parent("coroutine", "a", gate=gate, finalizer=False)
        await h.b.work()
        parent = await kind.enqueue()
        h.gate("a").open()
        [jid] = await h.spawned(parent.jid)
        await h.ended(jid)
        gate.open()
        assert (await h.ended(parent.jid)).state == "succeeded"
        assert "waiting" not in await h.b.names(parent.jid)


async def test_a_parent_waits_for_its_childrens_children(redis_url: str) -> None:
    async with house(redis_url) as h:

        @h.bus.job
        async def middle(name: str) -> str:
            return str((await busq.current_job().spawn(h.child, name)).jid)

        kind = h.parent("coroutine", (middle, "a"), finalizer=False)
        await h.b.work()
        parent = await kind.enqueue()
        [between] = await h.spawned(parent.jid)
        await h.b.reaches(between, "waiting", timeout=LONG_S)
        await h.b.reaches(parent.jid, "waiting", timeout=LONG_S)
        h.gate("a").open()
        job = await h.ended(parent.jid)
        grandchild = await h.bus.get((await h.bus.get(between)).result)
        assert (job.state, grandchild.state, grandchild.depth) == ("succeeded", "succeeded", 2)


async def test_children_that_a_producer_enqueues_count_as_those_that_a_handler_spawns(redis_url: str) -> None:
    async with house(redis_url) as h:
        gate = h.b.gate()
        kind = h.parent("coroutine", gate=gate)
        await h.b.work()
        parent = await kind.enqueue()
        await h.b.reaches(parent.jid, "running", timeout=LONG_S)
        late = await h.child.options(parent=parent.jid).enqueue("late")
        gate.open()
        await h.b.reaches(parent.jid, "waiting", timeout=LONG_S)
        later = await h.bus.options(parent=parent.jid).enqueue("child", "later")
        for name in ("late", "later"):
            h.gate(name).open()
        job = await h.ended(parent.jid)
        assert (job.state, job.children) == ("succeeded", 2)
        assert await h.states([late.jid, later.jid]) == ["succeeded", "succeeded"]
        assert [told.children for told in h.finalized] == [2]


# Finalizers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_finalizer_runs_once_after_the_last_child_and_is_told_which_ones_failed(
    redis_url: str, executor: str
) -> None:
    async with house(redis_url) as h:
        kind = h.parent(executor, "a", "-b", "-c")
        await h.b.work()
        parent = await kind.enqueue("word")
        jids = await h.spawned(parent.jid)
        for name in ("-b", "a"):
            h.gate(name).open()
        await h.ended(jids[0])
        await h.ended(jids[1])
        assert h.finalized == []
        h.gate("-c").open()
        job = await h.ended(parent.jid)
        assert (job.state, job.result, job.failed_children) == ("succeeded", jids, 2)
        (told,) = h.finalized
        assert (told.jid, told.kind, told.result, told.saved, told.attempt) == (parent.jid, "parent", jids, jids, 1)
        assert (told.children, told.failed, set(told.failed_children)) == (3, 2, set(jids[1:]))
        (finalizing,) = await h.bus.list(kind="parent/finalize")
        assert (finalizing.state, finalizing.finalize_of, finalizing.queue) == ("succeeded", parent.jid, "default")


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_job_without_children_is_finalized_too(redis_url: str, executor: str) -> None:
    async with house(redis_url) as h:
        kind = h.parent(executor)
        await h.b.work()
        job = await h.ended((await kind.enqueue()).jid)
        assert (job.state, job.result, job.children) == ("succeeded", [], 0)
        assert [(told.jid, told.children, told.failed_children) for told in h.finalized] == [(job.jid, 0, ())]


async def test_a_job_that_failed_is_not_finalized(redis_url: str) -> None:
    async with house(redis_url) as h:
        told: list[Any] = []

        @h.bus.job
        async def fails() -> None:
            raise ValueError("no")

        fails.finalize(told.append)
        await h.b.work()
        job = await h.ended((await fails.enqueue()).jid)
        assert (job.state, job.cause, told) == ("failed", "error", [])
        assert await h.bus.list(kind="fails/finalize") == []


async def test_a_finalizer_that_raises_makes_its_job_fail(redis_url: str) -> None:
    async with house(redis_url) as h:

        @h.bus.job
        async def sums() -> int:
            await busq.current_job().spawn(h.child, "a")
            return 5

        @sums.finalize
        async def raises(job: busq.FinishedJob) -> None:
            raise ValueError("sums do not add up")

        await h.b.work()
        h.gate("a").open()
        parent = await sums.enqueue()
        job = await h.ended(parent.jid)
        assert (job.state, job.cause) == ("failed", "finalize")
        (finalizing,) = await h.bus.list(kind="sums/finalize")
        assert finalizing.error is not None
        assert (finalizing.state, finalizing.attempt, finalizing.error.message) == ("failed", 1, "sums do not add up")
        with pytest.raises(busq.JobFailed):
            await parent.result()


async def test_a_finalizer_is_tried_again_when_it_asks_for_it(redis_url: str) -> None:
    async with house(redis_url) as h:
        tries: list[int] = []

        @h.bus.job
        async def sums() -> int:
            return 5

        @sums.finalize(retries=1)
        def raises_once(job: busq.FinishedJob) -> None:
            tries.append(busq.current_job().attempt)
            if len(tries) == 1:
                raise ValueError("not yet")

        await h.b.work()
        assert await (await sums.enqueue()).result(timeout=LONG_S) == 5
        assert tries == [1, 2]


async def test_a_finalizer_that_is_cancelled_cancels_its_job(redis_url: str) -> None:
    async with house(redis_url) as h:
        began = h.b.gate()

        @h.bus.job
        async def sums() -> int:
            return 5

        @sums.finalize
        async def hangs(job: busq.FinishedJob) -> None:
            began.open()
            await asyncio.Event().wait()

        await h.b.work()
        parent = await sums.enqueue()
        await asyncio.wait_for(began.wait(), LONG_S)
        assert (await parent.get()).state == "waiting"
        (finalizing,) = await h.bus.list(kind="sums/finalize")
        await h.bus.cancel(finalizing.jid)
        assert (await h.ended(parent.jid)).state == "cancelled"


async def test_a_cancelled_parent_stops_its_finalizer(redis_url: str) -> None:
    async with house(redis_url) as h:
        began, stopped = h.b.gate(), []

        @h.bus.job
        async def sums() -> int:
            return 5

        @sums.finalize
        async def hangs(job: busq.FinishedJob) -> None:
            began.open()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.append(busq.current_job().cause)

        await h.b.work()
        parent = await sums.enqueue()
        await asyncio.wait_for(began.wait(), LONG_S)
        answer = await parent.cancel(reason="enough")
        assert (answer.verdict, answer.state) == ("signalled", "cancelling")
        job = await h.ended(parent.jid)
        assert (job.state, job.cause, job.reason, stopped) == ("cancelled", "user", "enough", ["parent"])
        (finalizing,) = await h.bus.list(kind="sums/finalize")
        assert (finalizing.state, finalizing.cause) == ("cancelled", "parent")


@pytest.mark.parametrize("parts", [(), (1, 2, -3)])
async def test_parents_and_finalizers_in_child_processes_are_the_same(
    redis_url: str, tmp_path: Path, parts: tuple[int, ...]
) -> None:
    async with house(redis_url) as h:
        await h.b.work(handlers=tree_handlers.bus.handlers, concurrency=1)
        parent = await h.bus.enqueue("splits", str(tmp_path), *parts)
        job = await h.ended(parent.jid)
        assert (job.state, job.result, job.failed_children) == ("succeeded", {"parts": len(parts)}, min(1, len(parts)))
        *told, failed_children = json.loads((tmp_path / "finalized").read_text())
        failed = [each.jid for each in await h.bus.list(state="failed")]
        assert told == [parent.jid, "splits", list(parts), job.result, job.saved, len(parts), len(failed)]
        assert failed_children == failed
        (finalizing,) = await h.bus.list(kind="splits/finalize")
        assert finalizing.result["pid"] == job.saved["pid"], "one child process ran both"


# Cancelled children ----------------------------------------------------------------------------------------


async def test_a_cancelled_child_leaves_its_siblings_running_and_its_parent_is_cancelled_in_the_end(
    redis_url: str,
) -> None:
    async with house(redis_url) as h:
        kind = h.parent("coroutine", "a", "b")
        await h.b.work()
        parent = await kind.enqueue()
        first, second = await h.spawned(parent.jid)
        await h.b.reaches(parent.jid, "waiting", timeout=LONG_S)
        await h.b.reaches(first, "running", timeout=LONG_S)
        await h.b.reaches(second, "running", timeout=LONG_S)
        await h.bus.cancel(first, reason="not this one")
        assert (await h.ended(first)).cause == "user"
        assert await h.states([second, parent.jid]) == ["running", "waiting"]
        h.gate("b").open()
        assert (await h.ended(second)).state == "succeeded"
        job = await h.ended(parent.jid)
        assert (job.state, h.finalized) == ("cancelled", [])
        assert await h.bus.list(kind="parent/finalize") == []


async def test_a_child_that_is_cancelled_while_its_parent_runs_does_not_stop_it(redis_url: str) -> None:
    async with house(redis_url) as h:
        gate = h.b.gate()
        kind = h.parent("coroutine", "a", gate=gate)
        await h.b.work()
        parent = await kind.enqueue()
        [child] = await h.spawned(parent.jid)
        await h.bus.cancel(child)
        await h.ended(child)
        assert (await parent.get()).state == "running"
        gate.open()
        assert (await h.ended(parent.jid)).state == "cancelled"
        assert h.finalized == []


# Cancelled parents -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_the_cancel_of_a_running_parent_reaches_its_running_queued_and_scheduled_children(
    redis_url: str, executor: str
) -> None:
    """The worker has slots for the parent and one child: another one stays in its queue."""
    async with house(redis_url) as h:
        gate = h.b.gate()
        kind = h.parent(executor, "a", "b", (h.child.options(delay=600.0), "c"), gate=gate)
        await h.b.work(concurrency=2 if executor == "coroutine" else 1)  # a `def` takes no slot of the coroutines
        parent = await kind.enqueue()
        jids = await h.spawned(parent.jid)
        await h.b.reaches(jids[0], "running", timeout=LONG_S)
        assert await h.states(jids[1:]) == ["queued", "scheduled"]
        await parent.cancel(reason="enough", source="tests")
        jobs = [await h.ended(jid) for jid in jids]
        assert [(job.state, job.cause) for job in jobs] == [("cancelled", "parent")] * 3
        assert [job.ended for job in jobs] == ["confirmed", "before_start", "before_start"]
        job = await h.ended(parent.jid)
        assert (job.state, job.cause, job.ended, h.finalized) == ("cancelled", "user", "confirmed", [])
        for each in jobs:
            assert each.hook is not None
            assert (await h.ended(each.hook)).state == "succeeded"
        assert {told.jid for told in h.cleaned} == set(jids)


async def test_the_cancel_of_a_waiting_parent_reaches_its_children_and_their_children(redis_url: str) -> None:
    async with house(redis_url) as h:

        @h.bus.job
        async def middle(name: str) -> str:
            return str((await busq.current_job().spawn(h.child, name)).jid)

        kind = h.parent("coroutine", "a", (middle, "b"))
        await h.b.work()
        parent = await kind.enqueue()
        first, between = await h.spawned(parent.jid)
        await h.b.reaches(parent.jid, "waiting", timeout=LONG_S)
        await h.b.reaches(between, "waiting", timeout=LONG_S)
        (grandchild,) = [job.jid for job in await h.bus.list(kind="child") if job.parent == between]
        answer = await parent.cancel()
        assert (answer.verdict, answer.state) == ("signalled", "cancelling")
        assert answer.deadline is not None
        jobs = [await h.ended(jid) for jid in (parent.jid, first, between, grandchild)]
        assert [(job.state, job.cause) for job in jobs] == [
            ("cancelled", "user"), ("cancelled", "parent"), ("cancelled", "parent"), ("cancelled", "parent"),
        ]  # fmt: skip
        assert h.finalized == []


async def test_a_cancelled_parent_is_cancelling_until_its_running_children_have_ended(redis_url: str) -> None:
    """Its child holds its own cancel off."""
    async with house(redis_url) as h:
        held, go_on = h.b.gate(), h.b.gate()

        @h.bus.job
        async def holds(name: str) -> None:
            async with busq.current_job().shield():
                held.open()
                await go_on.wait()

        kind = h.parent("coroutine", (holds, "a"))
        await h.b.work()
        parent = await kind.enqueue()
        [child] = await h.spawned(parent.jid)
        await asyncio.wait_for(held.wait(), LONG_S)
        await h.b.reaches(parent.jid, "waiting", timeout=LONG_S)
        await parent.cancel()
        await h.b.reaches(child, "cancelling", timeout=LONG_S)
        assert (await parent.get()).state == "cancelling"
        go_on.open()
        child_job, job = await h.ended(child), await h.ended(parent.jid)
        assert child_job.finished_at is not None
        assert job.finished_at is not None
        assert (child_job.state, job.state) == ("cancelled", "cancelled")
        assert child_job.finished_at <= job.finished_at


async def test_a_child_that_shall_wait_goes_on_and_its_cancelled_parent_waits_for_it(redis_url: str) -> None:
    async with house(redis_url) as h:
        kind = h.parent("coroutine", (h.child.options(on_parent_cancel="wait"), "a"), "b")
        await h.b.work()
        parent = await kind.enqueue()
        waits, goes = await h.spawned(parent.jid)
        await h.b.reaches(parent.jid, "waiting", timeout=LONG_S)
        await h.b.reaches(waits, "running", timeout=LONG_S)
        await parent.cancel()
        assert (await h.ended(goes)).cause == "parent"
        assert await h.states([waits, parent.jid]) == ["running", "cancelling"]
        h.gate("a").open()
        assert (await h.ended(waits)).result == "a"
        assert (await h.ended(parent.jid)).state == "cancelled"
        assert h.finalized == []


async def test_a_parent_that_is_cancelled_while_it_runs_waits_for_a_child_that_shall_go_on(redis_url: str) -> None:
    async with house(redis_url) as h:
        kind = h.parent("coroutine", (h.child.options(on_parent_cancel="wait"), "a"), gate=h.b.gate())
        await h.b.work()
        parent = await kind.enqueue()
        [child] = await h.spawned(parent.jid)
        await h.b.reaches(child, "running", timeout=LONG_S)
        with capture_logs() as logs:
            await parent.cancel(reason="enough")
            await until(lambda: [each for each in logs if each["event"] == "job.cancelling"], LONG_S)
        assert await h.states([child, parent.jid]) == ["running", "cancelling"]
        h.gate("a").open()
        job = await h.ended(parent.jid)
        assert (job.state, job.cause, job.reason, job.ended) == ("cancelled", "user", "enough", "confirmed")
        assert await h.states([child]) == ["succeeded"]


async def test_an_abandoned_child_goes_on_alone(redis_url: str) -> None:
    async with house(redis_url) as h:
        kind = h.parent("coroutine", (h.child.options(on_parent_cancel="abandon"), "a"), "b")
        await h.b.work()
        parent = await kind.enqueue()
        alone, _ = await h.spawned(parent.jid)
        await h.b.reaches(parent.jid, "waiting", timeout=LONG_S)
        await h.b.reaches(alone, "running", timeout=LONG_S)
        await parent.cancel()
        assert (await h.ended(parent.jid)).state == "cancelled"
        assert await h.states([alone]) == ["running"]
        h.gate("a").open()
        assert (await h.ended(alone)).result == "a"
        assert (await parent.get()).state == "cancelled"


# Who gains no children -------------------------------------------------------------------------------------


async def test_a_parent_that_is_over_stops_or_never_was_gains_no_children(redis_url: str) -> None:
    async with house(redis_url) as h:
        held, go_on = h.b.gate(), h.b.gate()

        @h.bus.job
        async def holds() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                async with busq.current_job().shield():
                    held.open()
                    await go_on.wait()
            with pytest.raises(busq.Cancelled):
                await busq.current_job().spawn(h.child.options(group="late"), "a")

        await h.b.work()
        stops = await holds.enqueue()
        await asyncio.wait_for(held.wait(), LONG_S)
        await stops.cancel()
        for jid, state in ((stops.jid, "cancelling"), ("never-was", None)):
            with pytest.raises(busq.ParentClosed) as caught:
                await h.child.options(parent=jid, group="late").enqueue("a")
            assert (caught.value.jid, caught.value.state) == (jid, state)
        go_on.open()
        job = await h.ended(stops.jid)
        assert (job.state, job.evidence and job.evidence.error) == ("cancelled", None)
        other = await h.child.enqueue("b")
        h.gate("b").open()
        await h.ended(other.jid)
        for jid, state in ((stops.jid, "cancelled"), (other.jid, "succeeded")):
            with pytest.raises(busq.ParentClosed) as caught:
                await h.bus.options(parent=jid, group="late").enqueue("child", "a")
            assert caught.value.state == state
        assert await h.bus.list(group="late") == []


async def test_the_other_jobs_of_a_call_are_enqueued_when_one_finds_its_parent_closed(redis_url: str) -> None:
    async with house(redis_url) as h:
        orphan = h.child.options(parent="never-was", jid="orphan").spec("a")
        one, two = (h.child.options(jid=jid).spec("a") for jid in ("one", "two"))
        with pytest.raises(busq.ParentClosed):
            await h.bus.enqueue_many([one, orphan, two])
        assert await h.states(["one", "two"]) == ["queued", "queued"]
        with pytest.raises(busq.JobNotFound):
            await h.bus.get("orphan")


@pytest.mark.parametrize("pool", [*EXECUTORS, "process"])
async def test_a_tree_is_at_most_so_many_generations_deep(redis_url: str, pool: str) -> None:
    async with house(redis_url) as h:
        refused: list[str] = []

        def spawns_too_deep() -> Any:
            try:
                yield Ask(lambda: busq.current_job().spawn(h.child, "a"))
            except busq.TooDeep as error:
                refused.append(error.jid)
                return error.jid

        if pool != "process":
            declare(h.bus, pool, spawns_too_deep)
        await h.b.work(handlers=tree_handlers.bus.handlers if pool == "process" else None)
        nowhere = h.bus.options(queue="nowhere")
        jid = (await nowhere.enqueue("child", "a")).jid
        for _ in range(DEEPEST - 1):
            jid = (await h.bus.options(queue="nowhere", parent=jid).enqueue("child", "a")).jid
        deepest = await h.bus.options(parent=jid).enqueue("spawns_too_deep")
        job = await h.ended(deepest.jid)
        assert (job.depth, job.result) == (DEEPEST, deepest.jid)
        leaf = await h.bus.options(queue="nowhere", parent=jid).enqueue("child", "a")
        with pytest.raises(busq.TooDeep) as caught:
            await h.bus.options(queue="nowhere", parent=leaf.jid, group="late").enqueue("child", "a")
        assert (caught.value.jid, caught.value.deepest) == (leaf.jid, DEEPEST)
        assert await h.bus.list(group="late") == []


# Superseding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_newer_job_of_a_key_cancels_the_older_one_queued_or_running(redis_url: str, shards: int) -> None:
    async with house(redis_url, shards=shards) as h:
        keyed: Callable[..., Any] = h.child.options(key="report 7", supersede=True).enqueue
        other = await h.child.options(key="report 8", supersede=True).enqueue("b")
        first = await keyed("a")
        second = await keyed("a")
        job = await h.ended(first.jid)
        assert (job.state, job.cause, job.ended, job.key) == ("cancelled", "superseded", "before_start", "report 7")
        await h.b.work()
        await h.b.reaches(second.jid, "running", timeout=LONG_S)
        third = await keyed("a")
        job = await h.ended(second.jid)
        assert (job.state, job.cause, job.ended) == ("cancelled", "superseded", "confirmed")
        assert {shard_of(each.jid, shards) for each in (first, second, third)} == {place_of_key("report 7") % shards}
        h.gate("a").open()
        assert (await h.ended(third.jid)).result == "a"
        fourth = await keyed("a")
        assert (await h.ended(fourth.jid)).result == "a"
        assert (await third.get()).state == "succeeded"
        h.gate("b").open()
        assert (await h.ended(other.jid)).state == "succeeded"


@pytest.mark.parametrize("executor", EXECUTORS)
async def test_a_spawned_child_takes_the_place_of_an_older_one_too(redis_url: str, executor: str) -> None:
    async with house(redis_url) as h:
        newest = h.child.options(key="k", supersede=True)
        kind = h.parent(executor, (newest, "a"), (newest, "b"), finalizer=False)
        await h.b.work()
        parent = await kind.enqueue()
        older, newer = await h.spawned(parent.jid)
        assert (await h.ended(older)).cause == "superseded"
        h.gate("b").open()
        assert (await h.ended(newer)).state == "succeeded"
        assert (await h.ended(parent.jid)).state == "cancelled"  # one of its children was
