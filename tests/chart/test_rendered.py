"""What the chart renders: valid for every Kubernetes that it takes, and safe by default."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python.chart import lint

from tests.chart.rendering import (
    CHART,
    VALUES_FILES,
    Object,
    containers,
    named,
    of_file,
    of_kind,
    pods,
    rendered,
    texts,
    values_of,
)

VERSIONS = ("1.29", "1.31", "1.33", "1.35")
CUSTOM = {"ScaledObject", "PodMonitor", "PrometheusRule"}
EVERYTHING = "ci/everything.yaml"

each_file = pytest.mark.parametrize("file", VALUES_FILES, ids=lambda file: file or "defaults")


@each_file
def test_it_passes_a_strict_lint(file: str) -> None:
    report = lint(str(CHART), values_of(file), strict=True, kube_version="v1.33.0")
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@each_file
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(file: str, version: str) -> None:
    for each in of_file(file):
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)


@each_file
def test_no_two_objects_share_a_name_and_all_of_them_carry_the_labels(file: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in of_file(file)]
    assert len(set(names)) == len(names)
    for each in of_file(file):
        assert len(each["metadata"]["name"]) <= 63
        if not each["metadata"]["name"].endswith("-extra"):
            labels = each["metadata"]["labels"]
            assert {"name", "instance", "component", "version", "part-of", "managed-by"} <= {
                key.removeprefix("app.kubernetes.io/") for key in labels
            }
            assert all(
                re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", value) for value in labels.values()
            )


def test_two_releases_in_one_namespace_share_no_name_and_no_pod() -> None:
    one, other = (rendered(values_of(EVERYTHING), release=name) for name in ("one", "two"))
    both = [{(each["kind"], each["metadata"]["name"]) for each in objects} for objects in (one, other)]
    assert not both[0] & both[1]
    for deployment in of_kind(one, "Deployment"):
        selector = deployment["spec"]["selector"]["matchLabels"].items()
        for foreign in of_kind(other, "Deployment"):
            assert not selector <= foreign["spec"]["template"]["metadata"]["labels"].items()


@each_file
def test_selectors_choose_their_own_pods_only_and_hold_nothing_that_an_upgrade_changes(file: str) -> None:
    deployments = of_kind(of_file(file), "Deployment")
    for each in deployments:
        selector = each["spec"]["selector"]["matchLabels"]
        assert set(selector) <= {
            "app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component", "busq.io/pool",
        }  # fmt: skip
        chosen = [
            other["metadata"]["name"]
            for other in deployments
            if selector.items() <= other["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert chosen == [each["metadata"]["name"]]


@each_file
def test_budgets_and_the_service_choose_pods_that_exist(file: str) -> None:
    objects = of_file(file)
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in of_kind(objects, "Deployment")]
    budgets = [each["spec"]["selector"]["matchLabels"] for each in of_kind(objects, "PodDisruptionBudget")]
    (service,) = of_kind(objects, "Service")
    for selector in (*budgets, service["spec"]["selector"]):
        assert any(selector.items() <= each.items() for each in labels)
    for deployment in of_kind(objects, "Deployment"):
        own = deployment["spec"]["template"]
        if service["spec"]["selector"].items() <= own["metadata"]["labels"].items():
            ports = {port["name"] for each in containers(own["spec"]) for port in each.get("ports", [])}
            assert service["spec"]["ports"][0]["targetPort"] in ports


ALL_PODS = [
    pytest.param(pod, id=f"{file or 'defaults'}-{name}") for file in VALUES_FILES for name, pod in pods(of_file(file))
]


@pytest.mark.parametrize("pod", ALL_PODS)
def test_every_pod_is_restricted(pod: Object) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod.get("hostNetwork")
    assert not pod.get("hostPID")
    assert not [each for each in pod.get("volumes", []) if "hostPath" in each]
    for each in containers(pod):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "limits" in each["resources"]
        assert "memory" in each["resources"]["limits"]
        assert not each["image"].endswith(":latest")
        assert ":" in each["image"]
        assert each["command"][0] in ("busq", "sh")
        mounts = {mount["name"] for mount in each["volumeMounts"]}
        assert mounts <= {volume["name"] for volume in pod["volumes"]}
        assert "tmp" in mounts


@pytest.mark.parametrize("pod", ALL_PODS)
def test_no_secret_stands_in_a_pod(pod: Object) -> None:
    for each in containers(pod):
        assert "not-a-secret" not in yaml.safe_dump(each)
        for entry in each["env"]:
            assert "value" in entry or set(entry["valueFrom"]) <= {"secretKeyRef", "fieldRef"}
            assert "PASSWORD" not in entry["name"] or "valueFrom" in entry
        names = [entry["name"] for entry in each["env"]]
        assert len(set(names)) == len(names), "the later of two would win"


@each_file
def test_every_long_running_container_has_its_probes_on_ports_that_it_has(file: str) -> None:
    for each in of_kind(of_file(file), "Deployment"):
        for container in containers(each["spec"]["template"]["spec"]):
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
            assert {name: probe["path"] for name, probe in probes.items()} == {
                "startup": "/startupz", "liveness": "/livez", "readiness": "/readyz",
            }  # fmt: skip
            assert {probe["port"] for probe in probes.values()} == set(ports)
            assert f"--health-port={ports.popitem()[1]}" in container["command"]


@each_file
def test_watchdogs_stand_where_the_mode_says(file: str) -> None:
    objects = of_file(file)
    mode = values_of(file).get("watchdog", {}).get("mode", "sidecar")
    of_their_own = [each for each in of_kind(objects, "Deployment") if each["metadata"]["name"].endswith("-watchdog")]
    assert bool(of_their_own) == (mode != "sidecar")
    for each in of_kind(objects, "Deployment"):
        if each not in of_their_own:
            init = each["spec"]["template"]["spec"].get("initContainers", [])
            assert [(one["name"], one["restartPolicy"]) for one in init] == (
                [] if mode == "deployment" else [("watchdog", "Always")]
            )


def test_the_grace_period_outlasts_all_that_a_drain_may_take() -> None:
    for pool in ({}, {"drainSeconds": 7200, "graceSeconds": 60}, {"processes": 4, "cleanupSeconds": 20.5}):
        merged = {"drainSeconds": 30, "graceSeconds": 5, "cleanupSeconds": 3, "processes": 1} | pool
        spec = named(rendered({"pools": {"default": pool}}), "Deployment", "rel-busq-default")["spec"]["template"][
            "spec"
        ]
        worker = 5 + merged["drainSeconds"] + max(merged["cleanupSeconds"], merged["graceSeconds"]) + 1 + 1 + 5
        assert spec["terminationGracePeriodSeconds"] >= worker + 10 + (10 if merged["processes"] > 1 else 0)
        (container,) = spec["containers"]
        assert f"--shutdown-timeout={merged['drainSeconds']}" in container["command"]


def test_the_room_of_a_pool_counts_its_processes_and_every_watchdog_knows_all_pools() -> None:
    values = values_of(EVERYTHING)
    objects = of_file(EVERYTHING)
    wanted = {"--pool=default=16:default", "--pool=media=8:video,audio", "--pool=nightly=16:default"}
    assert len(values["pools"]) == 3
    for each in of_kind(objects, "Deployment"):
        for container in containers(each["spec"]["template"]["spec"]):
            if container["name"] == "watchdog":
                assert wanted <= set(container["command"])


def test_pools_are_scaled_by_what_waits_and_what_runs() -> None:
    objects = of_file(EVERYTHING)
    keda = named(objects, "ScaledObject", "rel-busq-default")["spec"]
    assert keda["triggers"] == [
        {
            "type": "metrics-api",
            "metricType": "AverageValue",
            "metadata": {
                "url": "http://rel-busq-watchdog.jobs.svc:8081/scale/default",
                "valueLocation": "load",
                "targetValue": "16",
                "activationTargetValue": "0",
            },
        }
    ]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"], keda["cooldownPeriod"]) == (0, 20, 60)
    nightly = named(objects, "ScaledObject", "rel-busq-nightly")["spec"]["triggers"][0]
    assert nightly["metadata"]["query"] == 'max(busq_pool_load{namespace="jobs",pool="nightly"})'
    hpa = named(objects, "HorizontalPodAutoscaler", "rel-busq-media")["spec"]
    assert hpa["metrics"][0]["external"]["target"]["averageValue"] == "6.4"
    assert hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 600
    for name in ("default", "media", "nightly"):
        assert "replicas" not in named(objects, "Deployment", f"rel-busq-{name}")["spec"], "two would fight over it"


def test_where_redis_is_stands_in_one_url() -> None:
    def url(values: dict[str, Any], container: str = "worker") -> dict[str, Any]:
        pod = named(rendered(values), "Deployment", "rel-busq-default")["spec"]["template"]["spec"]
        (own,) = [each for each in containers(pod) if each["name"] == container]
        (entry,) = [each for each in own["env"] if each["name"] == "BUSQ_URL"]
        return dict(entry)

    assert url({})["value"] == "redis://redis:6379/0"
    assert url(values_of("ci/sentinel.yaml"))["value"] == (
        "redis+sentinel://s-0.sentinel:26379,s-1.sentinel:26379,s-2.sentinel:26379/main/0"
    )
    everything = values_of(EVERYTHING)
    assert url(everything)["value"].startswith(
        "rediss+cluster://busq-worker:$(BUSQ_REDIS_PASSWORD)@redis-0.redis:6379,"
    )
    assert url(everything, "watchdog")["value"].startswith("rediss+cluster://busq-watchdog:$(BUSQ_REDIS_PASSWORD)@")
    assert url(values_of("ci/url.yaml"))["valueFrom"]["secretKeyRef"] == {"name": "rel-busq-redis", "key": "url"}
    assert url(values_of("ci/secret.yaml"))["valueFrom"]["secretKeyRef"] == {"name": "redis-url", "key": "busq"}


def test_a_new_url_rolls_the_pods() -> None:
    def checksum(url: str) -> str:
        template = named(rendered({"redis": {"url": url}}), "Deployment", "rel-busq-default")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/redis"])

    assert checksum("redis://a:6379/0") == checksum("redis://a:6379/0") != checksum("redis://b:6379/0")


def test_what_is_off_by_default_is_not_rendered() -> None:
    assert {each["kind"] for each in of_file("")} == {
        "Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "Pod",
    }  # fmt: skip
    assert {each["kind"] for each in of_file(EVERYTHING)} > CUSTOM | {
        "NetworkPolicy",
        "ConfigMap",
        "HorizontalPodAutoscaler",
    }


def test_extra_objects_are_templates() -> None:
    assert named(of_file(EVERYTHING), "ConfigMap", "rel-extra")["data"] == {"a": "b"}


def test_no_trailing_garbage_is_rendered() -> None:
    for file in VALUES_FILES:
        for path, text in texts(values_of(file)).items():
            assert "<no value>" not in text, path
            assert "%!" not in text, path
