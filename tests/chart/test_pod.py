"""A rendered pod really runs: its containers as processes, its probes asked, and taken down as a kubelet does it."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from busq.cli.embedded import free_port
from tests.chart.kubelet import Container, RunningPod
from tests.chart.rendering import CHART, Object, named, of_kind, rendered, values_of
from tests.interface.test_supervisor import eventually
from tests.servers import RedisServer

QUICK = {"beatSeconds": 0.5, "forceSeconds": 0.5}


def deployment(url_port: int, lease_s: float = 10, **pool: Any) -> Object:
    """The pool as it is rendered, for a server on this port; every pod needs ports of its own on one machine."""
    values = {
        "redis": {"hosts": [f"127.0.0.1:{url_port}"]},
        "settings": {**QUICK, "leaseSeconds": lease_s},
        "ports": {"worker": free_port(), "watchdog": free_port()},
        "pools": {"default": {"drainSeconds": 1, "graceSeconds": 1, "cleanupSeconds": 1, "concurrency": 4, **pool}},
    }
    return named(rendered(values), "Deployment", "rel-busq-default")


def busq(inside: Container, *words: str) -> Any:
    """A command as an operator runs it, by `kubectl exec`; what it says as JSON."""
    answer = inside.execute(["busq", *words, "-o", "json"])
    assert answer.returncode in (0, 1), answer.stderr
    return json.loads(answer.stdout)


def reaches(inside: Container, jid: str, *states: str) -> Any:
    def there() -> Any:
        job = busq(inside, "get", jid)
        return job if job["state"] in states else None

    return eventually(there)


@pytest.mark.timeout(180)
def test_a_pod_runs_jobs_cancels_one_and_hands_back_what_it_cannot_finish(
    redis_server: RedisServer, redis_url: str, tmp_path: Path
) -> None:
    with RunningPod(deployment(redis_server.port), "pod-a", tmp_path) as pod:
        worker, watchdog = pod.container("worker"), pod.container("watchdog")
        assert {each.probe("liveness") for each in (worker, watchdog)} == {HTTPStatus.OK}
        assert busq(worker, "enqueue", "echo", '["hello"]', "--wait", "60")["result"] == "hello"
        busq(worker, "enqueue", "snooze", "[600]", "--jid", "first")
        reaches(worker, "first", "running")
        (cancelled,) = busq(worker, "cancel", "first", "--reason", "just trying", "--wait", "60")
        assert (cancelled["state"], cancelled["ended"]) == ("cancelled", "confirmed")
        busq(worker, "enqueue", "snooze", "[7200]", "--jid", "long")
        assert reaches(worker, "long", "running")["owner"].startswith("pod-a-")
        with RunningPod(deployment(redis_server.port), "pod-b", tmp_path) as other:
            assert pod.delete() == {"worker": 0, "watchdog": 0}
            job = eventually(lambda: _running_in(other, "long"))
            assert (job["attempt"], job["failures"], job["losses"]) == (2, 0, 0)
            assert busq(other.container("worker"), "get", "first")["state"] == "cancelled"
            assert {each["card"]["host"] for each in busq(other.container("worker"), "workers")} == {"pod-b"}
            assert other.container("worker").probe("readiness") == HTTPStatus.OK, "only the pod that was meant drains"
            (end,) = busq(other.container("worker"), "cancel", "long", "--wait", "60")
            assert end["state"] == "cancelled"


def _running_in(pod: RunningPod, jid: str) -> Any:
    job = busq(pod.container("worker"), "get", jid)
    return job if job["state"] == "running" and job["owner"].startswith(pod.name) else None


@pytest.mark.timeout(180)
def test_when_the_node_is_gone_the_watchdog_of_another_pod_finishes_the_work(
    redis_server: RedisServer, redis_url: str, tmp_path: Path
) -> None:
    with (
        # A lease that outlasts the command, which must find the job running.
        RunningPod(deployment(redis_server.port, lease_s=10), "pod-a", tmp_path) as pod,
        RunningPod(deployment(redis_server.port, queues=["other"]), "pod-b", tmp_path) as other,
    ):
        outside = other.container("worker")
        for jid in ("doomed", "lucky"):
            busq(outside, "enqueue", "snooze", "[600]", "--jid", jid)
            reaches(outside, jid, "running")
        pod.kill()
        (answer,) = busq(outside, "cancel", "doomed", "--wait", "60")
        assert (answer["verdict"], answer["state"], answer["ended"]) == ("signalled", "cancelled", "killed")
        assert reaches(outside, "lucky", "queued")["losses"] == 1
        with RunningPod(deployment(redis_server.port), "pod-c", tmp_path) as third:
            assert eventually(lambda: _running_in(third, "lucky"))["attempt"] == 2
            assert busq(outside, "get", "doomed")["state"] == "cancelled"


@pytest.mark.timeout(180)
def test_several_processes_in_a_pod_are_taken_down_together(
    redis_server: RedisServer, redis_url: str, tmp_path: Path
) -> None:
    with RunningPod(deployment(redis_server.port, processes=2), "pod-a", tmp_path) as pod:
        worker = pod.container("worker")
        busq(worker, "enqueue", "snooze", "[600]", "--jid", "long")
        reaches(worker, "long", "running")
        assert pod.delete() == {"worker": 0, "watchdog": 0}
        assert reaches(worker, "long", "queued")["losses"] == 0
        assert busq(worker, "workers") == []


@pytest.mark.timeout(180)
def test_helm_test_passes_against_a_server(redis_server: RedisServer, redis_url: str, tmp_path: Path) -> None:
    objects = rendered({"redis": {"hosts": [f"127.0.0.1:{redis_server.port}"]}})
    own = named(objects, "Deployment", "rel-busq-default")
    with RunningPod(own, "pod-a", tmp_path):
        for each in of_kind(objects, "Pod"):
            (spec,) = each["spec"]["containers"]
            test = Container(spec, each["metadata"]["name"], {}, tmp_path)
            answer = test.execute(spec["command"])
            assert answer.returncode == 0, answer.stdout + answer.stderr
            if spec["name"] == "cancel":
                assert "helm test" in answer.stdout


@pytest.mark.timeout(180)
def test_what_alerts_and_dashboards_ask_for_is_what_a_pod_tells(
    redis_server: RedisServer, redis_url: str, tmp_path: Path
) -> None:
    with RunningPod(deployment(redis_server.port, processes=2), "pod-a", tmp_path) as pod:
        worker = pod.container("worker")
        busq(worker, "enqueue", "snooze", "[600]", "--jid", "first")
        reaches(worker, "first", "running")
        busq(worker, "cancel", "first", "--wait", "60")
        told = eventually(lambda: _told(pod, "busq_cancel_final_seconds_count"))
    asked = _asked()
    assert len(asked) > 20
    assert asked <= told | {"busq_cancel_final_seconds_bucket"}, asked - told


def _told(pod: RunningPod, wanted: str) -> set[str] | None:
    """The names of all samples that the pod tells, as soon as `wanted` is among them with a value."""
    found: dict[str, float] = {}
    for each in (*pod.containers, *pod.sidecars):
        port = each.spec["ports"][0]["containerPort"]
        for family in text_string_to_metric_families(each.get(port, "/metrics")[1]):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return set(found) if found.get(wanted) else None


def _asked() -> set[str]:
    """The names of all metrics in the dashboards and in the alerts."""
    import re

    texts = [path.read_text() for path in sorted((CHART / "dashboards").glob("*.json"))]
    rules = named(rendered(values_of("ci/everything.yaml")), "PrometheusRule", "rel-busq")
    texts.append(json.dumps(rules))
    queries: Callable[[str], list[str]] = re.compile(r"\bbusq_[a-z_]+").findall
    return {name for text in texts for name in queries(text)}
