"""
A server that is there and refuses for now: nothing is taken for a bad record, and nothing is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import redis.asyncio
import uvloop
from redis import exceptions

from busq.config import Settings
from busq.errors import BusUnavailable
from busq.protocol.lineage import Change, Shift
from busq.store.connection import Connections, reaching
from busq.store.lineage import Lineage
from tests.runtime.bench import NEVER_SO_LONG_S, PATIENT, bench, until
from tests.servers import RedisServer


@pytest.mark.parametrize(
    "error",
    [
        exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        exceptions.MasterDownError("Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
        exceptions.ClusterDownError("The cluster is down"),
        exceptions.TryAgainError("Multiple keys request during rehashing of slot"),
        exceptions.ReadOnlyError("You can't write against a read only replica."),
        exceptions.NoScriptError("No matching script. Please use EVAL."),
        exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
        exceptions.ResponseError("BUSY Redis is busy running a script."),
        exceptions.ResponseError("Command # 2 (GET a(b) of) of pipeline caused error: ('BUSY Redis is busy.',)"),
    ],
)
def test_a_server_that_cannot_serve_now_is_not_a_bad_record(error: Exception) -> None:
    with pytest.raises(BusUnavailable), reaching("redis://there"):
        raise error


async def test_jobs_stay_queued_while_the_server_is_out_of_memory(own_server: RedisServer) -> None:
    """Their starts are refused, and no entry is taken for a bad one: it would be buried and its job never run."""
    async with bench(own_server.url, **PATIENT) as b, redis.asyncio.Redis.from_url(own_server.url) as admin:
        gate = b.gate()

        @b.bus.job
        async def wait(n: int) -> int:
            await gate.wait()
            return n

        await b.work(concurrency=1)
        first = await wait.enqueue(0)
        await b.reaches(first.jid, "running")
        others = await b.bus.enqueue_many(wait.spec(n) for n in range(1, 20))
        await admin.config_set("maxmemory", 1)
        gate.open()
        await until(lambda: _refused(admin))
        await admin.config_set("maxmemory", 0)
        assert [await handle.result(timeout=30) for handle in (first, *others)] == list(range(20))
        assert (await b.bus.stats()).dead == 0


async def _refused(admin: redis.asyncio.Redis) -> bool:
    """Whether a start has been refused: the server counts refused scripts by their kind of error."""
    errors = await admin.info("errorstats")
    return bool(errors.get("errorstat_OOM", {}).get("count", 0) >= 2)


async def test_a_change_of_history_makes_a_worker_look_through_its_entries_and_ask_about_its_jobs(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the next look: what the worker knows of its entries and jobs may be of other data."""
    async with bench(redis_url, **PATIENT) as b:
        worker = await b.work()
        control, heard = worker._control, list[str]()
        looks, again = [Shift(change=Change.OTHER_DATA), None], asyncio.Event()
        loop = asyncio.get_running_loop()

        async def look(self: Lineage, shard: int) -> Shift | None:
            if looks:
                return looks.pop(0)
            loop.call_soon_threadsafe(again.set)  # behind whatever the worker was told meanwhile
            return None

        def hear() -> None:
            # A listener that has just been confirmed asks about all jobs too, perhaps only now: that is not meant here.
            monkeypatch.setattr(control._listener, "_on_confirmed", lambda channels: None)
            monkeypatch.setattr(worker._intake, "reconcile_soon", lambda: heard.append("entries"))
            monkeypatch.setattr(control, "_ask_about_all", lambda: heard.append("jobs"))
            monkeypatch.setattr(Lineage, "look", look)

        control._loop.call_soon_threadsafe(hear)
        async with asyncio.timeout(NEVER_SO_LONG_S):
            await again.wait()
        assert sorted(heard) == ["entries", "jobs"]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_writing_to_a_connection_that_has_ended_loses_the_connection_and_nothing_else(
    redis_server: RedisServer, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Whichever word the loop has for it: redis-py tries again after its own errors only."""

    async def story() -> None:
        connections = Connections(Settings(url=redis_server.url))
        connection = connections.commands.connection_pool.make_connection()
        await connection.connect()
        connection._writer.transport.abort()
        await asyncio.sleep(0)  # the loop tells the transport that it is over
        await asyncio.sleep(0)
        with pytest.raises(exceptions.ConnectionError):
            await connection.send_command("PING")
        await connection.send_command("PING")
        assert await connection.read_response() == b"PONG"
        await connection.disconnect()
        await connections.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(story())
