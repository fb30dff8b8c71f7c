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
from tests.store import test_rules as rules
from tests.store import test_supersede as supersede
from tests.store import test_trees as trees
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


@pytest.mark.parametrize("way", rules.TOUCHES)
async def test_whoever_touches_a_job_finds_the_rules_in_cluster_mode(url: str, way: str) -> None:
    await rules.test_whoever_touches_a_job_carries_out_first_what_has_been_decided(url, way)


async def test_what_there_is_of_trees_and_keys_lies_in_the_slot_of_its_jobs(url: str) -> None:
    for test in (
        trees.test_a_finalizer_is_admitted_when_the_last_child_has_ended_and_the_parent_ends_with_it,
        trees.test_a_finalizer_goes_with_its_parent,
        trees.test_every_descendant_has_its_hook,
        trees.test_descendants_are_those_below_and_not_the_job_itself,
        trees.test_a_parent_that_waits_for_abandoned_children_alone_ends_when_they_are,
        trees.test_a_waiting_parent_under_a_cancelled_job_does_not_end_in_success,
        supersede.test_an_older_job_in_another_queue_is_superseded_too,
        supersede.test_a_child_that_supersedes_its_only_sibling_keeps_their_parent_waiting,
        rules.test_a_survey_counts_what_a_rule_would_hit_and_changes_nothing,
        rules.test_a_standing_rule_hits_those_who_come_later_until_it_is_over,
        rules.test_a_rule_that_was_revoked_stops_nothing_more,
    ):
        async with Bench(url) as bench:
            await bench.redis.flushall()
        await test(url)


async def test_this_server_does_refuse_what_lies_in_another_slot(url: str) -> None:
    """Else the tests above would show nothing."""
    async with Bench(url) as bench:
        with pytest.raises(ResponseError, match="slot"):
            await bench.redis.eval("#!lua\nredis.call('GET', KEYS[1]) return redis.call('GET', 'b')", 1, "a")
