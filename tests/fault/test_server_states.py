"""
Every state in which a server is there and does not serve: named, said once, shown, and over when it is over.

Each story is the same, on a real server: work, trouble, and work again. What differs is how the server is brought
there and back.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError
from structlog.testing import capture_logs

import busq
from busq.protocol.trouble import Trouble
from busq.store import outage
from busq.watchdog.watchdog import Watchdog
from busq.worker.worker import Worker
from tests.roles import password_of
from tests.runtime.bench import bench, taken, until
from tests.servers import RedisServer

Way = Callable[[RedisServer], AbstractContextManager[object]]
"""Brings a server into trouble, and out of it at the end."""


@pytest.fixture(autouse=True)
def soon_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers of these stories do not come and go: what is over is over."""
    monkeypatch.setattr(outage, "CALM_S", 0.3)
    monkeypatch.setattr(outage.Backoff, "LONGEST_S", 0.2)


@contextmanager
def configured(server: RedisServer, **values: Any) -> Iterator[None]:
    with server.client() as client:
        before = {name: client.config_get(name)[name] for name in (key.replace("_", "-") for key in values)}
        for name, value in values.items():
            client.config_set(name.replace("_", "-"), value)
        try:
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


@contextmanager
def demoted(server: RedisServer) -> Iterator[None]:
    """A replica of nobody who answers: it keeps what it has."""
    with server.client() as client:
        client.replicaof("127.0.0.1", "1")
        try:
            yield
        finally:
            client.replicaof("no", "one")


@contextmanager
def frozen(server: RedisServer) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    def quietly() -> None:
        with suppress(RedisError):
            work()

    thread = threading.Thread(target=quietly)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextmanager
def loading(server: RedisServer) -> Iterator[None]:
    """It reads its keys back, and takes its time over each until it may hurry."""
    with server.client() as client, configured(server, loading_process_events_interval_bytes=1024):
        client.execute_command("EVAL", "for i = 1, 15000 do redis.call('SET', 'ballast' .. i, i) end", 0)
        client.config_set("key-load-delay", 1500)
        with in_background(lambda: client.execute_command("DEBUG", "RELOAD")):
            try:
                yield
            finally:
                with server.client() as hurry:
                    hurry.config_set("key-load-delay", 0)


@contextmanager
def held_up(server: RedisServer) -> Iterator[None]:
    """Somebody's script does not end."""

    def for_ever() -> None:
        with server.client() as client:
            client.execute_command("EVAL", "while true do end", 0)

    with configured(server, busy_reply_threshold=50), server.client() as client, in_background(for_ever):
        try:
            yield
        finally:
            client.script_kill()


@contextmanager
def disk_full(server: RedisServer) -> Iterator[None]:
    """Its last snapshot could not be written: a folder stands where the file should be."""
    in_the_way = os.path.join(server.folder, "dump.rdb")

    def save(client: Redis, state: str) -> None:
        client.bgsave()
        while client.info("persistence")["rdb_last_bgsave_status"] != state:
            pass

    with configured(server, save="3600 1"), server.client() as client:
        os.mkdir(in_the_way)
        save(client, "err")
        try:
            yield
        finally:
            os.rmdir(in_the_way)
            save(client, "ok")


@contextmanager
def crowded(server: RedisServer) -> Iterator[None]:
    with server.client() as client:
        client.config_set("maxclients", 1)
        client.client_kill_filter(_type="normal", skipme=True)
        client.client_kill_filter(_type="pubsub")
        try:
            yield
        finally:
            client.config_set("maxclients", 1000)


@contextmanager
def uncovered(server: RedisServer) -> Iterator[None]:
    """A cluster of one node that has given its slots away."""
    with server.client() as client:
        client.execute_command("CLUSTER", "DELSLOTSRANGE", 0, 16383)
        try:
            yield
        finally:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)


@contextmanager
def cluster_of_one(server: RedisServer) -> Iterator[None]:
    with server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
            pass
    yield


@contextmanager
def users(server: RedisServer, rule: str, back: Callable[[str], str]) -> Iterator[None]:
    """What those of the story may is changed while they are connected, and they are hung up on."""
    with server.client() as client:
        for name in ("client", "worker", "watchdog"):
            client.execute_command("ACL", "SETUSER", name, *rule.split())
            client.execute_command("CLIENT", "KILL", "USER", name)
        try:
            yield
        finally:
            for name in ("client", "worker", "watchdog"):
                client.execute_command("ACL", "SETUSER", name, *back(name).split())


PASSWORD_CHANGED: Way = lambda server: users(server, "resetpass >new", lambda name: f"resetpass >{password_of(name)}")  # noqa: E731
SWITCHED_OFF: Way = lambda server: users(server, "off", lambda name: "on")  # noqa: E731
NO_SCRIPTS: Way = lambda server: users(server, "-evalsha", lambda name: "+evalsha")  # noqa: E731
NO_CLOCK_IN_SCRIPTS: Way = lambda server: users(server, "-time", lambda name: "+time")  # noqa: E731
FEW_REPLICAS: Way = lambda server: configured(server, min_replicas_to_write=1)  # noqa: E731

PLAIN: dict[str, Any] = {}
STORIES: list[tuple[str, Way, Trouble, dict[str, Any]]] = [
    ("few replicas", FEW_REPLICAS, Trouble.FEW_REPLICAS, PLAIN),
    ("demoted", demoted, Trouble.READ_ONLY, PLAIN),
    ("frozen", frozen, Trouble.UNREACHABLE, PLAIN),
    ("loading", loading, Trouble.LOADING, {"options": ["--enable-debug-command", "yes"]}),
    ("held up", held_up, Trouble.BUSY, PLAIN),
    ("disk", disk_full, Trouble.DISK, PLAIN),
    ("crowded", crowded, Trouble.CROWDED, PLAIN),
    ("uncovered", uncovered, Trouble.CLUSTER_DOWN, {"options": ["--cluster-enabled", "yes"]}),
    ("password", PASSWORD_CHANGED, Trouble.LOGIN, PLAIN),
    ("switched off", SWITCHED_OFF, Trouble.LOGIN, PLAIN),
    ("no scripts", NO_SCRIPTS, Trouble.FORBIDDEN, PLAIN),
    ("no clock in scripts", NO_CLOCK_IN_SCRIPTS, Trouble.FORBIDDEN, PLAIN),
]


@contextmanager
def server_of(story: str, start_server: Callable[..., RedisServer], how: dict[str, Any]) -> Iterator[RedisServer]:
    server = start_server(users=True, **how)
    try:
        if "--cluster-enabled" in how.get("options", ()):
            with cluster_of_one(server):
                yield server
        else:
            yield server
    finally:
        server.close()


def told(lines: list[Any], event: str) -> list[Any]:
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize(("story", "way", "trouble", "how"), STORIES, ids=[story for story, *_ in STORIES])
async def test_a_server_in_trouble_is_named_said_once_shown_and_waited_for(
    story: str, way: Way, trouble: Trouble, how: dict[str, Any], start_server: Callable[..., RedisServer]
) -> None:
    with server_of(story, start_server, how) as server, capture_logs() as lines:
        quick = {"command_timeout_s": 0.3, "connect_timeout_s": 0.3, "lease_s": 60.0}
        async with bench(server.url, **quick) as b:

            @b.bus.job
            async def short(n: int) -> int:
                return n

            worker, dog = await b.work(), await b.watch()
            assert await (await short.enqueue(1)).result(timeout=30) == 1
            async with in_trouble(way(server)):
                await until(lambda: worker.health().trouble == trouble)
                await until(lambda: dog.health().trouble == trouble)
                await until(lambda: str(trouble) in " ".join(worker.health().ready.values()))
                # Awaited: of several tries at a crowded server some hear no more than that the connection is lost.
                await until(lambda: str(trouble) in dog.health().ready["redis"])
                assert not any(worker.health().live.values()), "no reason to start it anew"
                error = await _until_refused(short, trouble)
                assert trouble.words in str(error)
            await until(lambda: not any(worker.health().ready.values()))
            await until(lambda: not any(dog.health().ready.values()))
            assert await (await _accepted(short, 2)).result(timeout=30) == 2
            await until(lambda: len(told(lines, "bus.back")) == 2)
        _said_once(lines, worker, dog, trouble)


def _said_once(lines: list[Any], worker: Worker, dog: Watchdog, trouble: Trouble) -> None:
    lost, back = told(lines, "bus.lost"), told(lines, "bus.back")
    named = [line["trouble"] for line in lost]
    # On its way in and out a server may show another face; each face is told once by each process.
    assert all(named.count(each) <= 2 for each in set(named)), lost
    assert named.count(str(trouble)) == 2, lost
    assert len(back) == 2, back
    assert all(line["after_s"] >= 0 for line in back)
    assert len(lines) < 40, "no flood"


@asynccontextmanager
async def in_trouble(way: AbstractContextManager[object]) -> AsyncIterator[None]:
    """Both ways wait for the server, and the loop must go on meanwhile: the worker is in it."""
    await asyncio.to_thread(way.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(way.__exit__, None, None, None)


async def _until_refused(short: Any, trouble: Trouble) -> busq.BusUnavailable:
    async def refused() -> busq.BusUnavailable | None:
        try:
            await short.enqueue(0)
        except busq.BusUnavailable as error:
            return error if error.trouble == trouble else None
        return None

    return await until(refused)


async def _accepted(short: Any, n: int) -> Any:
    async def accepted() -> Any:
        try:
            return await short.enqueue(n)
        except busq.BusUnavailable:
            return None

    return await until(accepted)


# Out of memory: what is new waits, what ends goes through ---------------------------------------------------------


async def test_a_full_server_still_takes_cancels_and_endings_and_starts_the_rest_when_there_is_room(
    own_server: RedisServer,
) -> None:
    """A cancel is confirmed, a stubborn one finalized, a result kept; a queued job waits, and is not taken for odd."""
    with capture_logs() as lines:
        async with bench(own_server.url, lease_s=60.0) as b:
            gate = b.gate()

            @b.bus.job
            async def waits(n: int) -> int:
                await gate.wait()
                return n

            @b.bus.job
            def deaf() -> None:
                gate.block()

            worker, dog = await b.work(concurrency=3), await b.watch()
            stopped, stubborn, good = await waits.enqueue(1), await deaf.enqueue(), await waits.enqueue(2)
            for handle in (stopped, stubborn, good):
                await taken(worker, handle.jid)
            later = await b.bus.options(delay=2.0).enqueue("waits", 3)  # due when the server is full
            full = configured(own_server, maxmemory=1)
            async with in_trouble(full):
                with pytest.raises(busq.BusUnavailable, match="out of memory") as refused:
                    await waits.enqueue(4)
                assert refused.value.trouble == "out_of_memory"
                assert (await stopped.cancel()).verdict == (await stubborn.cancel()).verdict == "signalled"
                assert (await stopped.wait(timeout=30)).ended == "confirmed"
                assert (await stubborn.wait(timeout=30)).ended == "abandoned"
                assert (await b.bus.cancel_kind("nothing_of_this_kind")).id
                await until(lambda: "out_of_memory" in dog.health().ready["redis"])  # `later` is due
                assert dog.health().reachable
                gate.open()
                assert await good.result(timeout=30) == 2
            assert await later.result(timeout=30) == 3
            await until(lambda: not dog.health().trouble)
        assert told(lines, "entry.buried") == []
        assert len(told(lines, "bus.lost")) == 1


async def test_an_entry_that_a_full_server_would_not_start_is_no_dead_letter(own_server: RedisServer) -> None:
    async with bench(own_server.url, lease_s=60.0) as b:

        @b.bus.job
        async def short(n: int) -> int:
            return n

        worker = await b.work()
        server_full = asyncio.Event()
        start = worker._store.start

        async def start_when_full(*args: Any, **kwargs: Any) -> Any:
            await server_full.wait()
            return await start(*args, **kwargs)

        worker._store.start = start_when_full  # type: ignore[method-assign]
        handle = await short.enqueue(7)
        async with in_trouble(configured(own_server, maxmemory=1)):
            server_full.set()
            await until(lambda: worker.health().trouble == "out_of_memory")
            assert "out_of_memory" in worker.health().ready["intake"]
            assert (await handle.get()).state == "queued"
        assert await handle.result(timeout=30) == 7
        assert (await b.bus.stats()).dead == 0
