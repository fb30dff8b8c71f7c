"""
A bus whose shards lie on the nodes of a cluster: everything works as on one server, also while a node fails and while
a slot moves from node to node under the load.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

import busq
from busq.config import Settings
from busq.errors import BusUnavailable, ConfigError, JidInUse
from busq.protocol.cancel import CancelRequest, Verdict
from busq.protocol.keys import ShardKeys, meta
from busq.protocol.states import TERMINAL, State
from busq.store import fitness
from busq.store.forms import NewJob
from busq.store.store import Store
from busq.store.streams import Streams
from busq.watchdog.watchdog import Watchdog
from tests.roles import as_role, deploy
from tests.runtime.bench import bench, taken, until
from tests.servers import RedisServer
from tests.store.bench import Bench as StoreBench
from tests.topologies import ClusterSet, replicated

SHARDS = 6
SETTINGS: dict[str, Any] = {
    "shards": SHARDS,
    "lease_s": 60.0,  # no lease runs out meanwhile, however slow the machine is
    "grace_s": 5.0,
}


@pytest.fixture(scope="module")
def standing(start_server: Callable[..., RedisServer]) -> Iterator[ClusterSet]:
    made = ClusterSet(start_server)
    yield made
    made.close()


@pytest.fixture
def cluster(standing: ClusterSet) -> ClusterSet:
    """Three primaries, found empty. For tests that leave every node alive."""
    standing.flush()
    return standing


def _jids(shards: int, each: int = 1) -> list[str]:
    """So many jids of every shard, shard by shard."""
    store = Store(Settings.load({}, url="redis://nowhere", shards=shards), by="")
    found: dict[int, list[str]] = {shard: [] for shard in range(shards)}
    n = 0
    while any(len(own) < each for own in found.values()):
        own = found[store.shard_of(f"job-{n}")]
        if len(own) < each:
            own.append(f"job-{n}")
        n += 1
    return [jid for own in found.values() for jid in own]


async def _persistently(call: Callable[[], Any]) -> Any:
    """What a caller does who is told that Redis cannot serve now: the same call again."""
    while True:
        try:
            return await call()
        except BusUnavailable:
            await asyncio.sleep(0.05)


# As on one server ------------------------------------------------------------------------------------------


async def test_jobs_cancels_scopes_and_trees_work_in_every_shard(cluster: ClusterSet) -> None:
    holders = [cluster.holder(ShardKeys("busq", shard).counters) for shard in range(SHARDS)]
    assert set(holders) == set(cluster.primaries), "the shards lie on all of them"
    async with bench(cluster.url, **SETTINGS) as b:

        @b.bus.job
        async def short(n: int) -> int:
            return n

        @b.bus.job
        async def hold() -> None:
            await b.gate().wait()

        @b.bus.job
        async def parent() -> None:
            for n in range(3):
                await busq.current_job().spawn(short, n)

        worker = await b.work()
        await b.watch()
        jids = _jids(SHARDS, 3)
        handles = await b.bus.enqueue_many(short.options(jid=jid).spec(n) for n, jid in enumerate(jids))
        assert [await handle.result(timeout=60) for handle in handles] == list(range(len(jids)))

        held = await b.bus.enqueue_many(hold.options(jid=f"{jid}-held", group="g").spec() for jid in jids)
        for handle in held:
            await taken(worker, handle.jid)
        first, *rest = await b.bus.cancel_many(handle.jid for handle in held[: len(held) // 2])
        assert {answer.verdict for answer in (first, *rest)} == {Verdict.SIGNALLED}
        scope = await b.bus.cancel_group("g")
        await scope.wait(timeout=60)
        for handle in held:
            assert (await b.reaches(handle.jid, State.CANCELLED)).ended == "confirmed"

        tree = await parent.options(jid="tree").enqueue()
        await b.reaches(tree.jid, State.SUCCEEDED)

        stats = await b.bus.stats()
        assert (stats.now["succeeded"], stats.now["cancelled"]) == (len(jids) + 4, len(held))
        assert len(await b.bus.list(state="cancelled")) == len(held)
        assert {member.name for member in await b.bus.workers() if member.card and member.card.role == "worker"} == {
            worker.name
        }
        assert (await b.names(jids[0]))[0] == "enqueued"
        blocking = await asyncio.to_thread(lambda: b.bus.blocking.get(jids[0]))
        assert blocking.state is State.SUCCEEDED


async def test_two_who_open_a_bus_at_once_agree_on_its_shards(cluster: ClusterSet) -> None:
    url = as_role(cluster.url, "watchdog")
    made = [Store(Settings.load({}, url=url, shards=shards), by=str(shards)) for shards in (2, 3, 4) * 3]
    answers = await asyncio.gather(*(store.open() for store in made), return_exceptions=True)
    shards = {store.shards for store, answer in zip(made, answers, strict=True) if answer is None}
    assert len(shards) == 1
    refused = [answer for answer in answers if answer is not None]
    assert len(refused) == 6
    assert all(isinstance(answer, ConfigError) for answer in refused)
    for store in made:
        await store.close()


async def test_one_node_alone_says_that_it_is_one_of_a_cluster(cluster: ClusterSet) -> None:
    async with busq.Bus(cluster.primaries[0].url_for("client"), shards=SHARDS) as bus:
        with pytest.raises(BusUnavailable, match=r"one node of a cluster.*Write redis\+cluster://"):
            await bus.cancel_many(_jids(SHARDS))


async def test_a_server_that_is_no_cluster_says_so(redis_url: str) -> None:
    async with busq.Bus(as_role(redis_url, "client").replace("redis://", "redis+cluster://")) as bus:
        with pytest.raises(ConfigError, match="is no cluster; write redis://"):
            await bus.cancel("job")


# Confirmed writes and lost data ----------------------------------------------------------------------------


def _waits(server: RedisServer) -> int:
    """How often it was asked to wait for its replicas."""
    with server.client() as client:
        return int(client.info("commandstats").get("cmdstat_wait", {}).get("calls", 0))


async def test_a_confirmation_is_asked_of_the_node_that_holds_the_shard(cluster: ClusterSet) -> None:
    """Any other node has no write of ours to wait for, and would say at once that all of them are replicated."""
    await deploy(cluster.url, shards=SHARDS)
    async with busq.Bus(as_role(cluster.url, "client"), shards=SHARDS, confirm_within_s=0.05) as bus:
        for shard, jid in enumerate(_jids(SHARDS)):
            own = cluster.holder(ShardKeys("busq", shard).counters)
            for ask in (
                bus.options(jid=jid, durability="replicated").enqueue("k"),
                bus.cancel(jid, durability="replicated"),
            ):
                before = {server.port: _waits(server) for server in cluster.primaries}
                confirmed = (await ask).confirmed
                assert confirmed is not None
                assert (confirmed.ok, confirmed.replicas) == (False, 0), "there are none"
                asked = {server.port for server in cluster.primaries if _waits(server) > before[server.port]}
                assert asked == {own.port}
        scope = await bus.cancel_group("g", durability="replicated")
        assert scope.confirmed is not None
        assert not scope.confirmed.ok


async def test_a_disk_is_believed_of_its_own_node_only(cluster: ClusterSet) -> None:
    """One node has every write on its disk before it answers, the others have no append-only file."""
    jids = _jids(SHARDS)
    homes = [cluster.holder(ShardKeys("busq", shard).counters) for shard in range(SHARDS)]
    other = next(jid for jid, home in zip(jids, homes, strict=True) if home is not homes[0])
    await deploy(cluster.url, shards=SHARDS)
    with homes[0].client() as client:
        client.config_set("appendfsync", "always")
        client.config_set("appendonly", "yes")
        try:
            url = as_role(cluster.url, "admin")  # who may look up that the disk is waited for
            async with busq.Bus(url, shards=SHARDS, confirm_within_s=0.05) as bus:
                [alone] = await bus.cancel_many([jids[0]], tombstone=60, durability="fsynced")
                both = await bus.cancel_many([jids[0], other], tombstone=60, durability="fsynced")
                with pytest.raises(busq.UsageError, match="Nothing was written"):
                    await bus.cancel(other, tombstone=60, durability="fsynced")
        finally:
            client.config_set("appendonly", "no")
    assert [answer.confirmed and answer.confirmed.ok for answer in (alone, *both)] == [True, False, False]


async def test_the_lost_data_of_one_node_is_noticed_for_its_shards_alone(cluster: ClusterSet) -> None:
    """Jobs of other shards run on; those that are gone are stopped, and groups and card are made again."""
    keys = [ShardKeys("busq", shard) for shard in range(SHARDS)]
    lost = cluster.holder(meta("busq"))
    theirs = {shard for shard in range(SHARDS) if cluster.holder(keys[shard].counters) is lost}
    assert 0 < len(theirs) < SHARDS
    with capture_logs() as lines:
        async with bench(cluster.url, **SETTINGS) as b:
            stopped: list[str] = []

            @b.bus.job
            async def hold() -> None:
                try:
                    await b.gate().wait()
                except asyncio.CancelledError:
                    stopped.append(busq.current_job().jid)
                    raise

            @b.bus.job
            async def short(n: int) -> int:
                return n

            worker, dog = await b.work(), await b.watch()
            jids, later = _jids(SHARDS, 2)[::2], _jids(SHARDS, 2)[1::2]
            for jid in jids:
                await hold.options(jid=jid).enqueue()
                await taken(worker, jid)
            await until(lambda: len(worker._control._lineage._seen) == len(dog._lineage._seen) == SHARDS)
            with lost.client() as client:
                client.flushall()
            await until(lambda: set(stopped) == {jids[shard] for shard in theirs})
            await until(lambda: worker.health().history_changes == dog.health().history_changes == len(theirs))
            for n, jid in enumerate(later):
                handle = await _persistently(lambda n=n, jid=jid: short.options(jid=jid).enqueue(n))
                assert await handle.result(timeout=60) == n
            for shard in set(range(SHARDS)) - theirs:
                assert (await b.bus.get(jids[shard])).state == State.RUNNING
                assert jids[shard] in worker.running
            with lost.client() as client:
                await until(lambda: client.hmget(meta("busq"), "v", "shards") == [b"1", str(SHARDS).encode()])
    told = [(line["shard"], line["change"]) for line in lines if line["event"] == "history.changed"]
    assert sorted(told) == sorted([(shard, "other_data") for shard in theirs] * 2), "by the worker and the watchdog"


# Reading ---------------------------------------------------------------------------------------------------


async def test_a_read_that_waits_is_ended_by_the_first_entry_of_any_shard(cluster: ClusterSet) -> None:
    """Without the others being called back it would last for as long as it may wait, which is a minute here."""
    async with StoreBench(cluster.url, shards=SHARDS) as b:
        streams = Streams(b.a, ["q"])
        await streams.open()
        loop = asyncio.get_running_loop()
        for jid in _jids(SHARDS):
            reading = asyncio.create_task(streams.read(streams.places, each=5, block_ms=60_000))
            await until(lambda: _blocked(cluster) == SHARDS)
            began = loop.time()
            await b.b.enqueue([NewJob(jid, "k", "q", b"p")], call=jid)
            assert [entry.jid for entry in await reading] == [jid]
            assert loop.time() - began < 20
            assert _blocked(cluster) == 0
        assert [entry.jid for entry in await streams.pending()] == _jids(SHARDS)


def _blocked(cluster: ClusterSet) -> int:
    found = 0
    for server in cluster.primaries:
        with server.client() as client:
            found += int(client.info("clients")["blocked_clients"])
    return found


# A slot on the move ----------------------------------------------------------------------------------------


@pytest.fixture
def homely(cluster: ClusterSet) -> Iterator[ClusterSet]:
    """The cluster, its slots brought back to where they were."""
    key = ShardKeys("busq", 0).counters
    home = cluster.holder(key)
    yield cluster
    if cluster.holder(key) is not home:
        cluster.flush()
        for _ in cluster.move(key, home):
            pass


def _another(cluster: ClusterSet, key: bytes) -> RedisServer:
    return next(server for server in cluster.primaries if server is not cluster.holder(key))


async def test_no_script_begins_while_its_slot_is_on_the_move(homely: ClusterSet) -> None:
    """
    All keys that this cancel names are there, so the server would begin it, and stop it at the first key that is not:
    the record would say cancelled, and the job that cleans up after it would never be made.
    """
    own = ShardKeys("busq", 0)
    async with StoreBench(homely.url, shards=SHARDS, command_timeout_s=0.2) as b:
        (jid, *_) = _jids(SHARDS)
        await b.b.enqueue([NewJob(jid, "k", "q", b"p", 0, ("on_cancel", "always"))], call="one")
        for index in (own.cancelled, own.deadlines, own.timers, own.scheduled, own.succeeded, own.failed):
            await b.redis.zadd(index, {"other": 9e15})
        await b.redis.zadd(own.cancelled_jobs, {"other": 9e15})
        await b.redis.hset(own.tombstones, "other", "")
        before = await b.redis.hgetall(own.job(jid))
        for _ in homely.move(own.counters, _another(homely, own.counters), step=1):
            with pytest.raises(BusUnavailable, match="cannot serve now"):
                await b.b.cancel([jid], CancelRequest(), request="one")
            assert await b.redis.hgetall(own.job(jid)) == before
        (answer,) = await b.b.cancel([jid], CancelRequest(), request="two")
        assert answer.verdict is Verdict.CANCELLED
        assert (await b.job(jid)).hook


async def test_nothing_is_lost_and_nothing_ends_twice_while_a_slot_moves_under_load(homely: ClusterSet) -> None:
    own = ShardKeys("busq", 0)
    ran: Counter[str] = Counter()
    async with bench(homely.url, **SETTINGS) as b:

        @b.bus.job
        async def short() -> None:
            ran[busq.current_job().jid] += 1

        @b.bus.job
        async def hold() -> None:
            ran[busq.current_job().jid] += 1
            await b.gate().wait()

        await b.work()
        await b.watch()
        jids = _jids(SHARDS, 40)
        jids = [jid for nth in range(40) for jid in jids[nth::40]]  # one of each shard in turn
        cancelled = set(jids[::3])
        verdicts: dict[str, str] = {}

        async def one(jid: str) -> None:
            kind = hold if jid in cancelled else short
            with suppress(JidInUse):  # the answer to an earlier try was lost
                await _persistently(kind.options(jid=jid).enqueue)
            if jid in cancelled:
                verdicts[jid] = (await _persistently(lambda: b.bus.cancel(jid))).verdict

        async def load(part: list[str]) -> None:
            for jid in part:
                await one(jid)

        await load(jids[:24])
        loading = [asyncio.create_task(load(jids[24 + n :: 4])) for n in range(4)]
        steps = homely.move(own.counters, _another(homely, own.counters), step=2)
        while await asyncio.to_thread(next, steps, None) is not None:
            pass
        await asyncio.gather(*loading)
        for jid in jids:
            state = State.CANCELLED if jid in cancelled else State.SUCCEEDED
            assert (await b.reaches(jid, *TERMINAL)).state is state
            names = await b.names(jid)
            assert names.count("finalized") == 1, names
            assert ran[jid] <= 1
        assert all(ran[jid] == 1 for jid in jids if jid not in cancelled)
        assert set(verdicts.values()) <= {"cancelled", "signalled", "already_cancelling", "already_cancelled"}


# A node that fails -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_nothing_is_lost_when_a_node_fails_while_jobs_run(
    start_server: Callable[..., RedisServer], how: str
) -> None:
    cluster = ClusterSet(start_server, replicas=1)
    own = ShardKeys("busq", 0)
    try:
        async with bench(cluster.url, **SETTINGS) as b:
            held = {name: b.gate() for name in ("ends", "stops")}

            @b.bus.job
            async def hold(name: str) -> str:
                await held[name].wait()
                return name

            @b.bus.job
            async def short(n: int) -> int:
                return n

            worker = await b.work()
            await b.watch()
            ends, stops, *later = _jids(SHARDS, 7)
            for jid, name in ((ends, "ends"), (stops, "stops")):
                handle = await hold.options(jid=jid, durability="replicated").enqueue(name)
                assert handle.confirmed is not None
                assert handle.confirmed.ok
                await taken(worker, jid)
            lost = cluster.holder(own.counters)
            replicated(lost, own.prefix + b"mark")  # what nobody has confirmed may be lost
            if how == "killed":
                lost.kill()
            else:
                lost.pause()
            promoted = await asyncio.to_thread(cluster.promoted, lost, own.counters)

            async def one(n: int, jid: str) -> None:
                with suppress(JidInUse):  # the answer to an earlier try was lost
                    await _persistently(lambda: short.options(jid=jid).enqueue(n))
                assert (await _persistently(lambda: b.bus.wait(jid, timeout=60))).result == n

            await asyncio.gather(*(one(n, jid) for n, jid in enumerate(later)))
            assert (await _persistently(lambda: b.bus.cancel(stops))).verdict in ("signalled", "already_cancelling")
            assert (await b.reaches(stops, State.CANCELLED)).ended == "confirmed"
            held["ends"].open()
            assert (await b.reaches(ends, State.SUCCEEDED)).attempt == 1
            await until(lambda: not worker.unready)
            with promoted.client() as client:
                assert client.exists(own.job(ends))
    finally:
        cluster.close()


async def test_a_listener_leaves_a_node_that_has_frozen(start_server: Callable[..., RedisServer]) -> None:
    """Without a new place for its new connection it would stay deaf for as long as the node is."""
    cluster = ClusterSet(start_server)
    try:
        async with bench(cluster.url, **SETTINGS) as b:
            await b.work()
            await until(lambda: sum(map(_listeners, cluster.primaries)) == 1)
            (ear,) = [server for server in cluster.primaries if _listeners(server)]
            ear.pause()
            others = [server for server in cluster.primaries if server is not ear]
            await until(lambda: sum(map(_listeners, others)) == 1)
    finally:
        cluster.close()


def _listeners(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.pubsub_numsub("busq:rules")[0][1])


@pytest.mark.parametrize(
    ("how", "away_is"), [("killed", "the node with the card of the bus"), ("frozen", "a node with shards")]
)
async def test_a_watchdog_that_starts_while_a_node_is_away_looks_after_the_shards_that_are_there(
    start_server: Callable[..., RedisServer], how: str, away_is: str
) -> None:
    """It knows how many there are, ends what is overdue and queues what is due; the rest when the node is back."""
    cluster = ClusterSet(start_server)
    keys = [ShardKeys("busq", shard) for shard in range(SHARDS)]
    try:
        settings = {**SETTINGS, "shards": None, "command_timeout_s": 0.3, "connect_timeout_s": 0.3}
        async with bench(cluster.url, **SETTINGS) as b:
            first = await b.watch()
            await until(lambda: len(first._lineage._seen) == SHARDS)
            await b.end(first)
            card = cluster.holder(meta("busq"))
            away = card if away_is.startswith("the") else _another(cluster, meta("busq"))
            here = [shard for shard in range(SHARDS) if cluster.holder(keys[shard].counters) is not away]
            gone = [shard for shard in range(SHARDS) if shard not in here]
            jids = _jids(SHARDS)
            for jid in jids:
                await b.bus.options(jid=jid, delay=0.01).enqueue("k")
            if how == "killed":
                away.kill()
            else:
                away.pause()
            dog = Watchdog(Settings.load({}, url=as_role(cluster.url, "watchdog"), **{**b.given, **settings}))
            await fitness.require_fit(dog._settings)
            watching = asyncio.create_task(dog.run())
            for shard in here:
                await b.reaches(jids[shard], State.QUEUED)
            assert not watching.done()
            assert dog.health().started
            assert dog.health().ready["redis"]
            if how == "frozen":
                away.resume()
                for shard in gone:
                    await b.reaches(jids[shard], State.QUEUED)
                await until(lambda: not any(dog.health().ready.values()))
            dog.stop()
            await watching
    finally:
        cluster.close()


async def test_jobs_of_other_nodes_are_looked_after_while_one_is_away(start_server: Callable[..., RedisServer]) -> None:
    """Their leases are renewed, their cancels heard, and what is due is queued, in shards before and behind its own."""
    cluster = ClusterSet(start_server)
    jids, later = _jids(SHARDS, 2)[::2], _jids(SHARDS, 2)[1::2]
    keys = [ShardKeys("busq", shard) for shard in range(SHARDS)]
    try:
        async with bench(cluster.url, **SETTINGS) as b:

            @b.bus.job
            async def hold() -> None:
                await b.gate().wait()

            worker = await b.work()
            await b.watch()
            for jid in jids:
                await hold.options(jid=jid).enqueue()
                await taken(worker, jid)
            away = cluster.holder(keys[1].counters)
            here = [shard for shard in range(SHARDS) if cluster.holder(keys[shard].counters) is not away]
            assert here[-1] > 1, "one that is asked after it"
            away.pause()
            for shard in here:
                with cluster.holder(keys[shard].counters).client() as client:

                    def lease(client: Any = client, shard: int = shard) -> float:
                        return float(client.zscore(keys[shard].workers, worker.name))

                    at_first = lease()
                    await until(lambda lease=lease, at_first=at_first: lease() > at_first + 1000)
                await hold.options(jid=later[shard], delay=0.01).enqueue()
                await b.bus.cancel(jids[shard])
                assert (await b.reaches(jids[shard], State.CANCELLED)).ended == "confirmed"
                await b.reaches(later[shard], State.QUEUED, State.RUNNING)
            away.resume()
            await until(lambda: not worker.unready)
    finally:
        cluster.close()
