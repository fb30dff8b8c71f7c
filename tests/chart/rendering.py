"""The chart as Helm renders it, without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python.chart import Chart

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "busq"
RELEASE, NAMESPACE = "rel", "jobs"
VALUES_FILES = ["", *sorted(str(path.relative_to(CHART)) for path in CHART.glob("[ce][ix]*/*.yaml"))]

Object = dict[str, Any]


def values_of(file: str) -> dict[str, Any]:
    """The values of a file of the chart; "" for the defaults alone."""
    return yaml.safe_load((CHART / file).read_text()) or {} if file else {}


def texts(values: dict[str, Any], *, release: str = RELEASE) -> dict[str, str]:
    """What each template renders to."""
    with Chart.load(str(CHART)) as chart:
        return dict(chart.render(values, name=release, namespace=NAMESPACE))


def rendered(values: dict[str, Any], *, release: str = RELEASE) -> list[Object]:
    """Every object, test pods included."""
    found = texts(values, release=release)
    return [
        document
        for path, text in sorted(found.items())
        if not path.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
        if document
    ]


@cache
def of_file(file: str) -> list[Object]:
    """The same for a file of the chart; do not change what it answers."""
    return rendered(values_of(file))


def notes(values: dict[str, Any]) -> str:
    return next(text for path, text in texts(values).items() if path.endswith("NOTES.txt"))


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [each for each in of_kind(objects, kind) if each["metadata"]["name"] == name]
    return found


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """The name and the spec of every pod that these objects bring about."""
    for each in objects:
        if each["kind"] == "Deployment":
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]
        elif each["kind"] == "Pod":
            yield each["metadata"]["name"], each["spec"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]
