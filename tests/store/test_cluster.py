"""
The scripts on a server in cluster mode, which refuses a script that touches two slots, whatever its keys are called.

What cleans up after a cancelled job, and a child's parent, are reached by keys that no script declares: they must lie
in the slot of those that it does. One node holds all slots here, so a plain connection finds every shard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from redis.exceptions import ResponseError

from busq.cli.embedded import free_port
from busq.protocol.cancel import CancelRequest
from busq.protocol.states import State
from tests.servers import RedisServer
from tests.store import test_hooks as hooks
from tests.store.bench import Bench, put_in

READY_WITHIN_S = 30.0


@pytest.fixture(scope="module")
def cluster(start_server: Callable[..., RedisServer]) -> Iterator[RedisServer]:
    server = start_server(options=["--cluster-enabled", "yes", "--cluster-port", str(free_port())])
    with server.client() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        until = time.monotonic() + READY_WITHIN_S
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < until, "the cluster does not get ready"
    yield server
    server.close()


@pytest.fixture
def url(cluster: RedisServer) -> str:
    """The server in cluster mode, found empty."""
    cluster.flush()
    return cluster.url


@pytest.mark.parametrize("way", hooks.WAYS)
async def test_whoever_makes_a_job_cancelled_admits_its_hook_in_cluster_mode(url: str, way: str) -> None:
    await hooks.test_whoever_makes_a_job_cancelled_admits_its_hook_once(url, way)


@pytest.mark.parametrize("words", hooks.ENDINGS)
async def test_how_a_hook_ends_is_told_to_its_job_in_cluster_mode(url: str, words: str) -> None:
    await hooks.test_how_a_hook_ends_is_told_in_the_history_of_its_job_and_changes_nothing_else(url, words)


async def test_every_shard_admits_its_own_hooks(url: str) -> None:
    async with Bench(url, shards=4) as bench:
        jids = [await bench.enqueue(on_cancel="always") for _ in range(20)]
        await bench.a.cancel(jids, CancelRequest(), request="one")
        for jid in jids:
            assert await bench.state((await bench.job(jid)).hook or "") is State.QUEUED


async def test_a_child_is_admitted_beside_its_parent(url: str) -> None:
    async with Bench(url) as bench:
        parent = await put_in(bench, State.RUNNING)
        assert (await bench.spawn(parent, "child"))[0] == "enqueued"


async def test_this_server_does_refuse_what_lies_in_another_slot(url: str) -> None:
    """Else the tests above would show nothing."""
    async with Bench(url) as bench:
        with pytest.raises(ResponseError, match="slot"):
            await bench.redis.eval("#!lua\nredis.call('GET', KEYS[1]) return redis.call('GET', 'b')", 1, "a")
