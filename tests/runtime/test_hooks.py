"""
Clean-up after cancelled jobs: `on_cancel` with real workers, in all three pools.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

import busq
from busq.protocol.cancel import Cause, Ended
from busq.store.streams import Streams
from tests.roles import as_role
from tests.runtime import hook_handlers
from tests.runtime.bench import PATIENT, Bench, bench, until

STYLES = ("coroutine", "thread")

STORY = ["requested", "tripped", "observed", "stopped", "finalized", "hook_started", "hook_ended"]


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> str:
    """How the hook is written: `async def`, or `def`."""
    name: str = request.param
    return name


def note(handler: Any, style: str, **options: Any) -> list[busq.CancelledJob]:
    """Give the handler a hook of this style that notes what it was told."""
    told: list[busq.CancelledJob] = []

    async def coroutine(job: busq.CancelledJob) -> None:
        await asyncio.sleep(0)
        told.append(job)

    def thread(job: busq.CancelledJob) -> None:
        assert threading.current_thread() is not threading.main_thread()
        told.append(job)

    handler.on_cancel(**options)(coroutine if style == "coroutine" else thread)
    return told


async def hook_of(b: Bench, jid: str) -> busq.Job:
    """The ended clean-up of a job that ends as cancelled."""
    job = await b.bus.wait(jid, timeout=10)
    assert job.state == "cancelled"
    assert job.hook is not None
    return await b.bus.wait(job.hook, timeout=20)


async def tries(b: Bench, jid: str) -> list[str]:
    """What the job's history tells of its hook: `started`, and how each try ended."""
    found = [event for event in await b.bus.history(jid) if event.name.startswith("hook_")]
    facts = [event.facts.rpartition(" (")[0] for event in found]
    return [
        told.partition(": ")[2] or event.name.removeprefix("hook_") for told, event in zip(facts, found, strict=True)
    ]


def takes(b: Bench, **options: Any) -> Any:
    """A handler that runs until it is cancelled."""

    @b.bus.job(**options)
    async def takes(n: int = 0) -> None:
        await asyncio.Event().wait()

    return takes


# What a hook is told ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", ["coroutine", "thread"])
async def test_a_hook_runs_after_its_handler_has_stopped_and_is_told_of_it(
    redis_url: str, style: str, handler: str
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        saved, order = b.gate(), []

        if handler == "coroutine":

            @b.bus.job
            async def copies(source: Path, /, *more: int, times: int = 1, **named: str) -> None:
                await busq.current_job().save({"part": 7})
                saved.open()
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0.05)
                    order.append("stopped")
        else:

            @b.bus.job
            def copies(source: Path, /, *more: int, times: int = 1, **named: str) -> None:
                busq.current_job().save({"part": 7})
                saved.open()
                busq.current_job().wait_cancelled()
                order.append("stopped")
                busq.current_job().check_cancelled()

        told = note(copies, style)
        await b.work()
        handle = await copies.enqueue(Path("/a"), 1, 2, colour="red")
        await saved.wait()
        await handle.cancel(reason="enough", source="tests")
        hook = await hook_of(b, handle.jid)
        assert (hook.state, hook.attempt, hook.hook_of, hook.saved) == ("succeeded", 1, handle.jid, {"part": 7})
        (job,) = told
        assert order == ["stopped"]
        assert job.args == {"source": Path("/a"), "more": (1, 2), "times": 1, "named": {"colour": "red"}}
        assert (job.jid, job.kind, job.attempt, job.saved) == (handle.jid, "copies", 1, {"part": 7})
        assert (job.cause, job.reason, job.source) == (Cause.USER, "enough", "tests")
        assert job.ended is Ended.CONFIRMED
        assert (await b.names(handle.jid))[-len(STORY) :] == STORY
        (ended,) = [event for event in await handle.history() if event.name == "hook_ended"]
        assert ended.facts == f"try 1: succeeded ({hook.jid})"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """Where handlers in child processes and the test meet; whoever waits there is let go at the end."""
    yield str(tmp_path)
    (tmp_path / "go on").touch()


async def test_a_hook_of_a_process_handler_runs_in_a_child(redis_url: str, folder: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        worker = await b.work(handlers=hook_handlers.bus.handlers, concurrency=2)
        handle = await b.bus.enqueue("writes", folder, parts=5)
        await until(lambda: (Path(folder) / "running").exists(), timeout=20)
        children = set(worker._processes.pids)
        await handle.cancel()
        hook = await hook_of(b, handle.jid)
        assert hook.state == "succeeded", hook.error
        assert hook.result["pid"] in children | set(worker._processes.pids)
        pid = (await handle.get()).saved["pid"]
        told = f"{handle.jid} 5 {pid} confirmed writes/on_cancel {{'pid': {pid}}}"
        assert (Path(folder) / "removed").read_text() == told


async def test_a_hook_in_a_child_is_ended_at_its_limit_and_one_that_dies_is_tried_again(
    redis_url: str, folder: str
) -> None:
    async with bench(redis_url) as b:
        await b.watch()
        await b.work(handlers=hook_handlers.bus.handlers, concurrency=2)
        hangs, dies = [await b.bus.options(delay=60).enqueue(kind, folder) for kind in ("waits", "dies")]
        await b.bus.cancel_many([hangs.jid, dies.jid])
        hung, died = await hook_of(b, hangs.jid), await hook_of(b, dies.jid)
        assert (hung.state, hung.cause, hung.attempt) == ("failed", "timed_out", 1)
        assert (died.state, died.failures) == ("failed", 2)
        assert died.error is not None
        assert "exit" in died.error.message
        assert [(await handle.get()).state for handle in (hangs, dies)] == ["cancelled"] * 2


async def test_current_job_in_a_hook_is_the_hooks_own_job(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        handler = takes(b)
        seen = []

        @handler.on_cancel
        async def notes(job: busq.CancelledJob) -> None:
            own = busq.current_job()
            seen.append((own.jid, own.kind, own.attempt, own.cancelled, own.saved, job.saved))
            await own.save("mine")

        await b.work()
        handle = await handler.enqueue()
        await handle.cancel()
        hook = await hook_of(b, handle.jid)
        assert seen == [(hook.jid, "takes/on_cancel", 1, False, None, None)]
        assert hook.saved == "mine"
        assert (await handle.get()).saved is None


async def test_a_hook_is_told_of_an_abandoned_handler(redis_url: str, style: str) -> None:
    """Nobody could prove that the handler stopped: the clean-up must know that its code may still be there."""
    async with bench(redis_url) as b:
        gate = b.gate()

        @b.bus.job
        def deaf() -> None:
            gate.block()

        told = note(deaf, style)
        await b.work(concurrency=4)
        await b.watch()
        handle = await deaf.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        assert (await hook_of(b, handle.jid)).state == "succeeded"
        assert not gate.is_open
        assert [job.ended for job in told] == [Ended.ABANDONED]
        assert (await b.names(handle.jid)).index("finalized") < (await b.names(handle.jid)).index("hook_started")


# Jobs that never started -----------------------------------------------------------------------------------


async def queued(b: Bench, handler: Any) -> str:
    return str((await handler.enqueue(3)).jid)


async def scheduled(b: Bench, handler: Any) -> str:
    return str((await handler.options(delay=60).enqueue(3)).jid)


async def tombstoned(b: Bench, handler: Any) -> str:
    await b.bus.cancel("early", tombstone=60)
    await handler.options(jid="early").enqueue(3)
    return "early"


@pytest.mark.parametrize("never_started", [True, False])
@pytest.mark.parametrize("way", [queued, scheduled, tombstoned])
async def test_a_hook_runs_for_a_job_that_never_started_unless_it_opted_out(
    redis_url: str, way: Any, never_started: bool
) -> None:
    """No worker has ever been there: the producer knows the hook."""
    async with bench(redis_url) as b:
        handler = takes(b)
        told = note(handler, "coroutine", never_started=never_started)
        jid = await way(b, handler)
        await b.bus.cancel(jid, reason="no")
        job = await b.bus.get(jid)
        assert (job.state, job.ended) == ("cancelled", "before_start")
        await b.work()
        if not never_started:
            assert job.hook is None
            return
        assert (await hook_of(b, jid)).state == "succeeded"
        (told_of,) = told
        assert (told_of.attempt, told_of.ended, told_of.args) == (0, Ended.BEFORE_START, {"n": 3})


@pytest.mark.parametrize("never_started", [True, False])
async def test_a_job_that_waits_for_its_retry_has_had_its_attempt(redis_url: str, never_started: bool) -> None:
    async with bench(redis_url, backoff_s=60.0, backoff_max_s=60.0) as b:

        @b.bus.job(retries=3)
        async def fails() -> None:
            raise ValueError("no")

        told = note(fails, "coroutine", never_started=never_started)
        await b.work()
        handle = await fails.enqueue()
        await b.reaches(handle.jid, "scheduled")
        await handle.cancel()
        assert (await hook_of(b, handle.jid)).state == "succeeded"
        assert [(job.ended, job.attempt) for job in told] == [(Ended.BEFORE_START, 1)]


@pytest.mark.parametrize("delay", [None, 60])
async def test_a_producer_without_the_code_need_not_know_of_the_hook_of_a_worker(
    redis_url: str, delay: int | None
) -> None:
    async with bench(redis_url) as b:
        told = note(takes(b), "coroutine")
        await b.end(await b.work())
        async with busq.Bus(as_role(redis_url, "client"), **b.given) as producer:
            handle = await producer.options(delay=delay).enqueue("takes", 4)
            await handle.cancel()
        await b.work()
        assert (await hook_of(b, handle.jid)).state == "succeeded"
        assert [job.args for job in told] == [{"n": 4}]


async def test_a_hook_that_nobody_knew_of_runs_when_its_worker_comes_at_last(redis_url: str) -> None:
    """Neither producer nor any worker so far had the handler's code; the entry is still there and brings it up."""
    async with bench(redis_url) as b:
        told = note(takes(b), "coroutine")
        async with busq.Bus(as_role(redis_url, "client"), **b.given) as producer:
            handle = await producer.enqueue("takes", 4)
            await handle.cancel()
        assert (await b.bus.get(handle.jid)).hook is None
        await b.work()

        async def known() -> bool:
            return (await b.bus.get(handle.jid)).hook is not None

        await until(known)
        assert (await hook_of(b, handle.jid)).state == "succeeded"
        assert [job.args for job in told] == [{"n": 4}]


async def test_workers_say_again_which_hooks_they_have(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that lost its data has lost that, too."""
    monkeypatch.setattr("busq.worker.control.CARD_EVERY", 2)
    async with bench(redis_url) as b:
        note(takes(b), "coroutine")
        await b.work()
        store = await b.store()
        key = store.keys(0).hooks
        assert (await store.redis.hget(key, "takes")).startswith(b"always ")
        assert await store.redis.hexists(key, "takes/on_cancel") == 0
        await store.redis.delete(key)
        await until(lambda: store.redis.hexists(key, "takes"))


# Failure ---------------------------------------------------------------------------------------------------


async def test_a_hook_that_raises_is_retried_and_then_failed_and_its_job_stays_as_it_was(
    redis_url: str, style: str
) -> None:
    async with bench(redis_url) as b:
        handler = takes(b)
        seen: list[int] = []

        def raises() -> None:
            seen.append(busq.current_job().attempt)
            raise KeyError("gone")

        if style == "coroutine":

            @handler.on_cancel(retries=2)
            async def fails(job: busq.CancelledJob) -> None:
                raises()
        else:

            @handler.on_cancel(retries=2)
            def fails(job: busq.CancelledJob) -> None:
                raises()

        await b.watch()
        handle = await handler.enqueue()
        await handle.cancel(reason="enough")
        before = await handle.get()
        with capture_logs() as logs:
            await b.work()
            hook = await hook_of(b, handle.jid)
            await until(lambda: sum(line["event"] == "hook.failed" for line in logs) == 3)
        assert (hook.state, hook.failures, hook.cause) == ("failed", 3, "error")
        assert hook.error is not None
        assert hook.error.type == "KeyError"
        assert seen == [1, 2, 3]
        assert await handle.get() == before
        again = ["started", "failed: KeyError, retried"]
        assert await tries(b, handle.jid) == [*again, *again, "started", "failed: KeyError"]
        failed = [line for line in logs if line["event"] == "hook.failed"]
        assert all(line["log_level"] == "error" for line in failed)


async def test_a_hook_is_retried_three_times_unless_it_says_otherwise(redis_url: str) -> None:
    async with bench(redis_url) as b:
        handler = takes(b)

        @handler.on_cancel
        async def fails(job: busq.CancelledJob) -> None:
            raise ValueError

        await b.watch()
        handle = await handler.enqueue()
        await handle.cancel()
        await b.work()
        assert (await hook_of(b, handle.jid)).failures == 4


@pytest.mark.parametrize("limit", ["its own", "the setting"])
async def test_a_hook_that_hangs_is_stopped_at_its_limit(redis_url: str, style: str, limit: str) -> None:
    async with bench(redis_url, hook_limit_s=0.1) as b:
        handler = takes(b)
        told: list[Any] = []
        options: dict[str, Any] = {"timeout": 0.05, "retries": 1} if limit == "its own" else {"retries": 1}

        if style == "coroutine":

            @handler.on_cancel(**options)
            async def hangs(job: busq.CancelledJob) -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    told.append(busq.current_job().cause)
        else:

            @handler.on_cancel(**options)
            def hangs(job: busq.CancelledJob) -> None:
                busq.current_job().wait_cancelled()
                told.append(busq.current_job().cause)
                busq.current_job().check_cancelled()

        await b.watch()
        handle = await handler.enqueue()
        await handle.cancel()
        with capture_logs() as logs:
            await b.work()
            hook = await hook_of(b, handle.jid)
        assert (hook.state, hook.cause, hook.failures) == ("failed", "timed_out", 2)
        assert hook.timeout_s == (0.05 if limit == "its own" else 0.1)
        assert hook.grace_s == 1.0
        assert told == [Cause.TIMEOUT] * 2
        assert await tries(b, handle.jid) == ["started", "timed_out, retried", "started", "timed_out"]
        assert [line["cause"] for line in logs if line["event"] == "hook.failed"] == ["timed_out"] * 2
        assert (await handle.get()).state == "cancelled"


async def test_a_hook_whose_jobs_arguments_do_not_fit_fails_and_says_so(redis_url: str) -> None:
    async with bench(redis_url) as b:
        told = note(takes(b), "coroutine")
        async with busq.Bus(as_role(redis_url, "client"), **b.given) as producer:
            handle = await producer.enqueue("takes", "three")
            await handle.cancel()
        await b.work()

        async def known() -> bool:
            return (await b.bus.get(handle.jid)).hook is not None

        await until(known)
        hook = await hook_of(b, handle.jid)
        assert (hook.state, hook.cause, hook.attempt) == ("failed", "bad_arguments", 1)
        assert hook.error is not None
        assert "argument 'n' takes int" in hook.error.message
        assert told == []


# Who runs it -----------------------------------------------------------------------------------------------


async def test_a_drain_hands_a_running_hook_back_and_another_worker_runs_it(redis_url: str, style: str) -> None:
    async with bench(redis_url) as b:
        handler = takes(b)
        gate, runs = b.gate(), []

        if style == "coroutine":

            @handler.on_cancel(retries=0)
            async def holds(job: busq.CancelledJob) -> None:
                runs.append(busq.current_job().attempt)
                await gate.wait()
        else:

            @handler.on_cancel(retries=0)
            def holds(job: busq.CancelledJob) -> None:
                own = busq.current_job()
                runs.append(own.attempt)
                while not gate.block(0.003):
                    own.check_cancelled()

        handle = await handler.enqueue()
        await handle.cancel()
        worker = await b.work()
        await until(lambda: runs)
        await b.end(worker)
        gate.open()
        await b.work()
        hook = await hook_of(b, handle.jid)
        assert (hook.state, hook.attempt, hook.failures, hook.losses) == ("succeeded", 2, 0, 0)
        assert runs == [1, 2]
        assert await tries(b, handle.jid) == ["started", "handed_back", "started", "succeeded"]


@pytest.mark.parametrize("state", ["queued", "running"])
async def test_many_cancels_at_once_run_one_hook(redis_url: str, state: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        handler = takes(b)
        told = note(handler, "coroutine")
        if state == "running":
            await b.work()
        handle = await handler.enqueue()
        await b.reaches(handle.jid, state)
        await asyncio.gather(*(handle.cancel() for _ in range(10)))
        if state == "queued":
            await b.work()
        assert (await hook_of(b, handle.jid)).state == "succeeded"
        await handle.cancel()
        assert len(told) == 1
        assert (await b.names(handle.jid)).count("hook_started") == 1
        assert (await b.bus.stats()).total["hooks"] == 1


@pytest.mark.parametrize("own", ["mine", None])
async def test_a_hook_runs_where_its_job_was_sent(redis_url: str, own: str | None) -> None:
    """A worker with the handler's code serves the queue that the job was sent to, whatever the handler's own one is."""
    async with bench(redis_url) as b:
        handler = takes(b, queue=own)
        told = note(handler, "thread")
        worker = await b.work(queues=["elsewhere"])
        handle = await handler.options(queue="elsewhere").enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        hook = await hook_of(b, handle.jid)
        assert (hook.state, hook.queue) == ("succeeded", "elsewhere/on_cancel")
        assert len(told) == 1
        (member,) = await b.bus.workers()
        assert member.card is not None
        assert (member.name, member.card.queues) == (worker.name, ["elsewhere"])
        assert {each.queue for each in (await b.bus.stats()).queues} == {"elsewhere", "elsewhere/on_cancel"}
        assert [job.jid for job in await b.bus.list(queue="elsewhere/on_cancel")] == [hook.jid]
        assert [job.jid for job in await b.bus.list(kind="takes")] == [handle.jid]


async def test_a_worker_whose_handlers_have_no_hooks_reads_no_queue_of_hooks(redis_url: str) -> None:
    async with bench(redis_url) as b:
        takes(b)
        worker = await b.work()
        assert [queue for _, queue in worker._streams.places] == ["default"]


async def test_a_running_hook_may_be_cancelled_by_its_own_jid(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        handler = takes(b)
        running = b.gate()

        @handler.on_cancel
        async def holds(job: busq.CancelledJob) -> None:
            running.open()
            await asyncio.Event().wait()

        await b.work()
        handle = await handler.enqueue()
        await handle.cancel()
        await running.wait()
        jid = (await handle.get()).hook or ""
        assert (await b.bus.cancel(jid)).verdict == "signalled"
        hook = await b.bus.wait(jid, timeout=10)
        assert (hook.state, hook.ended, hook.hook) == ("cancelled", "confirmed", None)
        assert await tries(b, handle.jid) == ["started", "cancelled, confirmed"]


@pytest.mark.parametrize("ends", ["returns", "raises", "returns in time"])
async def test_a_job_that_ends_otherwise_runs_no_hook(redis_url: str, ends: str) -> None:
    async with bench(redis_url, **PATIENT) as b:

        @b.bus.job(late_success="keep")
        async def ends_so() -> None:
            if ends == "raises":
                raise ValueError
            if ends == "returns in time":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    return

        told = note(ends_so, "coroutine")
        await b.work()
        handle = await ends_so.enqueue()
        if ends == "returns in time":
            await b.reaches(handle.jid, "running")
        else:
            await handle.wait(timeout=10)
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert job.state == ("failed" if ends == "raises" else "succeeded")
        assert job.hook is None
        assert told == []
        assert "hooks" not in (await b.bus.stats()).total


async def test_a_hook_cannot_be_enqueued(redis_url: str) -> None:
    async with bench(redis_url) as b:
        note(takes(b), "coroutine")
        with pytest.raises(busq.UsageError, match="is an on_cancel hook"):
            await b.bus.enqueue("takes/on_cancel")
        async with busq.Bus(as_role(redis_url, "client")) as producer:
            with pytest.raises(busq.UsageError, match="'/' at position 5"):
                await producer.enqueue("takes/on_cancel")


@pytest.mark.parametrize("backlog", [0, 40])
async def test_a_small_pool_for_hooks_does_not_make_the_reads_of_other_queues_small(
    redis_url: str, backlog: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads for hooks beside a hundred coroutines: jobs are read as if there were no hooks, and hooks are run."""
    sizes: list[tuple[tuple[str, ...], int]] = []
    read = Streams.read

    async def noting(self: Streams, places: Any, *, each: int, block_ms: int = 0) -> Any:
        sizes.append((tuple(queue for _, queue in places), each))
        return await read(self, places, each=each, block_ms=block_ms)

    monkeypatch.setattr(Streams, "read", noting)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    async with bench(redis_url) as b:

        @b.bus.job
        async def short() -> None: ...

        told = note(short, "thread")
        cancelled = await b.bus.enqueue_many(short.spec() for _ in range(backlog))
        await b.bus.cancel_many(handle.jid for handle in cancelled)
        handles = await b.bus.enqueue_many(short.spec() for _ in range(200))
        await b.work()
        for handle in handles:
            await handle.wait(timeout=10)
        await until(lambda: len(told) == backlog, timeout=20)
        assert max(each for queues, each in sizes if queues == ("default",)) == 50
        assert max(each for queues, each in sizes if "default/on_cancel" in queues) <= 2
        for handle in cancelled:
            assert (await hook_of(b, handle.jid)).attempt == 1


async def test_a_worker_that_leaves_leaves_nothing_in_the_queues_of_hooks(redis_url: str) -> None:
    """Its name goes from the roster, so what stood under it in a stream would be looked for by nobody."""
    async with bench(redis_url) as b:
        note(takes(b), "coroutine")
        worker = await b.work()
        handle = await b.bus.enqueue("takes")
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        await hook_of(b, handle.jid)
        await b.work()
        store = await b.store()
        stream = store.keys(0).stream("default/on_cancel")

        async def readers() -> set[str]:
            return {each["name"].decode() for each in await store.redis.xinfo_consumers(stream, "busq")}

        assert worker.name in await readers()
        await b.end(worker)
        assert worker.name not in await readers()
