"""
Handlers in kept child processes: real children, real signals.

What the other executors do alike is told here once more for this one, whose handlers a test cannot hold by a string:
they meet the test at files in a folder (`process_handlers.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import busq
from busq.config import Settings
from busq.worker.executors.hello import hello_for, without_secrets
from busq.worker.executors.victim import Victim, start_time
from busq.worker.worker import Worker
from tests.runtime import process_handlers
from tests.runtime.bench import BUSY_S, PATIENT, UNHURRIED, Bench, bench, until

HANDLERS = process_handlers.bus.handlers


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """Where handlers and the test meet; whoever waits there is let go at the end."""
    yield str(tmp_path)
    (tmp_path / "go on").touch()


def there(folder: str, name: str) -> bool:
    return (Path(folder) / name).exists()


def read(folder: str, name: str) -> str:
    return (Path(folder) / name).read_text()


async def work(b: Bench, **how: Any) -> Worker:
    return await b.work(handlers=HANDLERS, **how)


async def result(b: Bench, kind: str, *args: Any, **named: Any) -> Any:
    return await (await b.bus.enqueue(kind, *args, **named)).result(timeout=20)


async def running(b: Bench, folder: str, kind: str, *args: Any) -> busq.JobHandle[Any]:
    """A job whose handler says that it runs."""
    handle = await b.bus.enqueue(kind, folder, *args)
    await until(lambda: there(folder, "running"))
    return handle


def alive(pid: int) -> bool:
    """Whether there is such a process; one that has ended and was not collected does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter: it was collected between the opening and the reading
        return False


def group(number: int) -> list[int]:
    """All living processes of this process group."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and alive(int(entry)):
            try:
                if os.getpgid(int(entry)) == number:
                    found.append(int(entry))
            except ProcessLookupError:
                continue
    return found


# Running -------------------------------------------------------------------------------------------------


async def test_a_job_runs_in_a_child_and_its_value_comes_back(redis_url: str) -> None:
    async with bench(redis_url) as b:
        await work(b, concurrency=1)
        handle = await b.bus.enqueue("doubled", 21)
        assert await handle.result(timeout=20) == 42
        assert await b.names(handle.jid) == ["enqueued", "started", "finalized"]
        assert await result(b, "pid_of") != os.getpid()
        assert await result(b, "echo", 1, [b"x"], a={"b": None}) == [[1, [b"x"]], {"a": {"b": None}}]
        assert await result(b, "typed", "/tmp", size=3) == "PurePosixPath 3"
        assert len(await result(b, "large", 900_000)) == 900_000


async def test_children_are_made_when_needed_and_kept(redis_url: str, folder: str) -> None:
    async with bench(redis_url) as b:
        worker = await work(b, concurrency=3)
        assert worker._processes.pids == []
        first = {await result(b, "pid_of") for _ in range(20)}
        assert list(first) == worker._processes.pids
        held = [await b.bus.enqueue("waits", folder, "go on") for _ in range(6)]
        await until(lambda: len(worker._processes._at_work) == 3)
        (Path(folder) / "go on").touch()
        pids = {await handle.result(timeout=20) for handle in held}
        assert first <= pids == set(worker._processes.pids)


async def test_no_child_is_made_without_a_job_for_it(redis_url: str) -> None:
    async with bench(redis_url) as b:
        worker = await work(b)
        assert await (await b.bus.options(queue="others").enqueue("beside", 1)).result(timeout=20) == 1
        assert worker._processes.pids == []


async def test_a_child_knows_its_job_and_nothing_of_redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"BUSQ_URL": redis_url, "REDIS_URL": redis_url, "BUSQ_SENTINEL_PASSWORD": "hush"}
    for name, value in {**secrets, "SHOP_COLOUR": "green"}.items():
        monkeypatch.setenv(name, value)
    async with bench(redis_url) as b:
        await work(b, concurrency=1)
        seen = await result(b, "looks_round")
        assert not set(secrets) & set(seen["environ"])
        assert seen["environ"]["SHOP_COLOUR"] == "green"
        assert seen["tcp"] == []
        assert (seen["main"], seen["group"]) == (True, True)
        handle = await b.bus.enqueue("tells")
        assert await handle.result(timeout=20) == [handle.jid, "tells", 1, False, None, "", None]


def test_a_password_of_ours_is_kept_from_children_whatever_its_variable_is_called() -> None:
    environ = {"CACHE": "redis://:p%40ss@other/1", "PLAIN": "p@ss", "HOME": "/root", "BUSQ_BEAT_S": "1"}
    left = without_secrets(environ, "redis://me:p%40ss@host/0")
    assert left == {"HOME": "/root", "BUSQ_BEAT_S": "1"}


async def test_what_a_child_says_in_the_log_names_its_job(redis_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    async with bench(redis_url) as b:
        await work(b, concurrency=1, child_setup="busq.cli.logs:configure")
        handle = await b.bus.enqueue("logs", "hello")
        await handle.wait(timeout=20)
        line = next(json.loads(each) for each in capfd.readouterr().err.splitlines() if '"said"' in each)
        assert (line["jid"], line["kind"], line["attempt"], line["word"]) == (handle.jid, "logs", 1, "hello")


# Failing -------------------------------------------------------------------------------------------------


async def test_a_handler_that_raises_fails_its_job_with_its_own_words(redis_url: str) -> None:
    async with bench(redis_url) as b:
        await work(b, concurrency=1)
        job = await (await b.bus.enqueue("broken")).wait(timeout=20)
        assert (job.state, job.cause, job.failures) == ("failed", "error", 1)
        assert job.error is not None
        assert (job.error.type, job.error.message) == ("ValueError", "no such film")
        assert "in broken" in job.error.traceback


@pytest.mark.parametrize("how", ["SystemExit", "KeyboardInterrupt"])
async def test_an_exit_in_a_handler_is_its_failure_and_the_child_goes_on(redis_url: str, how: str) -> None:
    async with bench(redis_url) as b:
        await work(b, concurrency=1)
        pid = await result(b, "pid_of")
        job = await (await b.bus.enqueue("leaves", how)).wait(timeout=20)
        assert (job.state, job.cause) == ("failed", "error")
        assert job.error is not None
        assert how in job.error.message
        assert await result(b, "pid_of") == pid


@pytest.mark.parametrize(("how", "words"), [("SIGSEGV", "SIGSEGV"), ("SIGKILL", "SIGKILL"), ("_exit", "code 7")])
async def test_a_child_that_dies_by_itself_fails_its_job_and_is_replaced(
    redis_url: str, folder: str, how: str, words: str
) -> None:
    async with bench(redis_url) as b:
        worker = await work(b, concurrency=2)
        await b.watch()
        sibling = await b.bus.enqueue("waits", folder, "go on")
        await until(lambda: there(folder, "running-go on"))
        handle = await b.bus.options(retries=1).enqueue("leaves", how)
        job = await handle.wait(timeout=20)
        assert (job.state, job.cause, job.failures, job.losses) == ("failed", "error", 2, 0)
        assert job.error is not None
        assert words in job.error.message
        assert await result(b, "doubled", 4) == 8
        assert (await sibling.get()).state == "running"
        (Path(folder) / "go on").touch()
        await sibling.result(timeout=20)
        assert worker.leftovers == 0


async def test_results_that_cannot_be_stored_fail_the_job_for_good(redis_url: str) -> None:
    async with bench(redis_url, result_bytes=1000) as b:
        await work(b, concurrency=1)
        for kind, args, cause in (("odd", (), "bad_result"), ("large", (2000,), "result_too_large")):
            job = await (await b.bus.options(retries=3).enqueue(kind, *args)).wait(timeout=20)
            assert (job.state, job.cause, job.attempt) == ("failed", cause, 1)


async def test_arguments_that_do_not_fit_fail_the_job_at_once(redis_url: str) -> None:
    async with bench(redis_url) as b:
        await work(b, concurrency=1)
        for args in ([], ["one"], [1, 2]):
            job = await (await b.bus.options(retries=3).enqueue("doubled", *args)).wait(timeout=20)
            assert (job.state, job.cause, job.attempt) == ("failed", "bad_arguments", 1)


# What a child can find -----------------------------------------------------------------------------------


def refused(function: Any, **named: Any) -> str:
    bus = busq.Bus("redis://localhost")
    bus.job(pool="process", **named)(function)
    with pytest.raises(busq.ConfigError) as raised:
        hello_for(Settings(), bus.handlers, "")
    return str(raised.value)


def test_a_handler_that_a_child_could_not_find_is_refused_at_the_start() -> None:
    def local() -> None: ...

    assert "inside another function" in refused(local)
    assert "lambda" in refused(_lambda, kind="anonymous")
    assert "another object" in refused(_shadowed_first)
    assert "'local'" in refused(local)
    assert "leave pool out" in refused(local)


_lambda = lambda: None  # noqa: E731


def shadowed() -> None: ...


_shadowed_first = shadowed


def shadowed() -> None: ...  # type: ignore[no-redef]


@pytest.mark.parametrize(
    "setup", ["nowhere.at.all:f", "busq.cli.logs:nothing", "busq.cli.logs", "busq.cli.logs:IN_CHILDREN"]
)
def test_a_set_up_of_children_that_cannot_be_called_is_refused_at_the_start(setup: str) -> None:
    with pytest.raises(busq.ConfigError, match="child_setup") as raised:
        hello_for(Settings(), HANDLERS, setup)
    assert repr(setup) in str(raised.value)


async def test_a_worker_does_not_start_with_such_a_handler(redis_url: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job(pool="process")
        def local() -> None: ...

        with pytest.raises(busq.ConfigError, match="inside another function"):
            await Worker(b.settings_of("worker"), b.bus.handlers).run()


async def test_a_child_that_cannot_start_fails_the_job_with_the_reason_and_not_in_a_hot_loop(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module can be imported by the worker and not by its children: they have no BUSQ_URL."""
    (tmp_path / "picky.py").write_text(
        "import os, busq\nbus = busq.Bus()\nopen(__file__ + '.log', 'a').write('x')\nos.environ['BUSQ_URL']\n"
        "@bus.job(pool='process')\ndef picky() -> None: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("BUSQ_URL", redis_url)
    import picky  # type: ignore[import-not-found]

    async with bench(redis_url) as b:
        await b.work(handlers=picky.bus.handlers, concurrency=1)
        handles = [await b.bus.enqueue("picky") for _ in range(3)]
        began = time.monotonic()
        for handle in handles:
            job = await handle.wait(timeout=20)
            assert (job.state, job.cause) == ("failed", "error")
            assert job.error is not None
            assert "KeyError: 'BUSQ_URL'" in job.error.message
            assert "picky.py" in job.error.message
        assert time.monotonic() - began > 1.4, "the second waited for half a second, the third for a whole one"
        assert (tmp_path / "picky.py.log").read_text() == "x" * 4, "one child for each job, and the worker itself"


MAIN_PROGRAM = """
import asyncio, sys
import busq
from busq.worker.worker import Worker

bus = busq.Bus()

@bus.job(pool="process")
def named() -> str:
    return f"{__name__} {sys.modules['__main__'].__name__}"

async def main() -> None:
    async with busq.Bus(sys.argv[1]) as other:
        worker = Worker(other.settings, bus.handlers)
        task = asyncio.create_task(worker.run())
        print(await (await other.enqueue("named")).result(timeout=20))
        worker.stop()
        await task

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_handlers_of_the_program_itself_are_found(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(MAIN_PROGRAM)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
    for command in (["shop.py"], ["-m", "shop"]):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, *command, redis_url], cwd=tmp_path, env=environ, capture_output=True,
            text=True, timeout=30,
        )  # fmt: skip
        assert "__mp_main__ __mp_main__" in done.stdout.splitlines(), done.stderr


# Cancels -------------------------------------------------------------------------------------------------


async def test_a_cancel_is_heard_while_the_handler_runs_and_the_child_takes_the_next_job(
    redis_url: str, folder: str
) -> None:
    async with bench(redis_url, **PATIENT) as b:
        worker = await work(b, concurrency=1)
        handle = await running(b, folder, "checks")
        await until(lambda: any(attempt.watched for attempt in worker.running.values()))
        await handle.cancel(reason="why not")
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended) == ("cancelled", "confirmed")
        assert read(folder, "why") == "user why not True"
        story = ["enqueued", "started", "requested", "tripped", "observed", "stopped", "finalized"]
        assert await b.names(handle.jid) == story
        assert await result(b, "pid_of") == int(read(folder, "running"))


async def test_from_the_trip_to_the_handlers_check_it_takes_less_than_100_ms(redis_url: str, folder: str) -> None:
    """The middle one of five: a busy machine may hold any one of them up."""
    took_s = []
    async with bench(redis_url, **PATIENT) as b:
        await work(b, concurrency=1)
        for _ in range(5):
            (Path(folder) / "running").unlink(missing_ok=True)
            handle = await running(b, folder, "checks")
            await handle.cancel()
            await handle.wait(timeout=20)
            at = {event.name: event.at for event in await b.bus.history(handle.jid)}
            took_s.append((at["observed"] - at["tripped"]).total_seconds())
    assert statistics.median(took_s) < 0.1


async def test_a_cancel_that_is_swallowed_is_still_a_cancel(redis_url: str, folder: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        await work(b, concurrency=1)
        handle = await running(b, folder, "swallows", 10)
        await handle.cancel()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended, job.result) == ("cancelled", "confirmed", None)
        assert await result(b, "pid_of") == int(read(folder, "running"))


async def test_a_job_that_waits_for_its_child_can_be_cancelled(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sluggish.py").write_text(
        "import os, time, busq\nbus = busq.Bus()\n"
        "while os.environ.get('SLUGGISH') and not os.path.exists(os.environ['SLUGGISH']): time.sleep(0.01)\n"
        "@bus.job(pool='process')\ndef sluggish() -> str: return 'ran'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import sluggish  # type: ignore[import-not-found]

    monkeypatch.setenv("SLUGGISH", str(tmp_path / "go on"))
    async with bench(redis_url, **PATIENT) as b:
        await b.work(handlers=sluggish.bus.handlers, concurrency=1)
        handle = await b.bus.enqueue("sluggish")
        await b.reaches(handle.jid, "running")
        await handle.cancel()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended) == ("cancelled", "confirmed")
        second = await b.bus.enqueue("sluggish")
        (tmp_path / "go on").touch()
        assert await second.result(timeout=20) == "ran"


@pytest.mark.parametrize(("how", "number"), [("python", "SIGTERM"), ("to SIGTERM", "SIGKILL"), ("in C", "SIGTERM")])
async def test_who_does_not_listen_is_ended_and_replaced_and_the_siblings_work_on(
    redis_url: str, folder: str, how: str, number: str
) -> None:
    async with bench(redis_url, **UNHURRIED) as b:
        worker = await work(b, concurrency=2)
        await b.watch()
        sibling = await b.bus.enqueue("waits", folder, "go on")
        await until(lambda: there(folder, "running-go on"))
        handle = await running(b, folder, "deaf", how)
        pid = int(read(folder, "running"))
        await handle.cancel()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended) == ("cancelled", "killed")
        assert not alive(pid)
        names = await b.names(handle.jid)
        assert names == ["enqueued", "started", "requested", "tripped", "stopped", "finalized"]
        assert (await b.bus.stats()).suspects == 0
        assert await result(b, "pid_of") != pid
        (Path(folder) / "go on").touch()
        assert await sibling.result(timeout=20) in worker._processes.pids
        assert job.evidence is not None


async def test_what_is_deaf_to_sigterm_is_gone_by_its_deadline(redis_url: str, folder: str) -> None:
    async with bench(redis_url, beat_s=0.3, lease_s=2.0) as b:
        await work(b, concurrency=1)
        handle = await running(b, folder, "deaf", "to SIGTERM")
        answer = await handle.cancel()
        job = await handle.wait(timeout=20)
        assert job.ended == "killed"
        assert job.finished_at is not None
        assert answer.deadline is not None
        assert (job.finished_at - answer.deadline).total_seconds() < BUSY_S


async def test_a_tree_of_processes_goes_with_its_child(redis_url: str, folder: str) -> None:
    """Three levels, each deaf to SIGTERM, in the group that the child leads."""
    async with bench(redis_url) as b:
        await work(b, concurrency=1)
        handle = await running(b, folder, "grows_a_tree", "python")
        pid = int(read(folder, "running"))
        assert len(group(pid)) == 4
        await handle.cancel()
        job = await handle.wait(timeout=20)
        assert job.ended == "killed"
        await until(lambda: not group(pid))


@pytest.mark.parametrize("how", ["drain", "death of the child"])
async def test_a_tree_of_processes_goes_however_its_child_ends(redis_url: str, folder: str, how: str) -> None:
    async with bench(redis_url) as b:
        worker = await work(b, concurrency=1)
        handle = await running(b, folder, "grows_a_tree", "python")
        pid = int(read(folder, "running"))
        assert len(group(pid)) == 4
        if how == "drain":
            await b.end(worker)
            assert (await b.names(handle.jid))[-1] == "handed_back"
        else:
            os.kill(pid, signal.SIGSEGV)
            job = await handle.wait(timeout=20)
            assert job.error is not None
            assert "SIGSEGV" in job.error.message
        await until(lambda: not group(pid))


async def test_a_handler_past_its_timeout_is_killed_and_retried_by_policy(redis_url: str, folder: str) -> None:
    async with bench(redis_url) as b:
        worker = await work(b, concurrency=1)
        await b.watch()
        await result(b, "pid_of")  # its start does not count then
        handle = await b.bus.options(retries=1).enqueue("runs_too_long", folder)
        await until(lambda: there(folder, "attempts"))
        job = await handle.wait(timeout=20)
        assert (job.state, job.cause, job.failures, job.ended) == ("failed", "timed_out", 2, None)
        assert worker.leftovers == 0
        assert (await b.bus.stats()).suspects == 0


async def test_a_lost_lease_ends_the_child_and_nothing_of_it_counts(redis_url: str, folder: str) -> None:
    """Another attempt owns the job: told by the store, as a reclaim would leave it."""
    async with bench(redis_url) as b:
        worker = await work(b, concurrency=1)
        handle = await b.bus.options(grace=0.1).enqueue("deaf", folder)
        await until(lambda: there(folder, "running"))
        pid = int(read(folder, "running"))
        attempt = worker.running[handle.jid]
        attempt.token_id = "another"  # the beat asks with it
        await until(lambda: not worker.running)
        await until(lambda: not alive(pid))
        await until(lambda: _stale(b, handle.jid))
        assert (await handle.get()).state == "running"


async def _stale(b: Bench, jid: str) -> bool:
    return "late_result" in await b.names(jid)


# current_job() in a child ----------------------------------------------------------------------------------


async def test_progress_arrives_throttled_and_the_newest_word_last(redis_url: str, folder: str) -> None:
    async with bench(redis_url) as b:
        await work(b, concurrency=1)
        handle = await b.bus.enqueue("reports", folder)

        async def newest() -> bool:
            job = await handle.get()
            return (job.progress, job.progress_note) == (0.75, "the newest")

        await until(newest)
        (Path(folder) / "go on").touch()
        await handle.result(timeout=20)


async def test_progress_is_a_checkpoint(redis_url: str, folder: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        await work(b, concurrency=1)
        handle = await running(b, folder, "reports_when_cancelled")
        await handle.cancel()
        assert (await handle.wait(timeout=20)).ended == "confirmed"


async def test_what_is_saved_is_there_for_the_next_attempt(redis_url: str) -> None:
    async with bench(redis_url) as b:
        await work(b, concurrency=1)
        await b.watch()
        handle = await b.bus.enqueue("resumes")
        assert await handle.result(timeout=20) == {"cursor": 2, "found": {"cursor": 1, "found": None}}
        assert (await handle.get()).saved["cursor"] == 3
        assert await result(b, "saves_too_much") == "refused"


async def test_a_save_that_kept_nothing_says_so_in_a_child(redis_url: str, folder: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        worker = await work(b, concurrency=1)
        handle = await running(b, folder, "saves_late")
        worker.running[handle.jid].token_id = "another"  # the store is asked with it
        (Path(folder) / "go on").touch()
        await until(lambda: there(folder, "lost"))
        assert read(folder, "lost") == "lease_lost"
        assert (await handle.get()).saved is None


async def test_a_cancel_waits_outside_a_shield(redis_url: str, folder: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        await work(b, concurrency=1)
        handle = await running(b, folder, "shields")
        await handle.cancel()
        await until(lambda: _tripped(b, handle.jid))
        assert not there(folder, "left")
        (Path(folder) / "go on").touch()
        job = await handle.wait(timeout=20)
        assert (job.state, job.ended) == ("cancelled", "confirmed")
        assert (there(folder, "published"), there(folder, "never")) == (True, False)


async def _tripped(b: Bench, jid: str) -> bool:
    return "tripped" in await b.names(jid)


async def test_a_shields_limit_lets_the_cancel_in(redis_url: str, folder: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        await work(b, concurrency=1)
        handle = await running(b, folder, "shields", 0.05)
        await handle.cancel()
        job = await handle.wait(timeout=20)
        assert (job.ended, there(folder, "published")) == ("confirmed", False)


async def test_on_trip_and_wait_cancelled_wake_in_a_child(redis_url: str, folder: str) -> None:
    async with bench(redis_url, **PATIENT) as b:
        await work(b, concurrency=1)
        handle = await running(b, folder, "listens")
        await handle.cancel(reason="late")
        job = await handle.wait(timeout=20)
        assert (job.ended, read(folder, "called")) == ("confirmed", "user late")


async def test_a_thread_that_a_handler_leaves_behind_says_nothing_of_the_next_job(redis_url: str, folder: str) -> None:
    async with bench(redis_url) as b:
        await work(b, concurrency=1)
        first = await b.bus.enqueue("outlives", folder)
        await first.result(timeout=20)
        second = await b.bus.enqueue("waits", folder, "haunted")
        await second.result(timeout=20)
        job = await second.get()
        assert (job.progress, job.saved) == (None, None)
        (Path(folder) / "go on").touch()


# Programs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["polite", "deaf"])
@pytest.mark.parametrize("kind", ["runs_a_program", "runs_a_program_and_awaits", "runs_a_program_in_a_thread"])
async def test_a_program_that_a_handler_runs_stops_with_its_job(
    redis_url: str, folder: str, kind: str, how: str
) -> None:
    """SIGTERM first, and SIGKILL when half of the grace is over: a cancel needs no force."""
    async with bench(redis_url, grace_s=4.0) as b:
        await work(b, concurrency=1)
        handle = await b.bus.options(queue=process_handlers.QUEUES.get(kind, "default")).enqueue(kind, folder, how)
        await until(lambda: there(folder, "up"))
        await until(lambda: there(folder, "pid"))
        pid = int(read(folder, "pid"))
        assert os.getpgid(pid) == pid
        await handle.cancel()
        job = await handle.wait(timeout=20)
        assert job.state == "cancelled"
        assert job.ended == ("confirmed" if kind == "runs_a_program_and_awaits" else "completed")
        assert not alive(pid)


async def test_a_program_can_be_fed_and_read(redis_url: str) -> None:
    async with bench(redis_url) as b:
        shout = [sys.executable, "-c", "import sys; print(sys.stdin.read().upper(), end='')"]

        @b.bus.job
        async def shouts() -> Any:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            async with busq.current_job().subprocess(*shout, **pipes) as running:
                said, _ = await running.communicate("hello")
                return [said, running.returncode]

        await b.work()
        assert await (await shouts.enqueue()).result(timeout=20) == ["HELLO", 0]


async def test_in_a_coroutine_a_program_is_not_started_in_a_way_that_blocks(redis_url: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job
        async def hasty() -> None:
            with busq.current_job().subprocess("true"):
                pass

        await b.work()
        job = await (await hasty.enqueue()).wait(timeout=20)
        assert job.error is not None
        assert "async with job.subprocess" in job.error.message


# Right victim --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pidfds", [True, False])
def test_a_number_that_means_another_process_now_is_not_touched(pidfds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of a child that is gone, with the number of a process that lives and leads a group of its own."""
    if not pidfds:
        monkeypatch.delattr(os, "pidfd_open")
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, process_group=0)
    bystander = subprocess.Popen([sys.executable, "-c", process_handlers.SLEEPER], process_group=0)
    try:
        stale = Victim(gone.pid)
        assert stale.is_ours()
        if not pidfds:  # start times are told in hundredths of a second
            stale.started = str(int(start_time(bystander.pid) or 0) - 1)
        gone.kill()
        gone.wait()
        stale.pid = bystander.pid
        assert not stale.is_ours()
        assert not stale.signal_group(signal.SIGKILL)
        assert bystander.poll() is None
        own = Victim(bystander.pid)
        assert own.signal_group(signal.SIGKILL)
        assert bystander.wait(10) == -signal.SIGKILL
    finally:
        bystander.kill()
        bystander.wait()
        assert gone.stdin is not None
        gone.stdin.close()


def test_where_a_sandbox_forbids_pidfds_start_times_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, flags: int = 0) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    own = Victim(os.getpid())
    assert own.pidfd == -1
    assert own.is_ours()
    own.started = "1"
    assert not own.is_ours()


REUSE = """
import os, subprocess, sys, time
from busq.worker.executors.victim import Victim

if sys.argv[1] == "without pidfds":
    del os.pidfd_open
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
gone = subprocess.Popen(sleep, process_group=0)
stale = Victim(gone.pid)
assert (stale.pidfd == -1) == (sys.argv[1] == "without pidfds")
began = time.monotonic()
while time.monotonic() - began < 0.03: pass  # start times are told in hundredths of a second
gone.kill()
assert stale.signal_group(0), "it has ended, and its number is still its own"
gone.wait()
with open("/proc/sys/kernel/ns_last_pid", "w") as last:
    last.write(str(gone.pid - 1))
bystander = subprocess.Popen(sleep, process_group=0)
assert bystander.pid == gone.pid, (bystander.pid, gone.pid)
assert not stale.signal_group(9)
assert bystander.poll() is None
own = Victim(bystander.pid)
assert own.signal_group(9)
own.close()
assert not own.signal_group(0), "who is done with a process signals it no more"
print(bystander.wait(10))
"""


@pytest.mark.skipif(not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK) or os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("how", ["with pidfds", "without pidfds"])
def test_a_process_that_got_the_number_of_a_collected_child_is_not_touched(how: str) -> None:
    """A number is really used again: in a pid namespace of our own, where nobody else takes the next one."""
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", REUSE, how],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr and done.returncode:
        pytest.skip(f"no namespace of our own: {done.stderr.strip()}")
    assert done.stdout.split() == ["-9"], done.stderr


# Leaving -------------------------------------------------------------------------------------------------


async def test_a_drained_worker_leaves_no_child(redis_url: str, folder: str) -> None:
    async with bench(redis_url) as b:
        worker = await work(b, concurrency=2)
        held = await b.bus.enqueue("waits", folder, "go on")
        await until(lambda: there(folder, "running-go on"))
        idle = await result(b, "pid_of")
        pids = worker._processes.pids
        worker._settings = b.settings.__class__.load(
            {}, **{**{n: getattr(b.settings, n) for n in b.settings.__struct_fields__}, "shutdown_timeout_s": 20}
        )
        worker.stop()
        await until(lambda: not alive(idle))
        assert (await held.get()).state == "running"
        (Path(folder) / "go on").touch()
        await b.ended(worker)
        assert (await held.get()).state == "succeeded"
        assert not any(alive(pid) for pid in pids)


async def test_a_deaf_child_is_ended_before_its_job_is_handed_back(redis_url: str, folder: str) -> None:
    async with bench(redis_url) as b:
        worker = await work(b, concurrency=1)
        handle = await running(b, folder, "deaf", "to SIGTERM")
        pid = int(read(folder, "running"))
        await b.end(worker)
        assert not alive(pid)
        job = await handle.get()
        assert (job.state, job.failures, job.losses) == ("queued", 0, 0)
        assert (await b.names(handle.jid))[-1] == "handed_back"
        assert (await b.bus.stats()).suspects == 0


# Many ----------------------------------------------------------------------------------------------------

CONSISTENT = {
    "cancelled": {("cancelled", "before_start")},
    "signalled": {("cancelled", "confirmed"), ("cancelled", "completed")},
    "already_finished": {("succeeded", None)},
}


async def test_cancels_at_random_moments_round_the_end_leave_no_contradiction(redis_url: str) -> None:
    rng = random.Random(11)
    async with bench(redis_url, **PATIENT) as b:
        worker = await work(b, concurrency=2)
        await asyncio.gather(*(result(b, "doubled", n) for n in range(10)))
        pids = set(worker._processes.pids)

        async def one(n: int) -> None:
            handle = await b.bus.enqueue("doubled", n)
            await asyncio.sleep(rng.uniform(0, 0.012))
            verdict = (await handle.cancel()).verdict
            job = await handle.wait(timeout=20)
            assert (job.state, job.ended) in CONSISTENT[verdict], (verdict, job)
            if job.state == "succeeded":
                assert job.result == 2 * n
            assert (await b.names(handle.jid)).count("finalized") == 1

        for _ in range(60):
            await asyncio.gather(*(one(n) for n in range(5)))
        assert set(worker._processes.pids) == pids
