"""
A bus on Valkey: every verb, hooks, trees, rules, and a cluster.

The whole suite runs on it with `BUSQ_REDIS_SERVER=$(sh scripts/bring_redis.sh valkey) sh scripts/test`; this is the
short form, for every run in which there is a valkey-server.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from busq.config import Settings
from busq.store import checkup
from busq.store.fitness import Grade
from tests.fault import test_durability as durability
from tests.fault import test_redis_cluster as clusters
from tests.servers import RedisServer
from tests.store import test_hooks as hooks
from tests.store import test_moments as moments
from tests.store import test_rules as rules
from tests.store import test_shards as shards
from tests.store import test_trees as trees
from tests.store.test_shards import calls  # noqa: F401 - a fixture
from tests.topologies import ClusterSet

NO_VALKEY = (
    "needs a valkey-server 8.0 or later: none on PATH and BUSQ_VALKEY_SERVER is not set. "
    "`sh scripts/bring_redis.sh valkey` brings one"
)


def find_valkey_server() -> str:
    """Its path; the test is skipped when there is none."""
    found = os.environ.get("BUSQ_VALKEY_SERVER") or shutil.which("valkey-server")
    if not found:
        pytest.skip(NO_VALKEY)
    return found


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisServer]:
    server = RedisServer(find_valkey_server())
    yield server
    server.close()


@pytest.fixture
def url(valkey: RedisServer) -> str:
    """A Valkey, found empty."""
    valkey.flush()
    return valkey.url


async def test_every_verb_works_on_valkey(url: str, calls: list[tuple[str, list[bytes], int]]) -> None:  # noqa: F811
    await shards.test_every_verb_works_with_several_shards_and_touches_one_slot(url, calls)


@pytest.mark.parametrize(
    "story",
    [
        hooks.test_a_hook_is_tried_again_after_a_failure_and_after_a_loss,
        trees.test_a_finalizer_is_admitted_when_the_last_child_has_ended_and_the_parent_ends_with_it,
        trees.test_every_descendant_has_its_hook,
        rules.test_a_standing_rule_hits_those_who_come_later_until_it_is_over,
        rules.test_a_survey_counts_what_a_rule_would_hit_and_changes_nothing,
        moments.test_a_job_that_waits_for_its_retry_past_its_moment_is_cancelled_at_once,
    ],
)
async def test_stories_told_on_valkey(url: str, story: object) -> None:
    await story(url)  # type: ignore[operator]


async def test_an_fsync_is_confirmed_by_valkey_also_to_the_users_of_busqs_roles() -> None:
    server = RedisServer(find_valkey_server(), aof=True, users=True)
    try:
        await durability.test_an_fsync_is_waited_for_where_the_server_can_tell(server)
    finally:
        server.close()


async def test_doctor_knows_valkey_by_its_own_version(url: str) -> None:
    findings = await checkup.look_over(Settings.load({}, url=url))
    found = {finding.check: finding for finding in findings}
    assert found["version"].found.startswith("Valkey ")
    assert all(finding.grade is not Grade.FAIL for finding in findings)


async def test_a_cluster_of_valkeys_refuses_scripts_while_a_slot_moves_and_loses_nothing() -> None:
    """Here it is the node that a slot leaves which says TRYAGAIN, where Redis 7.0 sends on to the other."""
    executable = find_valkey_server()
    cluster = ClusterSet(lambda **how: RedisServer(executable, **how))
    try:
        await clusters.test_no_script_begins_while_its_slot_is_on_the_move(cluster)
        cluster.flush()
        await clusters.test_nothing_is_lost_and_nothing_ends_twice_while_a_slot_moves_under_load(cluster)
    finally:
        cluster.close()
