"""
The data behind the bus is not what it was: noticed, told with what was seen, counted, and set right.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

import busq
from busq import events
from busq.store import losses
from busq.store.lineage import LOOK_EVERY_S, Lineage
from busq.store.streams import Streams, mark_lost
from busq.watchdog.watchdog import Watchdog
from busq.worker.worker import Worker
from tests.roles import elsewhere
from tests.runtime.bench import BUSY_S, NEVER_SO_LONG_S, Bench, bench, taken, until
from tests.servers import RedisServer
from tests.store.bench import Bench as StoreBench

NOTICED_S = 5.0 + BUSY_S

PATIENT: dict[str, Any] = {"lease_s": 60.0, "command_timeout_s": 0.5, "connect_timeout_s": 0.5}


def changes(lines: list[Any]) -> list[str]:
    return [line["change"] for line in lines if line["event"] == "history.changed"]


def shorts(b: Bench) -> Any:
    @b.bus.job
    async def short(n: int) -> int:
        return n

    return short


async def looked(worker: Worker, dog: Watchdog) -> None:
    """Both know which history it is that they look at."""
    shards = worker._store.shards
    await until(lambda: len(worker._control._lineage._seen) == len(dog._lineage._seen) == shards)


async def noticed(worker: Worker, dog: Watchdog) -> None:
    begun = time.monotonic()
    await until(lambda: worker.health().history_changes and dog.health().history_changes, NEVER_SO_LONG_S)
    assert time.monotonic() - begun <= NOTICED_S


def flush(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


def come_back_empty(server: RedisServer) -> None:
    server.restart()


@pytest.mark.parametrize("lose", [flush, come_back_empty])
async def test_lost_data_is_noticed_and_the_bus_is_made_again(
    own_server: RedisServer, lose: Callable[[RedisServer], None]
) -> None:
    """A handler whose job is gone is stopped; groups, card, roster and hooks are there again; new jobs run."""
    with capture_logs() as lines:
        async with bench(own_server.url, shards=3, **PATIENT) as b:
            gate, causes = b.gate(), []
            short = shorts(b)

            @b.bus.job
            async def waits() -> None:
                try:
                    await gate.wait()
                finally:
                    causes.append(busq.current_job().cause)

            @waits.on_cancel
            async def clean(job: busq.CancelledJob) -> None:
                pass

            worker, dog = await b.work(), await b.watch()
            handle = await waits.enqueue()
            await taken(worker, handle.jid)
            await looked(worker, dog)
            await asyncio.to_thread(lose, own_server)
            await noticed(worker, dog)
            await until(lambda: causes == [busq.Cause.LEASE_LOST])
            assert await (await short.enqueue(5)).result(timeout=30) == 5

            async def whole() -> bool:
                store = await b.store()
                members = await b.bus.workers()
                card = await store.redis.hmget("busq:meta", "v", "shards")
                hooks = [await store.redis.exists(store.keys(shard).hooks) for shard in range(3)]
                return card == [b"1", b"3"] and all(hooks) and len(members) == 2 and all(m.card for m in members)

            await until(whole)
            await until(lambda: len(changes(lines)) == 6)
        assert set(changes(lines)) == {"other_data"}
        told = [line for line in lines if line["event"] == "history.changed"]
        assert len(told) == 6, "once for each shard by each process"
        assert all(line["birth_before"] != line["birth_now"] for line in told)


@pytest.mark.parametrize("own_server", [{"aof": True}], indirect=True)
async def test_a_restart_with_its_data_is_told_as_such_and_costs_no_job(own_server: RedisServer) -> None:
    with capture_logs() as lines:
        async with bench(own_server.url, **PATIENT) as b:
            gate = b.gate()

            @b.bus.job
            async def waits() -> str:
                await gate.wait()
                return "done"

            worker, dog = await b.work(), await b.watch()
            handle = await waits.enqueue()
            await taken(worker, handle.jid)
            await looked(worker, dog)
            await asyncio.to_thread(own_server.restart)
            await noticed(worker, dog)
            gate.open()
            assert await handle.result(timeout=30) == "done"
            assert (await handle.get()).attempt == 1
        assert set(changes(lines)) <= {"restarted", "promoted"}
        assert len(changes(lines)) == 2


async def test_a_primary_that_is_given_its_first_replica_has_the_data_that_it_had(
    own_server: RedisServer, start_server: Callable[..., RedisServer]
) -> None:
    """Redis gives the history another name then, and after an hour without any replica once more."""
    replica = start_server(users=True)
    async with StoreBench(own_server.url) as b:
        lineage = Lineage(b.a, events.logger("test"))
        await lineage.look(0)
        with replica.client() as second:
            second.replicaof("127.0.0.1", str(own_server.port))
            await until(lambda: second.info("replication")["master_link_status"] == "up")
        before = lineage._seen[0]
        b.clock.advance(LOOK_EVERY_S)
        assert await lineage.look(0) is None
        assert lineage._seen[0].replid != before.replid, "else this shows nothing"
        assert lineage._seen[0].run_id == before.run_id


async def test_a_promotion_that_lost_writes_is_told_with_their_size_and_lost_starts_are_made_again(
    own_server: RedisServer, start_server: Callable[..., RedisServer]
) -> None:
    """The replica is cut off, then a job is started, then the replica takes the primary's place, at its address."""
    replica = start_server(users=True)
    with own_server.client() as first, replica.client() as second:
        second.replicaof("127.0.0.1", str(own_server.port))
        await until(lambda: second.info("replication")["master_link_status"] == "up")
        with capture_logs() as lines:
            async with Switch(own_server) as switch, bench(switch.url, **PATIENT) as b:
                gate, ran = b.gate(), []

                @b.bus.job
                async def waits() -> int:
                    ran.append(busq.current_job().attempt)
                    await gate.wait()
                    return len(ran)

                worker, dog = await b.work(concurrency=1), await b.watch()
                held, queued = await waits.enqueue(), await waits.enqueue()
                await taken(worker, held.jid)
                await looked(worker, dog)
                await until(lambda: first.wait(1, 1000) == 1)
                second.replicaof("127.0.0.1", "1")  # it hears nothing more, and keeps what it has
                lost = await waits.enqueue()
                assert (await held.cancel()).verdict == "signalled"
                await held.wait(timeout=30)
                await taken(worker, queued.jid)
                await until(lambda: worker._control._lineage._seen[0].offset > 0)
                await _looked_again(worker, dog)
                second.replicaof("no", "one")
                switch.to(replica.port)
                await noticed(worker, dog)
                gate.open()
                job = await held.wait(timeout=30)
                assert job.state == "succeeded", "its cancel was lost, and its start was not: it runs again"
                assert (await queued.wait(timeout=30)).state == "succeeded"
                with pytest.raises(busq.JobNotFound):
                    await lost.get()
        told = [line for line in lines if line["event"] == "history.changed"]
        assert {line["change"] for line in told} == {"promoted"}
        assert all(line["lost_bytes"] > 0 for line in told)


async def _looked_again(worker: Worker, dog: Watchdog) -> None:
    for lineage in (worker._control._lineage, dog._lineage):
        before = lineage._looked_at[0]
        await until(lambda lineage=lineage, before=before: lineage._looked_at[0] > before)


async def test_a_bus_that_somebody_made_anew_with_other_shards_is_left(own_server: RedisServer) -> None:
    with capture_logs() as lines:
        async with bench(own_server.url, **PATIENT) as b:
            worker = await b.work()
            await until(lambda: worker._control._lineage._seen)
            with own_server.client() as client:
                pipe = client.pipeline(transaction=True)
                pipe.flushall()
                pipe.hset("busq:meta", mapping={"v": 1, "shards": 7})
                pipe.execute()
            await until(lambda: worker.unfit)
            assert "made anew with 7 shards instead of 1" in worker.health().ready["data"]
            await b.ended(worker)
    assert [line["part"] for line in lines if line["event"] == "bus.lost"] == ["history"]


async def test_where_info_is_refused_the_birth_mark_decides(own_server: RedisServer) -> None:
    with own_server.client() as client:
        for role in ("worker", "watchdog"):
            client.execute_command("ACL", "SETUSER", role, "-info")
        async with bench(own_server.url, **PATIENT) as b:
            worker, dog = await b.work(), await b.watch()
            await looked(worker, dog)
            assert worker._control._lineage._seen[0].run_id == ""
            client.flushall()
            await noticed(worker, dog)


@pytest.mark.parametrize("lose", ["stream", "group"])
async def test_a_lost_queue_is_told_and_read_again(own_server: RedisServer, lose: str) -> None:
    with capture_logs() as lines:
        async with bench(own_server.url, **PATIENT) as b:
            short = shorts(b)
            gate = b.gate()

            @b.bus.job
            async def waits() -> str:
                await gate.wait()
                return "done"

            worker = await b.work()
            handle = await waits.enqueue()
            await taken(worker, handle.jid)
            store = worker._store
            with own_server.client() as client:
                if lose == "stream":
                    client.delete(store.keys(0).stream("default"))
                else:
                    client.xgroup_destroy(store.keys(0).stream("default"), "busq")
            begun = time.monotonic()
            await until(lambda: [line for line in lines if line["event"] == "queue.lost"])
            assert time.monotonic() - begun <= NOTICED_S
            assert await (await short.enqueue(5)).result(timeout=30) == 5
            gate.open()
            assert await handle.result(timeout=30) == "done"
            assert (await handle.get()).attempt == 1
        [told] = [line for line in lines if line["event"] == "queue.lost"]
        assert (told["queue"], told["shard"], told["log_level"]) == ("default", 0, "error")


async def test_a_job_whose_start_was_forgotten_after_its_entry_was_read_is_started_again(redis_url: str) -> None:
    """Its entry stands under the worker's name and nobody else gets it. What it had begun is stopped first."""
    async with bench(redis_url, **PATIENT) as b:
        ran = []

        @b.bus.job
        async def waits_once() -> str:
            ran.append(1)
            if len(ran) == 1:
                await b.gate().wait()
            return "done"

        worker = await b.work()
        handle = await waits_once.enqueue()
        await taken(worker, handle.jid)
        store = worker._store
        await store.redis.hset(store.job_key(handle.jid), mapping={"state": "queued", "token": "none", "owner": ""})
        assert await handle.result(timeout=30) == "done"
        assert len(ran) == 2


class Switch:
    """One address for two servers, as a name that is turned to the new primary after a failover."""

    def __init__(self, server: RedisServer) -> None:
        self._first = server
        self._port = server.port
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return elsewhere(self._first.url, f"127.0.0.1:{self._own_port}/0")

    def to(self, port: int) -> None:
        self._port = port
        for writer in self._open:
            writer.transport.abort()

    async def __aenter__(self) -> Switch:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._own_port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        self.to(self._port)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._open |= {writer, far_writer}
        await asyncio.gather(_pass(reader, far_writer), _pass(far_reader, writer))
        self._open -= {writer, far_writer}


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.transport.abort()


async def test_jobs_of_a_removed_stream_are_queued_again_and_run_once(own_server: RedisServer) -> None:
    """Those that waited, and nothing else; a watchdog that came later finds what nobody has dealt with."""
    with capture_logs() as lines:
        async with bench(own_server.url, **PATIENT) as b:
            gate, ran = b.gate(), []

            @b.bus.job
            async def waits(n: int) -> int:
                ran.append(n)
                await gate.wait()
                return n

            worker = await b.work(concurrency=2)
            first = await b.bus.enqueue_many(waits.spec(n) for n in range(2))
            for handle in first:
                await taken(worker, handle.jid)
            queued = await b.bus.enqueue_many(waits.spec(n) for n in range(2, 30))
            store = worker._store
            with own_server.client() as client:
                client.delete(store.keys(0).stream("default"))
            gate.open()
            await until(lambda: [line for line in lines if line["event"] == "queue.lost"])
            dog = await b.watch()
            assert [await handle.result(timeout=30) for handle in (*first, *queued)] == list(range(30))
            assert sorted(ran) == list(range(30))
            assert dog.health().done["queue.mended"] == 28
            await until(lambda: [line for line in lines if line["event"] == "queue.mended"])
            assert await losses.lost_word(await b.store(), 0) is None


async def test_a_job_whose_worker_died_after_its_stream_was_removed_runs_again(own_server: RedisServer) -> None:
    async with bench(own_server.url, **PATIENT) as b:
        short = shorts(b)
        handle = await short.enqueue(7)
        store = await b.store()
        await store.redis.hset(store.job_key(handle.jid), mapping={"state": "running", "owner": "gone", "token": "t"})
        await store.redis.delete(store.keys(0).stream("default"))
        held = await b.bus.enqueue("held")
        await store.redis.hset(store.job_key(held.jid), mapping={"state": "running", "owner": "alive", "token": "t"})
        await store.redis.delete(store.keys(0).stream("default"))
        await store.redis.zadd(store.keys(0).workers, {"alive": 9e15})
        await mark_lost(store, 0)
        dog = await b.watch()
        await until(lambda: dog.health().done.get("queue.mended"))
        assert await losses.lost_word(store, 0), "a job is left whose worker lives; it is looked after again"
        await b.work()
        assert await handle.result(timeout=30) == 7
        assert (await handle.get()).losses == 1


async def test_after_a_change_of_history_a_worker_looks_through_what_is_pending_under_its_name(redis_url: str) -> None:
    """No connection broke and no read failed: nothing but the birth mark tells that there may be something."""
    async with bench(redis_url, **PATIENT) as b:
        gate = b.gate()

        @b.bus.job
        async def waits() -> str:
            await gate.wait()
            return "done"

        worker = await b.work(concurrency=1)
        await taken(worker, (await waits.enqueue()).jid)
        store, streams = worker._store, worker._streams
        unheard = await waits.enqueue()
        [entry] = await Streams.read(streams, streams.places, each=1, block_ms=0)
        assert entry.jid == unheard.jid, "read under the worker's name, and it knows nothing of it"
        gate.open()
        assert await (await waits.enqueue()).result(timeout=30) == "done"
        assert (await unheard.get()).state == "queued"
        await until(lambda: worker._control._lineage._seen)
        await store.redis.hset(store.keys(0).birth, "mark", "other")
        assert await unheard.result(timeout=30) == "done"
