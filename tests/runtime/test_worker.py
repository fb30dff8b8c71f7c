"""
One story, told to both executors: what a handler does, what becomes of its job, and which events tell of it.

Whatever an executor can do, it must do alike; where they differ honestly (a thread cannot be forced), the test says
so by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import threading
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import pytest

import busq
from busq.protocol.cancel import Cause, Ended
from tests.roles import as_role
from tests.runtime.bench import CANCELLATIONS, EXECUTORS, PATIENT, UNHURRIED, Ask, Bench, Wait, bench, declare, until

Steps = Generator[Wait | Ask, Any, Any]

CANCELLED_STORY = ["enqueued", "started", "requested", "tripped", "observed", "stopped", "finalized"]


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> str:
    """Each executor in turn."""
    name: str = request.param
    return name


# Without a cancel ----------------------------------------------------------------------------------------


async def test_a_job_runs_and_its_value_comes_back(redis_url: str, executor: str) -> None:
    async with bench(redis_url) as b:

        def doubled(n: int) -> Steps:
            yield from ()
            return n * 2

        kind = declare(b.bus, executor, doubled)
        await b.work()
        handle = await kind.enqueue(21)
        assert await handle.result(timeout=10) == 42
        assert await b.names(handle.jid) == ["enqueued", "started", "finalized"]


async def test_a_job_that_raises_is_failed_with_its_error(redis_url: str, executor: str) -> None:
    async with bench(redis_url) as b:

        def broken() -> Steps:
            yield from ()
            raise ValueError("no such film")

        kind = declare(b.bus, executor, broken)
        await b.work()
        handle = await kind.enqueue()
        job = await handle.wait(timeout=10)
        assert (job.state, job.cause, job.failures, job.losses) == ("failed", "error", 1, 0)
        assert job.error is not None
        assert (job.error.type, job.error.message) == ("ValueError", "no such film")
        assert "broken" in job.error.traceback
        with pytest.raises(busq.JobFailed, match="no such film"):
            await handle.result()


async def test_a_failed_job_is_retried_with_backoff_until_none_is_left(redis_url: str, executor: str) -> None:
    async with bench(redis_url) as b:
        seen: list[int] = []

        def broken() -> Steps:
            yield from ()
            seen.append(busq.current_job().attempt)
            raise ValueError

        kind = declare(b.bus, executor, broken, retries=2)
        await b.work()
        await b.watch()
        handle = await kind.enqueue()
        job = await handle.wait(timeout=10)
        assert seen == [1, 2, 3]
        assert (job.state, job.attempt, job.failures) == ("failed", 3, 3)
        assert await b.names(handle.jid) == [
            "enqueued",
            *["started", "retried", "promoted"] * 2,
            "started",
            "finalized",
        ]
        events = itertools.pairwise(await b.bus.history(handle.jid))
        waits = [after.at - before.at for before, after in events if before.name == "retried"]  # type: ignore[operator]
        assert [wait >= timedelta(seconds=least) for wait, least in zip(waits, (0.01, 0.02), strict=True)] == [True] * 2


async def test_a_retried_job_may_succeed(redis_url: str, executor: str) -> None:
    async with bench(redis_url) as b:

        def second_time_lucky() -> Steps:
            yield from ()
            if busq.current_job().attempt == 1:
                raise ValueError
            return "done"

        kind = declare(b.bus, executor, second_time_lucky, retries=1)
        await b.work()
        await b.watch()
        handle = await kind.enqueue()
        assert await handle.result(timeout=10) == "done"
        job = await handle.get()
        assert (job.failures, job.attempt, job.error) == (1, 2, job.error)


@pytest.mark.parametrize("exit_", [SystemExit(3), KeyboardInterrupt("stop")])
async def test_an_exit_in_a_handler_is_its_failure_and_not_the_workers_end(
    redis_url: str, executor: str, exit_: BaseException
) -> None:
    async with bench(redis_url) as b:

        def leaves() -> Steps:
            yield from ()
            raise exit_

        def stays() -> Steps:
            yield from ()
            return "here"

        first, second = declare(b.bus, executor, leaves), declare(b.bus, executor, stays)
        await b.work()
        job = await (await first.enqueue()).wait(timeout=10)
        assert (job.state, job.cause) == ("failed", "error")
        assert job.error is not None
        assert type(exit_).__name__ in job.error.message
        assert await (await second.enqueue()).result(timeout=10) == "here"


class Odd(BaseException):
    """Neither an Exception nor a cancel, and it has no words."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "raised",
    [Odd(), asyncio.CancelledError("by nobody"), busq.Cancelled(Cause.USER), GeneratorExit(), StopAsyncIteration()],
    ids=lambda raised: type(raised).__name__,
)
async def test_whatever_a_handler_raises_unasked_is_a_failure(
    redis_url: str, executor: str, raised: BaseException
) -> None:
    """Also a cancellation, when nobody asked for it."""
    async with bench(redis_url) as b:

        def raises() -> Steps:
            yield from ()
            raise raised

        kind = declare(b.bus, executor, raises)
        worker = await b.work()
        job = await (await kind.enqueue()).wait(timeout=10)
        assert (job.state, job.cause, job.ended) == ("failed", "error", None)
        assert not worker.running


async def test_a_handler_that_runs_too_long_fails_and_is_retried_by_policy(redis_url: str, executor: str) -> None:
    async with bench(redis_url) as b:
        gate, causes = b.gate(), []

        def slow() -> Steps:
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                causes.append(busq.current_job().cause)
                raise

        kind = declare(b.bus, executor, slow, timeout=0.05, retries=1)
        await b.work()
        await b.watch()
        handle = await kind.enqueue()
        job = await handle.wait(timeout=10)
        assert (job.state, job.cause, job.failures, job.ended) == ("failed", "timed_out", 2, None)
        assert causes == [Cause.TIMEOUT, Cause.TIMEOUT]
        assert job.error is not None
        assert "0.05 s" in job.error.message


# Cancels -------------------------------------------------------------------------------------------------


async def test_an_observed_cancel_is_confirmed(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()
        seen: list[Any] = []

        def waits() -> Steps:
            try:
                yield Wait(gate)
            finally:
                job = busq.current_job()
                seen.append((job.cancelled, job.cause, job.reason))

        kind = declare(b.bus, executor, waits, retries=5)
        await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        answer = await handle.cancel(reason="deleted", source="api")
        assert (answer.verdict, answer.state) == ("signalled", "cancelling")
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended, job.cause, job.reason, job.source, job.attempt, job.failures) == (
            "cancelled", "confirmed", "user", "deleted", "api", 1, 0,
        )  # fmt: skip
        assert job.evidence is not None
        assert job.evidence.outcome == "cancelled"
        assert seen == [(True, Cause.USER, "deleted")]
        assert await b.names(handle.jid) == CANCELLED_STORY
        with pytest.raises(busq.JobCancelled, match="deleted"):
            await handle.result()


async def test_a_thread_that_ends_without_having_observed_is_completed_with_its_result_as_evidence(
    redis_url: str,
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()

        def busy() -> Steps:
            yield Wait(gate, checking=False)
            return "my work"

        kind = declare(b.bus, "thread", busy)
        await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        await until(lambda: _tripped(b, handle.jid))
        gate.open()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended, job.result) == ("cancelled", "completed", None)
        assert job.evidence is not None
        assert (job.evidence.outcome, job.evidence.result) == ("succeeded", "my work")
        assert await b.names(handle.jid) == [name for name in CANCELLED_STORY if name != "observed"]


async def test_a_coroutine_that_blocked_its_loop_did_not_observe(redis_url: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        verdicts: list[str] = []

        @b.bus.job
        async def blocks() -> str:
            jid = busq.current_job().jid

            def ask() -> None:
                with_its_own = busq.Bus(as_role(redis_url, "client"))
                verdicts.append(with_its_own.blocking.cancel(jid).verdict)
                with_its_own.blocking.close()

            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
            return "my work"

        await b.work()
        job = await (await blocks.enqueue()).wait(timeout=10)
        assert verdicts == ["signalled"]
        assert (job.state, job.ended) == ("cancelled", "completed")
        assert job.evidence is not None
        assert (job.evidence.outcome, job.evidence.result) == ("succeeded", "my work")


async def _tripped(b: Bench, jid: str) -> bool:
    return "tripped" in await b.names(jid)


async def test_a_cancelled_handler_that_returns_anyway_stays_cancelled(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()

        def finishes() -> Steps:
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                return "finished all the same"

        kind = declare(b.bus, executor, finishes)
        await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended, job.result) == ("cancelled", "confirmed", None)
        assert job.evidence is not None
        assert (job.evidence.outcome, job.evidence.result) == ("succeeded", "finished all the same")


async def test_late_success_keep_makes_a_normal_return_count(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()

        def finishes() -> Steps:
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                return "kept"

        kind = declare(b.bus, executor, finishes, late_success="keep")
        await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel(reason="too late")
        assert await handle.result(timeout=10) == "kept"
        job = await handle.get()
        assert (job.state, job.reason, job.ended) == ("succeeded", "too late", None)
        assert "requested" in await b.names(handle.jid)


async def test_a_cancelled_handler_that_fails_is_not_retried(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate, starts = b.gate(), []

        def fails() -> Steps:
            starts.append(1)
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                raise ValueError("while tidying up") from None

        kind = declare(b.bus, executor, fails, retries=5)
        await b.work()
        await b.watch()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended, job.failures, len(starts)) == ("cancelled", "confirmed", 0, 1)
        assert job.evidence is not None
        assert job.evidence.error is not None
        assert job.evidence.error.message == "while tidying up"


async def test_a_group_of_nothing_but_cancellations_is_one(redis_url: str) -> None:
    """As a `TaskGroup` around cancelled tasks raises it."""
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()

        @b.bus.job
        async def groups() -> None:
            try:
                await gate.wait()
            except asyncio.CancelledError as error:
                raise BaseExceptionGroup("both", [error, BaseExceptionGroup("in", [error])]) from None

        await b.work()
        handle = await groups.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert job.evidence is not None
        assert (job.state, job.ended, job.evidence.outcome) == ("cancelled", "confirmed", "cancelled")


@pytest.mark.parametrize("times", [1, 10])
async def test_a_handler_that_swallows_the_cancel_a_few_times_is_still_stopped(
    redis_url: str, executor: str, times: int
) -> None:
    """A thread's next check says so again; a coroutine is cancelled again every 50 ms by force."""
    async with bench(redis_url, force_s=5.0) as b:
        gate = b.gate()
        swallowed: list[int] = []

        def stubborn() -> Steps:
            while True:
                try:
                    yield Wait(gate)
                except CANCELLATIONS:
                    if len(swallowed) == times:
                        raise
                    swallowed.append(1)

        kind = declare(b.bus, executor, stubborn, grace=0.05)
        await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended, len(swallowed)) == ("cancelled", "confirmed", times)
        assert await b.names(handle.jid) == CANCELLED_STORY


async def test_a_handler_that_swallows_for_ever_is_abandoned_and_counted_until_it_stops(
    redis_url: str, executor: str
) -> None:
    async with bench(redis_url) as b:
        gate = b.gate()

        def deaf() -> Steps:
            while not gate.is_open:
                try:
                    yield Wait(gate)
                except CANCELLATIONS:
                    continue
            return "at last"

        kind = declare(b.bus, executor, deaf)
        worker = await b.work(concurrency=1)
        await b.watch()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        answer = await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended) == ("cancelled", "abandoned")
        assert answer.deadline is not None
        assert job.finished_at is not None
        assert job.finished_at >= answer.deadline
        await until(lambda: worker.leftovers == 1 and not worker.running)
        suspects = (await b.bus.stats()).suspects
        assert suspects == 1
        second = await kind.enqueue()  # the slot was given up with it
        await b.reaches(second.jid, "running")
        gate.open()
        await until(lambda: worker.leftovers == 0)
        assert await second.result(timeout=10) == "at last"
        await until(lambda: _no_suspects(b))
        assert (await handle.get()).state == "cancelled"


async def _no_suspects(b: Bench) -> bool:
    return (await b.bus.stats()).suspects == 0


async def test_once_tripped_every_later_check_says_so(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()
        said: list[Any] = []

        def swallows() -> Steps:
            job = busq.current_job()
            with contextlib.suppress(*CANCELLATIONS):
                yield Wait(gate)
            for _ in range(3):
                try:
                    job.check_cancelled()
                except busq.Cancelled as error:
                    said.append(error.cause)
            try:
                job.progress(0.5)
            except busq.Cancelled:
                said.append("progress")
            said.append(job.cancelled)

        kind = declare(b.bus, executor, swallows)
        await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert said == [Cause.USER] * 3 + ["progress", True]
        assert (job.state, job.ended) == ("cancelled", "confirmed")


async def test_clean_up_may_await_during_the_grace(redis_url: str) -> None:
    """One `CancelledError`, and later awaits work."""
    async with bench(redis_url, **PATIENT) as b:
        gate, done = b.gate(), []

        @b.bus.job
        async def tidy() -> None:
            try:
                await gate.wait()
            finally:
                await asyncio.sleep(0.02)
                await busq.current_job().save({"tidied": True})
                done.append(1)

        await b.work()
        handle = await tidy.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.ended, job.saved, done) == ("confirmed", {"tidied": True}, [1])


def _forced_in_time(executor: str) -> dict[str, Any]:
    """What can be forced shall be, before a watchdog says that it could not; the other waits for its deadline."""
    return UNHURRIED if executor == "coroutine" else {}


async def test_the_second_request_changes_neither_cause_nor_reason_and_a_shorter_grace_hastens(
    redis_url: str, executor: str
) -> None:
    async with bench(redis_url, **PATIENT, **_forced_in_time(executor)) as b:
        gate, freed = b.gate(), b.gate()

        def lingers() -> Steps:
            try:
                yield Wait(gate)
            except CANCELLATIONS:
                yield Wait(freed, checking=False)

        kind = declare(b.bus, executor, lingers, grace=60)
        await b.work()
        await b.watch()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        first = await handle.cancel(reason="one")
        await until(lambda: _tripped(b, handle.jid))
        second = await handle.cancel(reason="two", grace=0.05)
        assert second.verdict == "already_cancelling"
        assert first.deadline is not None
        assert second.deadline is not None
        assert second.deadline < first.deadline
        job = await handle.wait(timeout=10)
        assert (job.reason, job.state) == ("one", "cancelled")
        # Force cancels a coroutine's clean-up; a thread's runs on.
        assert job.ended == ("confirmed" if executor == "coroutine" else "abandoned")
        assert (await b.names(handle.jid)).count("hastened") == 1


async def test_many_cancels_at_once_are_one(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()

        def waits() -> Steps:
            yield Wait(gate)

        kind = declare(b.bus, executor, waits)
        await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        answers = await asyncio.gather(*(handle.cancel(reason=str(n)) for n in range(20)))
        verdicts = [answer.verdict for answer in answers]
        assert verdicts.count(busq.Verdict.SIGNALLED) == 1
        job = await handle.wait(timeout=10)
        assert job.reason == str(verdicts.index(busq.Verdict.SIGNALLED))
        assert await b.names(handle.jid) == CANCELLED_STORY


# What a handler knows ------------------------------------------------------------------------------------


async def test_current_job_tells_who_we_are(redis_url: str, executor: str) -> None:
    async with bench(redis_url) as b:

        def told() -> Steps:
            yield from ()
            job = busq.current_job()
            return [job.jid, job.kind, job.attempt, job.cancelled, job.cause, job.reason, job.saved]

        kind = declare(b.bus, executor, told)
        await b.work()
        handle = await kind.options(jid="film-1").enqueue()
        assert await handle.result(timeout=10) == ["film-1", "told", 1, False, None, "", None]


def test_current_job_outside_a_handler_says_what_would_do() -> None:
    with pytest.raises(busq.NoCurrentJob, match="handler"):
        busq.current_job()


async def test_what_a_handler_sets_in_its_context_does_not_leak_into_the_next_one(
    redis_url: str, executor: str
) -> None:
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="")
    async with bench(redis_url) as b:

        def sets(word: str) -> Steps:
            yield from ()
            before = mine.get()
            mine.set(word)
            return [before, mine.get(), busq.current_job().jid]

        kind = declare(b.bus, executor, sets)
        await b.work(concurrency=1)
        for word in ("a", "b", "c"):
            handle = await kind.enqueue(word)
            assert await handle.result(timeout=10) == ["", word, handle.jid]


async def test_progress_travels_with_the_beat_and_is_a_checkpoint(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate, after = b.gate(), []

        def reports() -> Steps:
            job = busq.current_job()
            job.progress(0.25, "reading\n" + "x" * 500)
            while not gate.is_open:
                try:
                    yield Wait(gate)
                except CANCELLATIONS:
                    after.append(1)
                    job.progress(0.5)

        kind = declare(b.bus, executor, reports)
        await b.work()
        handle = await kind.enqueue()

        async def told() -> busq.Job | None:
            job = await handle.get()
            return job if job.progress is not None else None

        job = await until(told)
        assert job is not None
        assert job.progress == 0.25
        assert job.progress_note.startswith("reading x")
        assert len(job.progress_note) == 200
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.ended, after) == ("confirmed", [1])


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), "half", None])
async def test_progress_that_is_no_fraction_is_refused(redis_url: str, fraction: Any) -> None:
    async with bench(redis_url) as b:

        @b.bus.job
        async def reports() -> str:
            with pytest.raises(busq.UsageError, match="0 to 1"):
                busq.current_job().progress(fraction)
            return "refused"

        await b.work()
        assert await (await reports.enqueue()).result(timeout=10) == "refused"


async def test_what_is_saved_is_there_for_the_next_attempt(redis_url: str, executor: str) -> None:
    async with bench(redis_url) as b:

        def resumes() -> Steps:
            job = busq.current_job()
            found = job.saved
            yield Ask(lambda: job.save({"cursor": job.attempt, "found": found}))
            assert job.saved == {"cursor": job.attempt, "found": found}
            if job.attempt < 3:
                raise ValueError
            return found

        kind = declare(b.bus, executor, resumes, retries=2)
        await b.work()
        await b.watch()
        handle = await kind.enqueue()
        assert await handle.result(timeout=10) == {"cursor": 2, "found": {"cursor": 1, "found": None}}
        assert (await handle.get()).saved["cursor"] == 3


async def test_what_cannot_be_saved_is_refused_at_once(redis_url: str, executor: str) -> None:
    async with bench(redis_url, result_bytes=100) as b:

        def saves() -> Steps:
            job = busq.current_job()
            yield Ask(lambda: job.save([1]))
            with pytest.raises(busq.TooLarge, match="100"):
                job.save("x" * 200)
            with pytest.raises(busq.UsageError):
                job.save(object())
            return job.saved

        kind = declare(b.bus, executor, saves)
        await b.work()
        assert await (await kind.enqueue()).result(timeout=10) == [1]


async def test_on_trip_calls_back_once_whatever_it_raises(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()
        called: list[Any] = []

        def listens() -> Steps:
            job = busq.current_job()

            def broken(facts: Any) -> None:
                called.append("broken")
                raise ValueError

            job.on_trip(broken)
            job.on_trip(lambda facts: called.append((facts.cause, facts.reason)))
            try:
                yield Wait(gate)
            finally:
                job.on_trip(lambda facts: called.append("late"))

        kind = declare(b.bus, executor, listens)
        await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel(reason="why")
        job = await handle.wait(timeout=10)
        assert job.ended == "confirmed"
        await until(lambda: len(called) == 3)
        assert sorted(called, key=str) == sorted(["broken", (Cause.USER, "why"), "late"], key=str)


async def test_wait_cancelled_wakes_when_tripped_and_counts_as_observed(redis_url: str, executor: str) -> None:
    """In a coroutine, `CancelledError` may come first; inside a shield it does not."""
    async with bench(redis_url, **PATIENT) as b:
        answers: list[Any] = []

        if executor == "coroutine":

            @b.bus.job
            async def waits() -> None:
                job = busq.current_job()
                answers.append(await job.wait_cancelled(timeout=0.01))
                async with job.shield():
                    answers.append(await job.wait_cancelled(timeout=10))

            kind: Any = waits
        else:

            @b.bus.job(kind="waits")
            def blocks() -> None:
                job = busq.current_job()
                answers.append(job.wait_cancelled(timeout=0.01))
                answers.append(job.wait_cancelled(timeout=10))

            kind = blocks
        await b.work()
        handle = await kind.enqueue()
        await until(lambda: len(answers) == 1)
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert answers == [False, True]
        assert (job.state, job.ended) == ("cancelled", "confirmed")


async def test_a_cancel_waits_outside_a_shield(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        inside, story = b.gate(), []

        if executor == "coroutine":

            @b.bus.job
            async def shields() -> None:
                job = busq.current_job()
                try:
                    async with job.shield():
                        await inside.wait()
                        job.check_cancelled()
                        story.append("published")
                    await asyncio.sleep(60)
                    story.append("never")
                except asyncio.CancelledError:
                    story.append("then cancelled")
                    raise

            kind: Any = shields
        else:

            @b.bus.job(kind="shields")
            def blocks() -> None:
                job = busq.current_job()
                try:
                    with job.shield():
                        inside.block()
                        job.check_cancelled()
                        story.append("published")
                    story.append("never")
                except busq.Cancelled:
                    story.append("then cancelled")
                    raise

            kind = blocks
        await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        await until(lambda: _tripped(b, handle.jid))
        assert story == []
        inside.open()
        job = await handle.wait(timeout=10)
        assert story == ["published", "then cancelled"]
        assert (job.state, job.ended) == ("cancelled", "confirmed")


async def test_a_shields_limit_lets_the_cancel_in(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        inside = b.gate()

        def shields() -> Steps:
            with busq.current_job().shield(limit=0.05):
                yield Wait(inside)

        kind = declare(b.bus, executor, shields)
        await b.work()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended) == ("cancelled", "confirmed")


async def test_a_shield_does_not_move_the_deadline(redis_url: str, executor: str) -> None:
    async with bench(redis_url, **_forced_in_time(executor)) as b:
        inside = b.gate()

        def shields() -> Steps:
            with busq.current_job().shield():
                yield Wait(inside, checking=False)

        kind = declare(b.bus, executor, shields)
        await b.work()
        await b.watch()
        handle = await kind.enqueue()
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=10)
        # Force cancels a coroutine in its shield; a thread in it is abandoned at the deadline.
        assert (job.state, job.ended) == ("cancelled", Ended.CONFIRMED if executor == "coroutine" else Ended.ABANDONED)


# Edges of values -----------------------------------------------------------------------------------------


async def test_a_result_that_cannot_be_written_fails_the_job_for_good(redis_url: str, executor: str) -> None:
    async with bench(redis_url) as b:

        def odd() -> Steps:
            yield from ()
            return object()

        kind = declare(b.bus, executor, odd, retries=5)
        await b.work()
        job = await (await kind.enqueue()).wait(timeout=10)
        assert (job.state, job.cause, job.attempt) == ("failed", "bad_result", 1)


async def test_a_result_over_the_limit_fails_the_job_for_good(redis_url: str, executor: str) -> None:
    async with bench(redis_url, result_bytes=1000) as b:

        def large() -> Steps:
            yield from ()
            return "x" * 1001

        kind = declare(b.bus, executor, large, retries=5)
        await b.work()
        job = await (await kind.enqueue()).wait(timeout=10)
        assert (job.state, job.cause, job.attempt) == ("failed", "result_too_large", 1)
        assert job.error is not None
        assert "1,000" in job.error.message or "1000" in job.error.message


async def test_a_traceback_is_kept_within_its_limit(redis_url: str, executor: str) -> None:
    async with bench(redis_url, traceback_bytes=500) as b:

        def deep() -> Steps:
            yield from ()
            raise ValueError("y" * 10_000)

        kind = declare(b.bus, executor, deep)
        await b.work()
        job = await (await kind.enqueue()).wait(timeout=10)
        assert job.error is not None
        assert len(job.error.traceback.encode()) <= 500
        assert len(job.error.message.encode()) <= 125


async def test_arguments_that_do_not_fit_fail_the_job_at_once_and_are_not_retried(
    redis_url: str, executor: str
) -> None:
    async with bench(redis_url) as b:
        if executor == "coroutine":

            @b.bus.job(retries=5)
            async def adds(a: int, b: int = 1) -> int:
                return a + b
        else:

            @b.bus.job(kind="adds", retries=5)
            def blocks(a: int, b: int = 1) -> int:
                return a + b

        await b.work()
        async with busq.Bus(as_role(redis_url, "client")) as other:
            for args in ([], ["one"], [1, 2, 3]):
                job = await (await other.enqueue("adds", *args)).wait(timeout=10)
                assert (job.state, job.cause, job.attempt) == ("failed", "bad_arguments", 1)
            assert await (await other.enqueue("adds", 1, b=5)).result(timeout=10) == 6


async def test_threads_end_with_their_jobs_arguments(redis_url: str) -> None:
    """An idle thread keeps nothing of its last job alive, and a hundred jobs need no more threads than slots."""
    async with bench(redis_url) as b:

        @b.bus.job
        def name() -> str:
            return threading.current_thread().name

        await b.work(concurrency=3)
        handles = await b.bus.enqueue_many(name.spec() for _ in range(100))
        names = {await handle.result(timeout=10) for handle in handles}
        assert len(names) <= 3
