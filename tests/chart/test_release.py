"""The life of a release against an emulated API: install, test, upgrade, rollback, uninstall."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

pytest.importorskip("kmock", reason="kmock is not installed: pip install 'busq[dev]'")

import helm_python
import kmock
from helm_python.errors import HelmError

from tests.chart.cluster import Cluster, kubeconfig
from tests.chart.rendering import CHART, NAMESPACE, RELEASE, VALUES_FILES, rendered, values_of

WAIT_S = 60


@asynccontextmanager
async def double() -> AsyncIterator[tuple[Cluster, helm_python.Config]]:
    async with Cluster() as cluster, kmock.Server(cluster):
        cluster.prepare()
        # In memory: releases kept as secrets would be written as protobuf, which the double cannot read.
        config = helm_python.Config(
            kubeconfig_content=kubeconfig(cluster.url), namespace=NAMESPACE, storage_driver="memory"
        )
        yield cluster, config


def there(cluster: Cluster, kind: str) -> set[str]:
    """The names of the objects of a kind that exist."""
    return {
        str(key[2])
        for key, each in cluster._objects.items()
        if not each.deleted and each.last is not None and each.last.get("kind") == kind
    }


@pytest.mark.parametrize("file", VALUES_FILES, ids=lambda file: file or "defaults")
async def test_every_object_is_installed_and_removed(file: str) -> None:
    values = values_of(file)
    async with double() as (cluster, config):
        await asyncio.to_thread(config.install, str(CHART), RELEASE, values)
        wanted = [each for each in rendered(values) if each["kind"] != "Pod"]
        for kind in {each["kind"] for each in wanted}:
            assert there(cluster, kind) == {each["metadata"]["name"] for each in wanted if each["kind"] == kind}
        await asyncio.to_thread(config.uninstall, RELEASE)
        for kind in {each["kind"] for each in wanted}:
            assert there(cluster, kind) == set(), kind


async def test_a_release_is_tested_upgraded_and_rolled_back() -> None:
    async with double() as (cluster, config):
        await asyncio.to_thread(config.install, str(CHART), RELEASE, {})
        await asyncio.to_thread(config.test, RELEASE, timeout=WAIT_S)
        more: dict[str, Any] = {"pools": {"media": {"queues": ["video"]}}, "watchdog": {"mode": "both"}}
        await asyncio.to_thread(lambda: config.upgrade(str(CHART), RELEASE, more, wait="watcher", timeout=WAIT_S))
        assert there(cluster, "Deployment") == {"rel-busq-default", "rel-busq-media", "rel-busq-watchdog"}
        await asyncio.to_thread(config.rollback, RELEASE)
        assert there(cluster, "Deployment") == {"rel-busq-default"}


async def test_a_failing_test_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with double() as (_, config):
        monkeypatch.setattr(Cluster, "failing", {"rel-busq-test-cancel"})
        await asyncio.to_thread(config.install, str(CHART), RELEASE, {})
        with pytest.raises(HelmError):
            await asyncio.to_thread(config.test, RELEASE, timeout=WAIT_S)
