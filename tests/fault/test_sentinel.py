"""A primary that fails while jobs run: Sentinels name another, and everybody goes on there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from busq.config import Settings
from busq.errors import BusUnavailable, ConfigError
from busq.protocol.states import State
from busq.store import sentinel
from busq.store.address import Node
from busq.store.connection import Connections, reaching
from tests.roles import elsewhere
from tests.runtime.bench import Bench, Gate, bench, taken, until
from tests.servers import RedisServer, find_redis_server
from tests.topologies import SentinelSet, replicated

JOBS = 40
SETTINGS: dict[str, Any] = {
    "lease_s": 60.0,  # no lease runs out during a failover, however slow the machine is
    "grace_s": 5.0,
    "connect_timeout_s": 1.0,
    "command_timeout_s": 1.0,
}


@pytest.fixture
def sentinels(start_server: Callable[..., RedisServer]) -> Iterator[SentinelSet]:
    executable = find_redis_server()
    assert executable is not None
    made = SentinelSet(start_server, executable)
    yield made
    made.close()


def _declare(b: Bench, held: dict[str, Gate]) -> tuple[Any, Any]:
    @b.bus.job
    async def hold(name: str) -> str:
        await held[name].wait()
        return name

    @b.bus.job
    async def short(n: int) -> int:
        return n

    return hold, short


async def _persistently(call: Callable[[], Any]) -> Any:
    """What a caller does who is told that Redis cannot serve now: the same call again."""
    while True:
        try:
            return await call()
        except BusUnavailable:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_nothing_is_lost_when_the_primary_fails_while_jobs_run(sentinels: SentinelSet, how: str) -> None:
    async with bench(sentinels.url, **SETTINGS) as b:
        held = {name: b.gate() for name in ("ends", "stops")}
        hold, short = _declare(b, held)
        worker = await b.work()
        await b.watch()
        ends, stops = await hold.enqueue("ends"), await hold.enqueue("stops")
        for handle in (ends, stops):
            await taken(worker, handle.jid)
        replicated(sentinels.primary, b"mark")  # what nobody has confirmed may be lost, and is not what we look at
        if how == "killed":
            sentinels.primary.kill()
        else:
            sentinels.primary.pause()
        promoted = await asyncio.to_thread(sentinels.promoted)

        specs = [short.options(jid=f"later-{n}").spec(n) for n in range(JOBS)]
        handles = await _persistently(lambda: b.bus.enqueue_many(specs))
        for n, handle in enumerate(handles):
            assert await _persistently(lambda handle=handle: handle.result(timeout=60)) == n
        verdict = (await _persistently(lambda: b.bus.cancel(stops.jid))).verdict
        assert verdict in ("signalled", "already_cancelling"), "an earlier try may have got through unanswered"
        assert (await b.reaches(stops.jid, State.CANCELLED)).ended == "confirmed"
        held["ends"].open()
        assert (await b.reaches(ends.jid, State.SUCCEEDED)).attempt == 1
        await until(lambda: not worker.unready)
        with promoted.client() as client:  # a listener finds a frozen server by its silence, a while later
            await until(lambda: client.pubsub_numsub("busq:rules")[0][1] == 1)


async def test_a_primary_that_wakes_up_late_gets_no_more_of_our_commands(sentinels: SentinelSet) -> None:
    connections = Connections(Settings.load({}, url=sentinels.url, **SETTINGS))
    await connections.commands.set("of", "the old one")
    sentinels.primary.pause()
    promoted = await asyncio.to_thread(sentinels.promoted)
    await connections.commands.set("of", "the new one")
    sentinels.primary.resume()
    for _ in range(40):  # more than there are connections
        await connections.commands.incr("count")
    with promoted.client() as client:
        assert (client.get("of"), client.get("count")) == (b"the new one", b"40")
    await connections.close()


@pytest.fixture
def two(start_server: Callable[..., RedisServer]) -> Iterator[tuple[RedisServer, RedisServer]]:
    """Two servers, the second of them a replica of the first."""
    servers = [start_server(users=True, options=["--repl-diskless-sync-delay", "0"]) for _ in range(2)]
    with servers[1].client() as client:
        client.replicaof("127.0.0.1", servers[0].port)
    yield servers[0], servers[1]
    for server in servers:
        server.close()


def _say(monkeypatch: pytest.MonkeyPatch, *servers: RedisServer) -> list[Node]:
    """Let Sentinels name these in turn, the last one for ever. What they were asked for so far."""
    named: list[Node] = []

    async def name(self: sentinel.Primary) -> Node:
        named.append(("127.0.0.1", servers[min(len(named), len(servers) - 1)].port))
        return named[-1]

    monkeypatch.setattr(sentinel.Primary, "__call__", name)
    return named


async def test_a_primary_that_was_demoted_is_left_at_its_first_refusal(
    two: tuple[RedisServer, RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Demoted silently: Sentinels also close its connections, but that may not arrive."""
    old, new = two
    named = _say(monkeypatch, old, new)
    connections = Connections(Settings.load({}, url=elsewhere(old.url, "nowhere/s", scheme="redis+sentinel")))
    await connections.commands.set("a", 1)
    with new.client() as at_new, old.client() as at_old:
        at_new.replicaof("no", "one")
        at_old.replicaof("127.0.0.1", new.port)
        await connections.commands.set("a", 2)
        assert at_new.get("a") == b"2"
    assert len(named) == 2
    await connections.close()


async def test_what_a_sentinel_of_yesterday_names_is_not_used(
    two: tuple[RedisServer, RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, replica = two
    named = _say(monkeypatch, replica, primary)
    connections = Connections(Settings.load({}, url=elsewhere(primary.url, "nowhere/s", scheme="redis+sentinel")))
    assert (await connections.commands.info("replication"))["role"] == "master"
    assert [port for _, port in named] == [replica.port, primary.port]
    await connections.close()


async def test_what_sentinels_do_not_answer_is_said_with_what_would_do(sentinels: SentinelSet) -> None:
    connections = Connections(Settings.load({}, url=sentinels.url.replace("/jobs", "/jbos")))
    with pytest.raises(ConfigError, match="know no service 'jbos'; they know: jobs"), reaching(connections.place):
        await connections.commands.ping()
    await connections.close()
    for each in sentinels.sentinels:
        with each.client() as client:
            client.execute_command("ACL SETUSER", "default", ">of sentinels", "resetpass", ">of sentinels")
    connections = Connections(Settings.load({}, url=sentinels.url))
    with pytest.raises(BusUnavailable, match="BUSQ_SENTINEL_PASSWORD"), reaching(connections.place):
        await connections.commands.ping()
    await connections.close()
    connections = Connections(Settings.load({}, url=sentinels.url, sentinel_password="of sentinels"))
    assert await connections.commands.ping()
    await connections.close()


async def test_no_sentinel_at_all_is_said_with_what_each_answered() -> None:
    connections = Connections(Settings.load({}, url="redis+sentinel://127.0.0.1:1/jobs"))
    with pytest.raises(BusUnavailable, match="no Sentinel names a primary of 'jobs'"), reaching(connections.place):
        await connections.commands.ping()
    await connections.close()
