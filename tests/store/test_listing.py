"""Lists of a bus with very many jobs: what is looked at is bounded, and a list says when that was not all."""

from __future__ import annotations

import pytest

from busq.protocol.states import State
from busq.store import listing as walking
from busq.store.reader import Reader
from tests.store.bench import QUEUE, Bench, put_in

S = State
MEBIBYTE = 1024 * 1024


async def test_a_list_that_did_not_look_at_everything_says_so(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "STEP", 4)
    monkeypatch.setattr(walking, "SCAN_MOST", 10)
    async with Bench(url) as bench:
        for _ in range(13):
            await bench.enqueue()
        rare = await bench.enqueue(kind="rare")
        reader = Reader(bench.a)
        listing = await reader.listing(kind="rare")
        assert (listing.jobs, listing.more, listing.looked_at) == ([], True, 12)
        monkeypatch.setattr(walking, "SCAN_MOST", 20)
        listing = await reader.listing(kind="rare")
        assert ([job.jid for job in listing.jobs], listing.more) == ([rare], False)
        assert (await reader.listing(limit=13)).more
        assert not (await reader.listing(limit=15)).more


@pytest.mark.parametrize("step", [1, 3, 100])
async def test_running_jobs_are_found_however_many_wait_behind_and_before_them(
    url: str, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The entries that workers hold are asked for, and nobody walks past those that wait."""
    monkeypatch.setattr(walking, "STEP", step)
    async with Bench(url) as bench:
        running = [await bench.run() for _ in range(5)]
        for _ in range(30):
            await bench.enqueue()
        cancelling = await put_in(bench, S.CANCELLING)
        listing = await Reader(bench.a).listing(states=[S.RUNNING, S.CANCELLING])
        assert {job.jid for job in listing.jobs} == {held.jid for held in running} | {cancelling.jid}
        assert listing.looked_at < 40  # the bench reads all that waits to get at the last one


async def test_a_queue_without_a_group_or_with_deleted_entries_is_no_trouble(url: str) -> None:
    async with Bench(url) as bench:
        await bench.enqueue(queue="unread")
        held, gone = await bench.run(), await bench.run()
        await bench.redis.xdel(bench.a.keys(0).stream(QUEUE), gone.entry)
        assert [job.jid for job in await Reader(bench.a).jobs(states=[S.RUNNING])] == [held.jid]


async def test_jobs_of_one_queue_are_found_without_looking_at_others(url: str) -> None:
    async with Bench(url) as bench:
        for _ in range(20):
            await bench.enqueue()
        jid = await bench.enqueue(queue="small", group="g")
        listing = await Reader(bench.a).listing(states=[S.QUEUED], queue="small")
        assert ([job.jid for job in listing.jobs], listing.looked_at) == ([jid], 1)
        assert [job.jid for job in await Reader(bench.a).jobs(kind="k", queue="small", group="g")] == [jid]
        assert await Reader(bench.a).jobs(queue="small", group="another") == []


@pytest.mark.parametrize("size", [10, MEBIBYTE])
async def test_large_records_are_told_in_several_short_calls(url: str, size: int) -> None:
    async with Bench(url) as bench:
        jids = [await bench.enqueue(payload=b"\x01" + bytes(size)) for _ in range(4)]
        jids.insert(2, "nobody")
        answers = await bench.a.run("look", 0, jids, ())
        assert len(answers) == (5 if size == 10 else 1)
        looks = await bench.a.look(0, jids)
        assert [len(look.record.get(b"payload", b"")) for look in looks] == [size + 1] * 2 + [0] + [size + 1] * 2
