"""Values that will not do are refused with words that help, and the README lists all that there are."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from helm_python.errors import HelmError

from tests.chart.rendering import CHART, ROOT, notes, rendered, values_of

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"pools": {"default": {"drainSecond": 3}}}, "'drainSecond' not allowed"),
    "unknown at the top": ({"pool": {}}, "'pool' not allowed"),
    "wrong type": ({"poolDefaults": {"replicas": "two"}}, "/poolDefaults/replicas"),
    "no pool": ({"pools": {"default": None}, "poolDefaults": {"queues": []}}, "/poolDefaults/queues"),
    "topology": ({"redis": {"topology": "ring"}}, "/redis/topology"),
    "host without a port": ({"redis": {"hosts": ["redis"]}}, "/redis/hosts/0"),
    "several hosts of one server": ({"redis": {"hosts": ["a:1", "b:1"]}}, "redis.topology must be sentinel or cluster"),
    "no hosts": ({"redis": {"hosts": []}}, "where is Redis?"),
    "two places": ({"redis": {"url": "redis://a", "existingSecret": {"name": "b"}}}, "are both given"),
    "users beside a url": (
        {"redis": {"url": "redis://a", "users": {"worker": {"name": "w", "existingSecret": "s"}}}},
        "redis.users go with redis.hosts",
    ),
    "user without a password": ({"redis": {"users": {"worker": {"name": "w"}}}}, "has no existingSecret"),
    "certificate without a key": (
        {"redis": {"tls": {"enabled": True, "existingSecret": "s", "certKey": "tls.crt"}}},
        "redis.tls.certKey needs redis.tls.keyKey",
    ),
    "latest": ({"image": {"tag": "latest"}}, "/image/tag"),
    "grace period too short": (
        {"pools": {"default": {"terminationGracePeriodSeconds": 61}}},
        "pools.default.terminationGracePeriodSeconds is 61, and by its other values a pod needs 62",
    ),
    "zero pods, watchdog inside": (
        {"poolDefaults": {"autoscaling": {"mode": "keda", "minReplicas": 0}}},
        "minReplicas 0 takes watchdog.mode deployment or both",
    ),
    "zero pods with an HPA": (
        {"poolDefaults": {"autoscaling": {"mode": "hpa", "minReplicas": 0}}},
        "an HPA keeps at least one pod",
    ),
    "fewest above most": (
        {"poolDefaults": {"autoscaling": {"mode": "hpa", "minReplicas": 11}}},
        "minReplicas 11 is above maxReplicas 10",
    ),
    "root": ({"podSecurityContext": {"runAsUser": 0}}, "/podSecurityContext/runAsUser"),
    "foreign environment": ({"settings": {"environment": {"PATH": "/"}}}, "PATH"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_will_not_do_is_refused(what: str) -> None:
    values, words = REFUSED[what]
    with pytest.raises(HelmError) as refused:
        rendered(values)
    assert words in str(refused.value)


def test_a_grace_period_that_is_long_enough_is_taken() -> None:
    values = {"pools": {"default": {"terminationGracePeriodSeconds": 62}}}
    (deployment,) = [each for each in rendered(values) if each["kind"] == "Deployment"]
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 62


def test_the_readme_lists_every_value_as_it_is() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import chart_readme
    finally:
        sys.path.pop(0)
    page = (CHART / "README.md").read_text()
    assert page == chart_readme.with_table(page), "python scripts/chart_readme.py --write"


def test_every_alert_has_its_runbook() -> None:
    import yaml

    (rule,) = [each for each in rendered(values_of("ci/everything.yaml")) if each["kind"] == "PrometheusRule"]
    alerts = [each for group in rule["spec"]["groups"] for each in group["rules"]]
    assert len(alerts) >= 7
    headings = [
        line.removeprefix("### ") for line in (CHART / "README.md").read_text().splitlines() if line[:4] == "### "
    ]
    for alert in alerts:
        assert alert["alert"] in headings
        assert alert["annotations"]["runbook_url"].endswith(f"#{alert['alert'].lower()}")
        assert yaml.safe_dump(alert)


def test_the_notes_say_how_to_cancel_and_what_is_not_safe() -> None:
    said = notes({})
    assert "busq cancel first --reason" in said
    for words in ("app is the placeholder", "redis.hosts is the default", "default user", "not encrypted"):
        assert words in said
    safe = notes(values_of("ci/everything.yaml"))
    assert [line for line in safe.splitlines() if line.startswith("  - ")] == [
        "  - pool nightly has no PodDisruptionBudget."
    ]
    assert "not-a-secret" not in notes(values_of("ci/url.yaml"))
