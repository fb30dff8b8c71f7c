"""
Confirmed writes, with a real replica and a real disk: what is confirmed is so, and what is not is said, in time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ResponseError

import busq
from tests.fault.proxy import Proxy
from tests.interface.commands import busq as command
from tests.interface.commands import document
from tests.roles import as_role, deploy, elsewhere
from tests.runtime.bench import BUSY_S, until
from tests.servers import RedisServer

WITHIN: dict[str, Any] = {"confirm_within_s": 0.4, "command_timeout_s": 3.0}
PATIENT: dict[str, Any] = {"confirm_within_s": 20.0, "command_timeout_s": 30.0}
"""For what will be confirmed, however busy the machine is: the answer comes with the confirmation."""
KEEPS_DATA = pytest.mark.parametrize("own_server", [{"aof": True}], indirect=True)


@pytest.fixture
def replica(own_server: RedisServer, start_server: Callable[..., RedisServer]) -> Iterator[RedisServer]:
    server = start_server(users=True)
    with server.client() as client:
        client.replicaof("127.0.0.1", str(own_server.port))
    yield server
    server.close()


@asynccontextmanager
async def bus_of(url: str, user: str = "client", **settings: Any) -> AsyncIterator[busq.Bus]:
    """What this user sees of a bus that a watchdog has made."""
    await deploy(url)
    async with busq.Bus(as_role(url, user), **settings) as bus:
        yield bus


async def in_step(primary: RedisServer, replicas: int = 1) -> None:
    with primary.client() as client:
        await until(lambda: client.wait(replicas, 100) == replicas)


def knows_waitaof(server: RedisServer) -> bool:
    with server.client() as client:
        try:
            client.execute_command("WAITAOF", 0, 0, 0)
        except ResponseError:
            return False
    return True


async def test_a_replica_that_has_it_is_told_of(own_server: RedisServer, replica: RedisServer) -> None:
    await in_step(own_server)
    async with bus_of(own_server.url, **PATIENT) as bus:

        @bus.job
        async def short(n: int) -> int:
            return n

        handle = await short.options(durability="replicated").enqueue(1)
        assert handle.confirmed is not None
        assert (handle.confirmed.ok, handle.confirmed.replicas, handle.confirmed.wanted) == (True, 1, 1)
        assert handle.confirmed.fsynced is None
        with replica.client() as client:
            assert client.exists("busq:{0}:job:" + handle.jid), "it is there at this very moment"
        answer = await handle.cancel(durability="replicated")
        assert answer.confirmed is not None
        assert answer.confirmed.ok
        again = await bus.cancel(handle.jid, durability="replicated")
        assert again.verdict == "already_cancelled"
        assert again.confirmed is not None
        assert again.confirmed.ok, "what it found was replicated too"
        scope = await bus.cancel_where(kind="short", durability="replicated")
        assert scope.confirmed is not None
        assert scope.confirmed.ok
        assert (await bus.cancel("nobody")).confirmed is None, "nobody asked"
        plain, asked = await bus.enqueue_many([short.spec(1), short.options(durability="replicated").spec(2)])
        assert plain.confirmed is None
        assert asked.confirmed is not None
        assert asked.confirmed.ok


async def test_a_replica_that_is_stopped_is_a_shortfall_that_is_told_in_time(
    own_server: RedisServer, replica: RedisServer
) -> None:
    await in_step(own_server)
    async with bus_of(own_server.url, **WITHIN) as bus:
        await bus.options(durability="replicated").enqueue("short")
        replica.pause()
        begun = time.monotonic()
        handle = await bus.options(durability="replicated").enqueue("short")
        assert 0.4 <= time.monotonic() - begun <= 0.4 + BUSY_S
        assert handle.confirmed is not None
        assert (handle.confirmed.ok, handle.confirmed.replicas) == (False, 0)
        assert handle.confirmed.words == "taken by 0 of 1 replicas"
        assert (await handle.get()).state == "queued", "written all the same"
        answer = await handle.cancel(durability="replicated")
        assert answer.verdict == "cancelled"
        assert answer.confirmed is not None
        assert not answer.confirmed.ok
        replica.resume()
        await in_step(own_server)
        async with bus_of(own_server.url, **PATIENT) as patient:
            again = await patient.cancel(handle.jid, durability="replicated")
        assert again.confirmed is not None
        assert again.confirmed.ok


async def test_two_replicas_can_be_asked_for(own_server: RedisServer, replica: RedisServer) -> None:
    await in_step(own_server)
    async with bus_of(own_server.url, confirm_replicas=2, confirm_within_s=2.0) as bus:
        handle = await bus.options(durability="replicated").enqueue("short")
        assert handle.confirmed is not None
        assert (handle.confirmed.ok, handle.confirmed.replicas, handle.confirmed.wanted) == (False, 1, 2)


async def test_without_any_replica_none_has_it(redis_url: str) -> None:
    async with bus_of(redis_url, **WITHIN) as bus:
        handle = await bus.options(durability="replicated").enqueue("short")
        assert handle.confirmed is not None
        assert (handle.confirmed.ok, handle.confirmed.replicas) == (False, 0)


async def test_a_connection_that_breaks_before_the_confirmation_confirms_nothing_by_itself(
    own_server: RedisServer, replica: RedisServer
) -> None:
    """The reply of script and WAIT is lost: both go out again together, and there is one job."""
    await in_step(own_server)
    async with Proxy(own_server.port) as proxy, bus_of(elsewhere(own_server.url, proxy.place), **PATIENT) as bus:
        await bus.options(durability="replicated").enqueue("short")
        seen: list[bytes] = []

        def once(reply: bytes, asked: bytes) -> bool:
            if b"EVALSHA" not in asked:
                return False
            seen.append(asked)
            return len(seen) == 1

        proxy.lose = once
        handle = await bus.options(durability="replicated").enqueue("short")
        assert handle.confirmed is not None
        assert handle.confirmed.ok
        assert proxy.lost == 1
        assert all(b"WAIT" in asked for asked in seen), "never one without the other"
        assert len(await bus.list(state="queued")) == 2


async def test_scripts_that_the_server_forgot_are_loaded_and_confirmed(
    own_server: RedisServer, replica: RedisServer
) -> None:
    await in_step(own_server)
    async with bus_of(own_server.url, "admin", **PATIENT) as bus:
        await bus.options(durability="replicated").enqueue("short")
        with own_server.client() as client:
            client.script_flush()
        handle = await bus.options(durability="replicated").enqueue("short")
        assert handle.confirmed is not None
        assert handle.confirmed.ok


async def test_a_refused_script_is_raised_and_not_confirmed(own_server: RedisServer, replica: RedisServer) -> None:
    await in_step(own_server)
    async with bus_of(own_server.url, **WITHIN) as bus:
        await bus.options(durability="replicated").enqueue("short")
        with own_server.client() as client:
            client.config_set("maxmemory", 1)
        with pytest.raises(busq.BusUnavailable, match="out of memory"):
            await bus.options(durability="replicated").enqueue("short")
        with own_server.client() as client:
            client.config_set("maxmemory", 0)
        await bus.options(jid="one", durability="replicated").enqueue("short")
        with pytest.raises(busq.JidInUse):
            await bus.options(jid="one", durability="replicated").enqueue("short")


# The disk ----------------------------------------------------------------------------------------------------------


async def test_a_server_that_cannot_confirm_its_disk_says_so_before_anything_is_written(redis_url: str) -> None:
    """It keeps no append-only file; Redis 7.0 has no WAITAOF either."""
    async with bus_of(redis_url, "admin", **WITHIN) as bus:
        with pytest.raises(busq.UsageError, match=r"'fsynced' cannot be confirmed .* Nothing was written"):
            await bus.options(jid="one", durability="fsynced").enqueue("short")
        with pytest.raises(busq.JobNotFound):
            await bus.get("one")
        await bus.options(jid="one").enqueue("short")
        with pytest.raises(busq.UsageError, match="fsynced"):
            await bus.cancel("one", durability="fsynced")
        assert (await bus.get("one")).state == "queued"


@KEEPS_DATA
async def test_a_server_that_writes_through_confirms_by_answering(own_server: RedisServer) -> None:
    with own_server.client() as client:
        client.config_set("appendfsync", "always")
    async with bus_of(own_server.url, "admin", **WITHIN) as bus:
        handle = await bus.options(durability="fsynced").enqueue("short")
        assert handle.confirmed is not None
        assert (handle.confirmed.ok, handle.confirmed.fsynced, handle.confirmed.replicas) == (True, True, None)
        assert handle.confirmed.words == "on the server's disk"


@KEEPS_DATA
async def test_an_fsync_is_waited_for_where_the_server_can_tell(own_server: RedisServer) -> None:
    if not knows_waitaof(own_server):
        pytest.skip("this server has no WAITAOF; Redis 7.2 and Valkey 8 have (set BUSQ_REDIS_SERVER)")
    await deploy(own_server.url)
    url = as_role(own_server.url, "client")
    with own_server.client() as client:
        client.config_set("appendfsync", "everysec")
    async with busq.Bus(url, **PATIENT) as bus:
        handle = await bus.options(durability="fsynced").enqueue("short")
        assert handle.confirmed is not None
        assert handle.confirmed.fsynced
        with own_server.client() as client:
            client.config_set("appendfsync", "no")
        async with busq.Bus(url, **WITHIN) as hasty:
            answer = await hasty.cancel(handle.jid, durability="fsynced")
        assert answer.verdict == "cancelled"
        assert answer.confirmed is not None
        assert not answer.confirmed.ok


@KEEPS_DATA
async def test_without_waitaof_a_server_that_syncs_now_and_then_is_refused(own_server: RedisServer) -> None:
    if knows_waitaof(own_server):
        pytest.skip("this server has WAITAOF")
    async with bus_of(own_server.url, "admin", **WITHIN) as bus:
        with pytest.raises(busq.UsageError, match=r"appendfsync always\. Nothing was written"):
            await bus.options(durability="fsynced").enqueue("short")


@KEEPS_DATA
async def test_a_user_who_may_not_see_that_the_server_writes_through_is_told_so(own_server: RedisServer) -> None:
    if knows_waitaof(own_server):
        pytest.skip("this server has WAITAOF")
    with own_server.client() as client:
        client.config_set("appendfsync", "always")
    async with bus_of(own_server.url, "producer", **WITHIN) as bus:
        with pytest.raises(busq.UsageError, match=r"this user may not look up \(\+config\|get\)\. Nothing was written"):
            await bus.options(durability="fsynced").enqueue("short")
        with own_server.client() as client:
            client.execute_command("ACL", "SETUSER", "producer", "+config|get")
        handle = await bus.options(durability="fsynced").enqueue("short")
        assert handle.confirmed is not None
        assert handle.confirmed.fsynced


# How it is asked for ------------------------------------------------------------------------------------------------


def test_blocking_calls_and_words_that_will_not_do(redis_url: str) -> None:
    asyncio.run(deploy(redis_url))
    bus = busq.Bus(as_role(redis_url, "client"), **WITHIN)
    with pytest.raises(busq.UsageError, match="durability: 'yes' will not do"):
        bus.options(durability="yes").spec("short")
    handle = bus.options(durability="replicated").blocking.enqueue("short")
    assert handle.confirmed is not None
    assert not handle.confirmed.ok
    for answer in (handle.cancel(durability="replicated"), *bus.blocking.cancel_many(["x"], durability="replicated")):
        assert answer.confirmed is not None
        assert not answer.confirmed.ok
    scope = bus.blocking.cancel_group("g", durability="replicated")
    assert scope.confirmed is not None
    bus.blocking.close()


def test_a_command_says_what_was_not_confirmed_and_exits_with_1(redis_url: str) -> None:
    asyncio.run(deploy(redis_url))
    url = as_role(redis_url, "client")
    made = command("enqueue", "add", "--jid", "a", "--durability", "replicated", "-o", "json", url=url)
    assert made.returncode == 1
    assert document(made)["confirmed"] == {
        "asked": "replicated", "ok": False, "wanted": 1, "replicas": 0, "fsynced": None
    }  # fmt: skip
    assert "not confirmed as replicated: taken by 0 of 1 replicas" in made.stderr
    assert "Traceback" not in made.stderr
    for words in (["a"], ["--kind", "add"]):
        cancelled = command("cancel", *words, "--durability", "replicated", url=url)
        assert cancelled.returncode == 1
        assert "not confirmed as replicated" in cancelled.stderr
    unknown = command("cancel", "nobody", "--durability", "replicated", url=url)
    assert unknown.returncode == 1
    assert "not confirmed" not in unknown.stderr, "nothing was written that could be"
    refused = command("enqueue", "add", "--durability", "fsynced", url=url)
    assert refused.returncode == 2
