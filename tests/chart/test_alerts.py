"""The alerts and the dashboards, read by Prometheus itself."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml

from busq.cli.embedded import free_port
from tests.chart.kubelet import RunningPod
from tests.chart.rendering import CHART, ROOT, named, rendered, values_of
from tests.chart.test_pod import busq, deployment, reaches
from tests.interface.test_supervisor import eventually
from tests.servers import RedisServer

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def prometheus() -> Path:
    """The folder with promtool and prometheus."""
    answer = subprocess.run(
        ["sh", str(ROOT / "scripts/bring_prometheus.sh")], capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        pytest.skip(f"no prometheus to be had: {answer.stderr.strip().splitlines()[-1]}; apt-get install prometheus")
    return Path(answer.stdout.strip())


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The rendered rules as a file that Prometheus reads."""
    rule = named(rendered(values_of("ci/everything.yaml")), "PrometheusRule", "rel-busq")
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(rule["spec"]))
    return path


def promtool(folder: Path, *words: str) -> None:
    answer = subprocess.run([folder / "promtool", *words], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_promtool_takes_the_rules(prometheus: Path, rules: Path) -> None:
    promtool(prometheus, "check", "rules", str(rules))


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    own = ",".join(f'{key}="{value}"' for key, value in {"namespace": "jobs", **labels}.items())
    return {"series": f"{name}{{{own}}}", "values": values}


STORIES: dict[str, tuple[list[dict[str, str]], list[tuple[str, int]]]] = {
    "BusqCancelsOverdue": (
        [series("busq_cancels_overdue", "0 0 1 1 1 1 1 0 0", pod="a"), series("busq_cancels_overdue", "0x10", pod="b")],
        [("1m", 0), ("2m", 0), ("4m", 1), ("8m", 0)],
    ),
    "BusqDataLost": (
        [
            series("busq_history_changes_total", "0 0 1x60", pod="a", lost="certain"),
            series("busq_history_changes_total", "0x60", pod="b", lost="certain"),
            series("busq_history_changes_total", "0x30 1x60", pod="a", lost="possible"),
        ],
        [("1m", 0), ("3m", 1), ("10m", 1), ("20m", 0), ("33m", 0)],
    ),
    "BusqHistoryChanged": (
        [series("busq_history_changes_total", "0 0 1x60", lost="possible")],
        [("1m", 0), ("3m", 1), ("20m", 0)],
    ),
    "BusqNoWatchdog": (
        [series("busq_watchdog_pass_age_seconds", "0.5 0.5 0.5 90 150 210 270 330 0.5 0.5", pod="a")],
        [("2m", 0), ("4m", 0), ("7m", 1), ("9m", 0)],
    ),
    "BusqDeadLetters": ([series("busq_dead_letters", "2x20 3x20")], [("18m", 0), ("25m", 1), ("40m", 0)]),
    "BusqListenerDeaf": (
        [series("busq_listener_hearing", "1x2 0x6", pod="a"), series("busq_listener_hearing", "1x8", pod="b")],
        [("2m", 0), ("6m", 1)],
    ),
}


@pytest.mark.parametrize("alert", STORIES)
def test_an_alert_fires_when_it_should_and_goes_out(prometheus: Path, rules: Path, tmp_path: Path, alert: str) -> None:
    given, expected = STORIES[alert]
    (rule,) = [
        each
        for group in yaml.safe_load(rules.read_text())["groups"]
        for each in group["rules"]
        if each["alert"] == alert
    ]
    pod = {"pod": "a"} if "pod" in rule["annotations"]["summary"] else {}
    fired = {
        "exp_labels": {**rule["labels"], **pod},
        "exp_annotations": {name: text.replace("{{ $labels.pod }}", "a") for name, text in rule["annotations"].items()},
    }
    story = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": given,
                "alert_rule_test": [
                    {"eval_time": at, "alertname": alert, "exp_alerts": [fired] * count} for at, count in expected
                ],
            }
        ],
    }
    path = tmp_path / "story.yaml"
    path.write_text(yaml.safe_dump(story))
    promtool(prometheus, "test", "rules", str(path))


# Against a pod -----------------------------------------------------------------------------------------------


class Prometheus:
    """A real one that scrapes a running pod."""

    def __init__(self, folder: Path, home: Path, pod: RunningPod) -> None:
        self.port = free_port()
        ports = [each.spec["ports"][0]["containerPort"] for each in (*pod.containers, *pod.sidecars)]
        labels = {"namespace": "jobs", "pod": pod.name}
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
            "scrape_configs": [
                {
                    "job_name": "busq",
                    "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports], "labels": labels}],
                }
            ],
        }
        (home / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.process = subprocess.Popen(
            [
                folder / "prometheus", f"--config.file={home / 'prometheus.yaml'}", "--log.level=error",
                f"--storage.tsdb.path={home / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def ask(self, query: str) -> list[Any]:
        with urlopen(f"http://127.0.0.1:{self.port}/api/v1/query?query={quote(query)}", timeout=LIMIT_S) as answer:
            found = json.load(answer)
        assert found["status"] == "success"
        return list(found["data"]["result"])

    def until(self, query: str, what: str = "") -> None:
        """Until it finds something; a scrape that comes too late makes its series stale for a moment."""
        pause, end = threading.Event(), time.monotonic() + LIMIT_S
        while True:
            try:
                if self.ask(query):
                    return
            except OSError:
                assert self.process.poll() is None
            assert time.monotonic() < end, f"never found: {what}{query}"
            pause.wait(0.2)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def panels() -> Iterator[tuple[str, str]]:
    for path in sorted((CHART / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"].replace("$namespace", "jobs")


# What no pod of this test has anything to say of: nothing was lost, and the server has no limit.
MAY_BE_EMPTY = re.compile(r"busq_queue_oldest|histogram_quantile|limit")


@pytest.mark.timeout(240)
def test_every_panel_of_the_dashboards_shows_something_of_a_running_pod(
    prometheus: Path, redis_server: RedisServer, redis_url: str, tmp_path: Path
) -> None:
    with RunningPod(deployment(redis_server.port, processes=2), "pod-a", tmp_path) as pod:
        worker = pod.container("worker")
        server = Prometheus(prometheus, tmp_path, pod)
        try:
            for number in range(2):  # a rate takes two scrapes, and something that happens between them
                busq(worker, "enqueue", "snooze", "[600]", "--jid", f"first-{number}")
                reaches(worker, f"first-{number}", "running")
                busq(worker, "cancel", f"first-{number}", "--wait", "60")
                server.until(f"sum(busq_cancel_final_seconds_count) >= {number + 1}")
            server.until("max(rate(busq_bus_events_total[5m])) > 0")
            for panel, query in panels():
                if not MAY_BE_EMPTY.search(query):
                    server.until(query, f"{panel}: ")
            for rule in named(rendered(values_of("ci/everything.yaml")), "PrometheusRule", "rel-busq")["spec"][
                "groups"
            ]:
                for alert in rule["rules"]:
                    assert eventually(lambda alert=alert: not server.ask(alert["expr"])), alert["alert"]
        finally:
            server.close()
