"""`busq doctor`, and the judgement on a server that workers and watchdogs share."""

from __future__ import annotations

from typing import Any

import pytest

from busq.store.fitness import Grade, judge, known_holes, server_of, worst
from tests.interface.commands import busq, document, service
from tests.interface.test_metrics import PAGE
from tests.interface.test_supervisor import port_of, ready
from tests.servers import RedisServer

REDIS = {"redis_version": "8.2.2", "maxmemory_policy": "noeviction", "role": "master"}


def grades(answer: Any) -> dict[str, str]:
    return {finding["check"]: finding["grade"] for finding in document(answer)}


def test_a_good_server_with_everybody_there_passes(redis_url: str) -> None:
    with service("worker", "shop:bus", url=redis_url) as worker, service("watchdog", *PAGE, url=redis_url) as watchdog:
        worker.until("worker.started")
        ready(port_of(watchdog))  # it is on the roster from its first pass on
        answer = busq("doctor", "-o", "json", url=redis_url)
    assert answer.returncode == 0
    found = grades(answer)
    assert "fail" not in found.values()
    for check in ("server", "version", "eviction", "acl", "clock", "pubsub", "bus", "cancels", "workers", "watchdogs"):
        assert found[check] == "ok", document(answer)


def test_it_leaves_nothing_behind(own_server: RedisServer) -> None:
    assert busq("doctor", url=own_server.url).returncode == 0
    with own_server.client() as client:
        assert client.dbsize() == 0


def test_an_evicting_server_fails_with_what_to_do(own_server: RedisServer) -> None:
    with own_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    answer = busq("doctor", url=own_server.url)
    assert answer.returncode == 3
    assert "maxmemory-policy noeviction" in answer.stdout


def test_a_user_who_may_not_do_all_is_told_what_is_missing(own_server: RedisServer) -> None:
    with own_server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "poor", "on", ">hunter22", "~*", "&*", "+@all", "-publish", "-evalsha_ro"
        )
    url = f"redis://poor:hunter22@127.0.0.1:{own_server.port}/0"
    answer = busq("doctor", "-o", "json", url=url)
    assert answer.returncode == 3
    assert grades(answer)["acl"] == "fail"
    assert "lacks +evalsha_ro" in next(each["found"] for each in document(answer) if each["check"] == "acl")
    assert "hunter22" not in answer.stdout + answer.stderr


def test_a_server_that_does_not_answer_is_a_line_and_exit_3() -> None:
    answer = busq("doctor", "-o", "json", url="redis://:hunter22@127.0.0.1:1/0")
    assert answer.returncode == 3
    assert grades(answer) == {"server": "fail"}
    assert "hunter22" not in answer.stdout


@pytest.mark.parametrize(
    ("info", "grade"),
    [
        ({}, Grade.OK),
        ({"redis_version": "6.2.14"}, Grade.FAIL),
        ({"redis_version": "7.0.15"}, Grade.OK),
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.1.4"}, Grade.OK),
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "7.2.11"}, Grade.FAIL),
        ({"maxmemory_policy": "allkeys-lfu"}, Grade.FAIL),
        ({"maxmemory_policy": "volatile-lru"}, Grade.WARN),
        ({"role": "slave"}, Grade.FAIL),
        ({"redis_version": "nonsense"}, Grade.WARN),
    ],
)
def test_what_a_server_says_decides_whether_it_is_taken(info: dict[str, Any], grade: Grade) -> None:
    assert worst(judge(REDIS | info)) is grade


def test_a_server_that_says_nothing_is_taken_with_a_warning() -> None:
    assert worst(judge(None)) is Grade.WARN


@pytest.mark.parametrize(
    ("info", "grade"),
    [
        ({"redis_version": "8.2.1"}, Grade.WARN),
        ({"redis_version": "8.2.2"}, Grade.OK),
        ({"redis_version": "7.0.15"}, Grade.WARN),
        ({"redis_version": "7.4.6"}, Grade.OK),
        ({"redis_version": "8.4.0"}, Grade.OK),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.3"}, Grade.WARN),
        ({"redis_version": "7.2.4", "valkey_version": "9.0.0"}, Grade.OK),
    ],
)
def test_known_holes_are_told(info: dict[str, Any], grade: Grade) -> None:
    assert known_holes(server_of(info)).grade is grade
