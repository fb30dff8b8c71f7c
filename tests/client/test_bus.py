"""
The bus as a program sees it: enqueue, cancel, wait, look.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

import busq
from busq.client import link as link_module
from busq.protocol.cancel import Verdict
from tests.runtime.bench import bench, until
from tests.servers import RedisServer


def kinds(bus: busq.Bus) -> Any:
    @bus.job
    async def double(n: int) -> int:
        return n * 2

    return double


# Enqueueing ----------------------------------------------------------------------------------------------


async def test_a_job_can_be_sent_with_and_without_its_handlers_code(redis_url: str) -> None:
    async with bench(redis_url) as b:
        double = kinds(b.bus)
        await b.work()
        async with busq.Bus(redis_url) as other:
            handles = [
                await double.enqueue(1),
                await double.enqueue(n=2),
                await other.enqueue("double", 3),
                await other.enqueue("double", n=4),
                await other.options(queue="default").enqueue("double", 5),
            ]
            assert [await handle.result(timeout=10) for handle in handles] == [2, 4, 6, 8, 10]


async def test_arguments_are_checked_where_the_handler_is_known(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        double = kinds(bus)
        for send in (lambda: double.enqueue(), lambda: double.enqueue(1, 2), lambda: bus.enqueue("double", m=1)):
            with pytest.raises(busq.BadArguments, match="double"):
                await send()
        with pytest.raises(busq.BadArguments):
            await bus.enqueue("elsewhere", object())
        assert (await bus.stats()).now["queued"] == 0


async def test_a_handler_is_still_a_function(redis_url: str) -> None:
    bus = busq.Bus(redis_url)
    assert await kinds(bus)(21) == 42


async def test_options_reach_the_record(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        double = kinds(bus)
        handle = await double.options(
            jid="order-17", queue="media", group="user:42", tags={"tenant": "a"}, delay=30, retries=3, timeout=9,
            grace=7, max_losses=1,
        ).enqueue(1)  # fmt: skip
        assert (handle.jid, handle.state) == ("order-17", "scheduled")
        job = await bus.get("order-17")
        assert (job.queue, job.group, job.tags, job.retries, job.timeout_s, job.grace_s) == (
            "media", "user:42", {"tenant": "a"}, 3, 9.0, 7.0,
        )  # fmt: skip
        assert job.kwargs == {"n": 1}
        assert job.due_at is not None
        assert (job.due_at - job.enqueued_at).total_seconds() == pytest.approx(30, abs=0.5)
        child = await double.options(parent="order-17").enqueue(2)
        assert (await child.get()).parent == "order-17"


async def test_moments_are_reckoned_by_the_server_from_the_enqueueing(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        double = kinds(bus)
        for handle in (
            await double.options(expires=60, deadline=90.5).enqueue(1),
            await bus.options(expires=60, deadline=90.5, delay=5).enqueue("unknown", 1),
        ):
            job = await handle.get()
            assert job.enqueued_at is not None
            assert job.expires_at is not None
            assert job.due_by is not None
            assert (job.expires_at - job.enqueued_at).total_seconds() == 60
            assert (job.due_by - job.enqueued_at).total_seconds() == 90.5
        plain = await (await double.enqueue(1)).get()
        assert (plain.expires_at, plain.due_by) == (None, None)


async def test_a_handlers_own_moments_are_the_producers_too_where_it_has_its_code(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:

        @bus.job(expires=60, deadline=90)
        async def timely() -> None: ...

        job = await (await timely.options(expires=30).enqueue()).get()
        assert job.enqueued_at is not None
        assert job.expires_at is not None
        assert job.due_by is not None
        assert (job.expires_at - job.enqueued_at).total_seconds() == 30
        assert (job.due_by - job.enqueued_at).total_seconds() == 90
        with pytest.raises(busq.UsageError, match="never start"):
            await timely.options(delay=60).enqueue()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"jid": ""}, "jid"),
        ({"jid": "white space"}, "jid"),
        ({"jid": "x" * 129}, "jid"),
        ({"delay": -1}, "delay"),
        ({"delay": float("nan")}, "delay"),
        ({"delay": 1e12}, "milliseconds"),
        ({"queue": "no such/queue"}, "queue"),
        ({"tags": {"a": 1}}, "tags"),
        ({"retries": -1}, "retries"),
        ({"timeout": 0}, "timeout"),
        ({"expires": 0}, "expires"),
        ({"deadline": float("inf")}, "deadline"),
        ({"expires": 30, "delay": 30}, "expires: 30 s are over"),
        ({"deadline": 20, "delay": 30}, "deadline: 20 s are over"),
        ({"priority": 1}, "priority"),
    ],
)
async def test_an_option_that_will_not_do_is_named_before_anything_is_sent(options: Any, says: str) -> None:
    """The address is nobody's: these never get as far as that."""
    bus = busq.Bus("redis://127.0.0.1:1/0")
    with pytest.raises(busq.UsageError, match=says):
        await bus.options(**options).enqueue("double", 1)


async def test_many_jobs_go_in_order_and_each_has_its_handle(redis_url: str) -> None:
    async with bench(redis_url, shards=4) as b:
        double = kinds(b.bus)
        handles = await b.bus.enqueue_many(double.spec(n) for n in range(600))
        assert len({handle.jid for handle in handles}) == 600
        await b.work()
        assert [await handle.result(timeout=20) for handle in handles] == [n * 2 for n in range(600)]
        assert await b.bus.enqueue_many([]) == []


async def test_specs_of_other_kinds_travel_together(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        double = kinds(bus)
        handles = await bus.enqueue_many([double.options(group="g").spec(1), bus.spec("elsewhere", "x", y=1)])
        records = [await handle.get() for handle in handles]
        assert [(job.kind, job.group, job.args, job.kwargs) for job in records] == [
            ("double", "g", [], {"n": 1}), ("elsewhere", None, ["x"], {"y": 1}),
        ]  # fmt: skip


async def test_a_jid_twice_in_one_call_sends_nothing(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        with pytest.raises(busq.UsageError, match=r"'a'.*nothing was enqueued"):
            await bus.enqueue_many([bus.options(jid=jid).spec("k") for jid in ("b", "a", "a")])
        assert await bus.list() == []


async def test_a_jid_whose_record_exists_is_in_use_whatever_became_of_it(redis_url: str) -> None:
    async with bench(redis_url) as b:
        double = kinds(b.bus)
        first = await double.options(jid="one").enqueue(1)
        with pytest.raises(busq.JidInUse, match=r"'one'.*queued") as caught:
            await double.options(jid="one").enqueue(2)
        assert caught.value.state == "queued"
        await b.work()
        await first.result(timeout=10)
        with pytest.raises(busq.JidInUse) as caught:
            await double.options(jid="one").enqueue(2)
        assert caught.value.state == "succeeded"
        assert (await first.get()).result == 2


async def test_when_one_of_many_is_in_use_the_others_are_enqueued(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        await bus.options(jid="taken").enqueue("k")
        with pytest.raises(busq.JidInUse, match="taken"):
            await bus.enqueue_many([bus.options(jid=jid).spec("k") for jid in ("a", "taken", "b")])
        assert {job.jid for job in await bus.list()} == {"taken", "a", "b"}


async def test_a_tombstone_makes_the_next_enqueue_born_cancelled(redis_url: str) -> None:
    async with bench(redis_url) as b:
        ran: list[int] = []

        @b.bus.job
        async def never() -> None:
            ran.append(1)

        await b.work()
        assert (await b.bus.cancel("later", reason="too early")).verdict == "not_found"
        answer = await b.bus.cancel("later", reason="too early", tombstone=60)
        assert (answer.verdict, answer.state) == ("tombstoned", None)
        handle = await never.options(jid="later").enqueue()
        assert handle.state == "cancelled"
        job = await handle.wait(timeout=10)
        assert (job.state, job.ended, job.reason, ran) == ("cancelled", "before_start", "too early", [])


# Cancelling ----------------------------------------------------------------------------------------------


async def test_many_are_cancelled_in_one_call_and_answered_in_order(redis_url: str) -> None:
    async with busq.Bus(redis_url, shards=3) as bus:
        handles = await bus.enqueue_many(bus.spec("k") for _ in range(500))
        jids = [handle.jid for handle in handles]
        answers = await bus.cancel_many([*jids, "unknown"])
        assert [answer.jid for answer in answers] == [*jids, "unknown"]
        assert [answer.verdict for answer in answers] == [Verdict.CANCELLED] * 500 + [Verdict.NOT_FOUND]
        again = await bus.cancel_many(jids)
        assert {answer.verdict for answer in again} == {Verdict.ALREADY_CANCELLED}


@pytest.mark.parametrize(
    ("how", "says"),
    [({"grace": -1}, "grace"), ({"grace": "5"}, "grace"), ({"tombstone": float("inf")}, "tombstone"),
     ({"reason": 5}, "reason"), ({"reason": "x" * 1001}, "1000"), ({"source": b"me"}, "source")],
)  # fmt: skip
async def test_a_cancel_that_will_not_do_is_named_before_it_is_sent(how: Any, says: str) -> None:
    with pytest.raises(busq.UsageError, match=says):
        await busq.Bus("redis://127.0.0.1:1/0").cancel("x", **how)


async def test_control_characters_in_a_reason_do_not_reach_the_history(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        handle = await bus.enqueue("k")
        await handle.cancel(reason="one\ttwo\nthree\x1b[31m", source="a\tb")
        job = await handle.get()
        assert (job.reason, job.source) == ("one two three [31m", "a b")
        assert [event.name for event in await handle.history()] == ["enqueued", "requested", "finalized"]


# Waiting -------------------------------------------------------------------------------------------------


async def test_a_wait_is_woken_by_an_announcement_and_does_not_poll(own_server: RedisServer) -> None:
    async with bench(own_server.url, beat_s=30.0, lease_s=100.0) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> str:
            await gate.wait()
            return "done"

        await b.work()
        handle = await waits.enqueue()
        await b.reaches(handle.jid, "running")
        waiters = [asyncio.create_task(handle.result(timeout=20)) for _ in range(10)]
        with own_server.client() as client:
            await until(lambda: client.pubsub_numsub("busq:done:" + handle.jid)[0][1])

            async def is_quiet() -> bool:
                before = client.info("commandstats")["cmdstat_hgetall"]["calls"]
                await asyncio.sleep(0.5)  # the one length of time here is the thing that is measured
                return bool(client.info("commandstats")["cmdstat_hgetall"]["calls"] - before <= 10)

            await until(is_quiet)  # once all ten have looked, before and after they listened
            gate.open()
            assert await asyncio.gather(*waiters) == ["done"] * 10
            await until(lambda: client.pubsub_numsub("busq:done:" + handle.jid)[0][1] == 0)


async def test_a_wait_survives_lost_announcements(own_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LOOK_AGAIN_S", 0.05)
    async with bench(own_server.url) as b:
        double = kinds(b.bus)
        handle = await double.enqueue(1)
        waiting = asyncio.create_task(handle.result(timeout=20))
        with own_server.client() as client:
            await until(lambda: client.pubsub_numsub("busq:done:" + handle.jid)[0][1])
            for _ in range(5):
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await b.work()
        assert await waiting == 2


async def test_a_wait_that_runs_out_of_time_says_where_the_job_was(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        handle = await bus.enqueue("k")
        for wait in (handle.wait(timeout=0.01), handle.result(timeout=0.01), bus.wait(handle.jid, timeout=0)):
            with pytest.raises(TimeoutError, match=r"k.*queued after 0"):
                await wait
        assert (await handle.get()).state == "queued", "waiting changes nothing"


async def test_a_cancelled_wait_leaves_nothing_behind(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        handle = await bus.enqueue("k")
        waiting = asyncio.create_task(handle.wait())
        link = await bus._link()
        await until(lambda: link._rung)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not link._rung


async def test_a_bus_that_waits_no_more_listens_no_more_and_listens_again_when_it_waits(redis_url: str) -> None:
    """So one that is dropped without a close, as scripts do, leaves no task behind that is destroyed while pending."""
    async with bench(redis_url) as b:
        double = kinds(b.bus)
        await b.work()
        link = await b.bus._link()
        link._listener._linger_s = 0.01
        for n in (1, 2):
            assert await (await double.enqueue(n)).result(timeout=20) == 2 * n
            listening = link._listening
            assert listening is not None
            await until(listening.done)
            assert listening.exception() is None


async def test_an_unknown_jid_is_not_found(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        for ask in (bus.get, bus.wait, bus.history, bus.result):
            with pytest.raises(busq.JobNotFound, match="'nobody'"):
                await ask("nobody")
        for take in (bus.get, bus.wait, bus.history, bus.cancel):
            with pytest.raises(busq.BadJid):
                await take("no jid")


async def test_a_result_says_how_the_job_ended_when_it_has_none(redis_url: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job
        async def broken() -> int:
            raise ValueError("no film")

        await b.work()
        failed, cancelled = await broken.enqueue(), await broken.options(delay=60).enqueue()
        await cancelled.cancel(reason="changed my mind")
        with pytest.raises(busq.JobFailed, match="no film") as failure:
            await failed.result(timeout=10)
        with pytest.raises(busq.JobCancelled, match="changed my mind") as stop:
            await cancelled.result(timeout=10)
        assert failure.value.job.state == "failed"
        assert stop.value.job.ended == "before_start"
        for error in (failure.value, stop.value, busq.JobNotFound("x"), busq.JidInUse("x", busq.State.QUEUED),
                      busq.Cancelled(busq.Cause.USER, "why"), busq.BadJid("x")):  # fmt: skip
            for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
                assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


async def test_a_value_comes_back_as_its_handler_says(redis_url: str) -> None:
    async with bench(redis_url) as b:

        @b.bus.job
        async def at() -> datetime:
            return datetime(2026, 1, 2, tzinfo=UTC)

        await b.work()
        assert await (await at.enqueue()).result(timeout=10) == datetime(2026, 1, 2, tzinfo=UTC)


# Looking -------------------------------------------------------------------------------------------------


async def test_lists_and_numbers(redis_url: str) -> None:
    async with bench(redis_url, shards=2) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> None:
            await gate.wait()

        @b.bus.job(queue="other")
        async def broken() -> None:
            raise ValueError

        worker = await b.work(concurrency=3)
        await b.watch()
        running = await b.bus.enqueue_many(waits.options(group="g").spec() for _ in range(3))
        for handle in running:
            await b.reaches(handle.jid, "running")
        failed = await b.bus.enqueue_many(broken.spec() for _ in range(0))
        queued = await waits.enqueue()
        later = await waits.options(delay=60).enqueue()
        gone = await waits.options(delay=60).enqueue()
        await gone.cancel()
        assert failed == []
        stats = await b.bus.stats()
        assert {state: count for state, count in stats.now.items() if count} == {
            "running": 3, "queued": 1, "scheduled": 1, "cancelled": 1,
        }  # fmt: skip
        assert [(queue.queue, queue.ready, queue.held) for queue in stats.queues if queue.held] == [("default", 1, 3)]

        async def jids(**how: Any) -> set[str]:
            return {job.jid for job in await b.bus.list(**how)}

        assert await jids(state="running") == {handle.jid for handle in running}
        assert await jids(state=["queued", busq.State.SCHEDULED]) == {queued.jid, later.jid}
        assert await jids(group="g") == {handle.jid for handle in running}
        assert await jids(kind="broken") == set()
        assert len(await b.bus.list(limit=2)) == 2
        with pytest.raises(busq.UsageError, match="state"):
            await b.bus.list(state="done")
        members = {member.card.role: member for member in await b.bus.workers() if member.card}
        assert members.keys() == {"worker", "watchdog"}
        assert members["worker"].name == worker.name
        await until(lambda: _running(b, 3))


async def _running(b: Any, count: int) -> bool:
    return any(member.card and member.card.running == count for member in await b.bus.workers())


# Settings and links --------------------------------------------------------------------------------------


async def test_a_bus_without_a_url_says_what_would_do_at_its_first_use() -> None:
    bus = busq.Bus()
    with pytest.raises(busq.ConfigError, match=r"BUSQ_URL.*busq dev"):
        await bus.cancel("x")


@pytest.mark.parametrize("url", ["http://x", "localhost:6379", "redis://user:secret@[bad"])
async def test_a_url_that_cannot_be_one_is_named_without_its_password(url: str) -> None:
    with pytest.raises(busq.ConfigError) as caught:
        await busq.Bus(url).cancel("x")
    assert "secret" not in str(caught.value)


def test_a_bad_setting_is_told_where_it_stands() -> None:
    with pytest.raises(busq.ConfigError, match=r"beat_s.*-1"):
        busq.Bus("redis://localhost", beat_s=-1)
    with pytest.raises(busq.ConfigError, match="beet_s"):
        busq.Bus("redis://localhost", beet_s=1)


def test_one_bus_serves_one_event_loop_after_another(redis_url: str) -> None:
    bus = busq.Bus(redis_url)

    async def use(jid: str) -> str:
        handle = await bus.options(jid=jid).enqueue("k")
        try:
            await handle.wait(timeout=0.01)
        except TimeoutError:
            return (await bus.cancel(jid)).verdict
        raise AssertionError("nobody runs it")

    assert [asyncio.run(use(jid)) for jid in ("a", "b", "c")] == ["cancelled"] * 3


async def test_a_closed_bus_opens_again(redis_url: str) -> None:
    bus = busq.Bus(redis_url)
    await bus.close()
    handle = await bus.enqueue("k")
    await bus.close()
    assert (await bus.get(handle.jid)).state == "queued"
    await bus.close()


async def test_a_bus_made_with_other_shards_is_refused(redis_url: str) -> None:
    async with busq.Bus(redis_url, shards=2) as bus:
        await bus.stats()
    async with busq.Bus(redis_url, shards=3) as other:
        with pytest.raises(busq.ConfigError, match=r"3.*2"):
            await other.stats()
    async with busq.Bus(redis_url) as any_number:
        await any_number.stats()


async def test_an_unreachable_bus_says_so_without_secrets() -> None:
    with pytest.raises(busq.BusUnavailable, match=r"127\.0\.0\.1:1") as caught:
        await busq.Bus("redis://me:secret@127.0.0.1:1/0").stats()
    assert "secret" not in str(caught.value)


async def test_one_text_is_not_taken_for_many_jids(redis_url: str) -> None:
    async with busq.Bus(redis_url) as bus:
        with pytest.raises(busq.UsageError, match=r"cancel_many takes jids, not one text \('order-17'\)"):
            await bus.cancel_many("order-17")


@pytest.mark.parametrize("how", [{"group": "a\nb"}, {"tags": {"a\n": "b"}}, {"tags": {"a": "\x1b[31m"}}], ids=repr)
async def test_what_jobs_are_found_by_is_taken_as_it_is_or_refused(redis_url: str, how: dict[str, Any]) -> None:
    """Were it cleaned, a cancel of one group would hit the jobs of another."""
    async with busq.Bus(redis_url) as bus:
        with pytest.raises(busq.UsageError, match="takes printable characters"):
            await bus.options(**how).enqueue("k")
        with pytest.raises(busq.UsageError, match="takes printable characters"):
            await bus.cancel_where(**how)
