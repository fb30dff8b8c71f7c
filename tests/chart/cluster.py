"""
A Kubernetes API that is only a test double: kmock's emulator, taught what Helm asks of a real one.

It proves that Helm accepts, applies, waits, tests, rolls back and removes; not that Kubernetes would admit the objects.
Overrides private methods of a young package, so its version is pinned and this is the only place that knows them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import kmock
import yaml

from tests.chart.rendering import NAMESPACE

CUSTOM = {
    ("monitoring.coreos.com", "v1", "podmonitors"): "PodMonitor",
    ("monitoring.coreos.com", "v1", "prometheusrules"): "PrometheusRule",
    ("keda.sh", "v1alpha1", "scaledobjects"): "ScaledObject",
}


class Cluster(kmock.KubernetesEmulator):
    """Deployments are rolled out at once, and pods of tests succeed unless their name is in `failing`."""

    failing: ClassVar[set[str]] = set()

    async def _serve_version(self, request: Any) -> Any:
        document = dict(await super()._serve_version(request))
        document["groupVersion"] = document["groupVersion"].lstrip("/")
        return document

    async def _serve_list(self, request: Any) -> Any:
        document, resource = dict(await super()._serve_list(request)), request.resource
        kind = self._resources[next(each for each in self._resources if each == resource)].kind
        chosen = (request.params or {}).get("fieldSelector", "")
        if chosen.startswith("metadata.name="):
            name = chosen.partition("=")[2]
            document["items"] = [each for each in document["items"] if each["metadata"]["name"] == name]
        version = f"{resource.group}/{resource.version}".lstrip("/")
        return {"kind": f"{kind}List", "apiVersion": version, **document, "metadata": {"resourceVersion": "1"}}

    async def _handle(self, request: Any) -> Any:
        if request.resource is not None and isinstance(request.data, dict):
            self._make_ready(request.data)
            kind = (request.headers or {}).get("Content-Type", "")
            if request.name is not None and kind.startswith("application/apply-patch"):
                key = (request.resource, request.namespace, request.name)
                if key not in self._objects:
                    self._objects[key] = request.data
                elif self._objects[key].deleted:
                    self._objects[key].create(request.data)
        return await super()._handle(request)

    def _make_ready(self, data: dict[str, Any]) -> None:
        if data.get("kind") == "Deployment":
            replicas = data["spec"].get("replicas", 1)
            condition = {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"}
            data["metadata"]["generation"] = 1
            data["status"] = {
                "observedGeneration": 1, "replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas,
                "availableReplicas": replicas, "conditions": [condition],
            }  # fmt: skip
        elif data.get("kind") == "Pod":
            failed = data["metadata"]["name"] in self.failing
            data["status"] = {"phase": "Failed" if failed else "Succeeded"}
        elif data.get("kind") == "PodDisruptionBudget":
            data["status"] = {"observedGeneration": 1, "currentHealthy": 1, "desiredHealthy": 1}

    def prepare(self) -> None:
        """What Helm asks before it does anything."""
        self.resources.load_bundled()
        self["get /version"] << {"major": "1", "minor": "33", "gitVersion": "v1.33.0", "platform": "linux/amd64"}
        self["get /openapi/v3"] << {"paths": {}}
        self["get /openapi/v2"] << b""
        for (group, version, plural), kind in CUSTOM.items():
            self.resources[kmock.resource(group, version, plural)] = {
                "kind": kind, "singular": kind.lower(), "namespaced": True, "shortnames": [], "categories": [],
                "verbs": ["get", "list", "watch", "patch", "create", "delete"], "subresources": [],
            }  # fmt: skip


def kubeconfig(url: object) -> str:
    context = {"cluster": "double", "user": "tester", "namespace": NAMESPACE}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "double", "cluster": {"server": str(url)}}],
            "users": [{"name": "tester", "user": {"token": "none"}}],
            "contexts": [{"name": "double", "context": context}],
            "current-context": "double",
        }
    )
