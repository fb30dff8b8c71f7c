"""
The same calls for code without an event loop: from threads, after a fork, and refused inside a loop.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import busq
from busq.client import default
from tests.runtime.bench import bench


def test_the_blocking_calls_do_what_their_namesakes_do(redis_url: str) -> None:
    bus = busq.Bus(redis_url)

    @bus.job
    def double(n: int) -> int:
        return n * 2

    one = double.blocking.enqueue(1)
    two = bus.blocking.enqueue("double", 2)
    three = bus.options(queue="media", delay=60).blocking.enqueue("double", 3)
    four, five = bus.blocking.enqueue_many([double.spec(4), double.spec(5)])
    assert bus.blocking.get(three.jid).queue == "media"
    assert [handle.get().kwargs for handle in (one, two, four, five)] == [{"n": n} for n in (1, 2, 4, 5)]
    assert three.cancel(reason="no").verdict == "cancelled"
    assert bus.blocking.cancel(one.jid).verdict == "cancelled"
    assert [answer.verdict for answer in bus.blocking.cancel_many([two.jid, "nobody"])] == ["cancelled", "not_found"]
    assert three.wait(timeout=5).state == "cancelled"
    assert bus.blocking.wait(one.jid, timeout=5).state == "cancelled"
    assert [event.name for event in three.history()] == [event.name for event in bus.blocking.history(three.jid)]
    assert {job.jid for job in bus.blocking.list(state="queued")} == {four.jid, five.jid}
    assert bus.blocking.stats().now["queued"] >= 2
    assert list(bus.blocking.workers()) == []
    with pytest.raises(busq.JobCancelled):
        three.result(timeout=5)
    with pytest.raises(TimeoutError):
        four.result(timeout=0.01)
    with pytest.raises(busq.JobNotFound):
        bus.blocking.get("nobody")
    bus.blocking.close()
    assert bus.blocking.get(four.jid).state == "queued"
    bus.blocking.close()


async def test_a_value_reaches_a_thread_that_waits_for_it(redis_url: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job
        async def double(n: int) -> int:
            return n * 2

        await b.work()
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(double.blocking.enqueue(21).result(timeout=10)))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert answers == [42]


def test_threads_may_call_at_once(redis_url: str) -> None:
    bus = busq.Bus(redis_url)

    def send(n: int) -> tuple[str, str]:
        handle = bus.blocking.enqueue("k", n)
        return handle.jid, bus.blocking.cancel(handle.jid).verdict

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(send, range(200)))
    assert len({jid for jid, _ in answers}) == 200
    assert {verdict for _, verdict in answers} == {"cancelled"}
    bus.blocking.close()


_bus: Any = None


def _in_child(jid: str, say: Any) -> None:
    handle = _bus.options(jid=jid).blocking.enqueue("k")
    say.send((handle.jid, _bus.blocking.cancel("from-parent").verdict))
    say.close()


def test_a_forked_child_has_calls_of_its_own(redis_url: str) -> None:
    """The parent has used its bus before: thread, loop and sockets are the parent's, and stay it."""
    global _bus
    _bus = busq.Bus(redis_url)
    _bus.options(jid="from-parent").blocking.enqueue("k")
    fork = multiprocessing.get_context("fork")
    for n in range(3):
        here, there = fork.Pipe()
        child = fork.Process(target=_in_child, args=(f"from-child-{n}", there), daemon=True)
        child.start()
        assert here.poll(20), "the child hangs"
        assert here.recv() == (f"from-child-{n}", "cancelled" if n == 0 else "already_cancelled")
        child.join(20)
        assert child.exitcode == 0
        assert _bus.blocking.get(f"from-child-{n}").state == "queued"
    _bus.blocking.close()


CALLS: dict[str, Any] = {
    "enqueue": lambda bus: bus.blocking.enqueue("k"),
    "enqueue_many": lambda bus: bus.blocking.enqueue_many([bus.spec("k")]),
    "cancel": lambda bus: bus.blocking.cancel("x"),
    "cancel_many": lambda bus: bus.blocking.cancel_many(["x"]),
    "wait": lambda bus: bus.blocking.wait("x"),
    "result": lambda bus: bus.blocking.result("x"),
    "get": lambda bus: bus.blocking.get("x"),
    "list": lambda bus: bus.blocking.list(),
    "stats": lambda bus: bus.blocking.stats(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_inside_a_running_loop_they_name_the_awaitable_form(redis_url: str, name: str) -> None:
    bus = busq.Bus(redis_url)
    with pytest.raises(busq.BlockingCallInLoop, match=rf"await bus\.{name}\("):
        CALLS[name](bus)


async def test_module_level_calls_inside_a_loop_name_the_awaitable_form() -> None:
    with pytest.raises(busq.BlockingCallInLoop, match=r"await bus\.cancel"):
        busq.cancel("x")
    with pytest.raises(busq.BlockingCallInLoop, match=r"await bus\.enqueue"):
        busq.enqueue("k")


def test_module_level_calls_use_the_url_of_the_environment(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default.default_bus.cache_clear()
    monkeypatch.setenv("BUSQ_URL", redis_url)
    handle = busq.enqueue("k", 1)
    assert busq.cancel(handle.jid, reason="no").verdict == "cancelled"
    assert handle.get().reason == "no"
    default.default_bus().blocking.close()
    default.default_bus.cache_clear()


def test_module_level_calls_without_a_url_say_what_would_do() -> None:
    default.default_bus.cache_clear()
    with pytest.raises(busq.ConfigError, match="busq dev"):
        busq.cancel("x")
    default.default_bus.cache_clear()
