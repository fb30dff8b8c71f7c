"""
As much of a kubelet as a rendered pod needs: its containers' own commands, arguments and environment as processes.

Native sidecars start first and are waited for, and end last. A pod is taken down as Kubernetes does it: preStop, then
SIGTERM, and SIGKILL when the rendered grace period, which began with preStop, is over.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.chart.rendering import NAMESPACE, Object

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0


class Container:
    """One container of a pod: a process, started from what was rendered and nothing else."""

    def __init__(self, spec: Object, pod: str, secrets: dict[str, dict[str, str]], folder: Path) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.folder = folder
        self.environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOSTNAME": pod,
            **_environment(spec["env"], pod, secrets),
        }
        self.log = folder / f"{pod}-{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.spec["command"], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.folder, start_new_session=True,
            )  # fmt: skip

    def execute(self, command: list[str], timeout: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
        """As `kubectl exec`, and a hook, run something in the container."""
        return subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=timeout, check=False
        )

    def probe(self, name: str) -> int:
        """What the rendered probe is answered; 0 for nothing at all."""
        asked = self.spec[f"{name}Probe"]["httpGet"]
        (port,) = [each["containerPort"] for each in self.spec["ports"] if each["name"] == asked["port"]]
        return self.get(port, asked["path"])[0]

    def get(self, port: int, path: str) -> tuple[int, str]:
        try:
            with urlopen(f"http://127.0.0.1:{port}{path}", timeout=LIMIT_S) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as refusal:
            return refusal.code, refusal.read().decode()
        except (URLError, OSError):
            return 0, ""

    def until(self, probe: str, status: int = HTTPStatus.OK) -> None:
        pause, end = threading.Event(), time.monotonic() + LIMIT_S
        while self.probe(probe) != status:
            assert self.process is None or self.process.poll() is None, (
                f"{self.name} has ended:\n{self.log.read_text()}"
            )
            assert time.monotonic() < end, f"{self.name}: {probe} never said {status}:\n{self.log.read_text()}"
            pause.wait(0.05)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(LIMIT_S)


def _environment(entries: list[Object], pod: str, secrets: dict[str, dict[str, str]]) -> dict[str, str]:
    """What a kubelet makes of it: references resolved, and `$(NAME)` of entries before it."""
    made: dict[str, str] = {}
    fields = {"metadata.name": pod, "metadata.namespace": NAMESPACE}
    for entry in entries:
        source = entry.get("valueFrom", {})
        if "secretKeyRef" in source:
            value = secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
        elif "fieldRef" in source:
            value = fields[source["fieldRef"]["fieldPath"]]
        else:
            value = re.sub(r"\$\((\w+)\)", lambda match: made.get(match[1], match[0]), entry.get("value", ""))
        made[entry["name"]] = value
    return made


class RunningPod:
    """A pod of a rendered Deployment. `secrets` are those that it refers to, by name and key."""

    def __init__(
        self, deployment: Object, name: str, folder: Path, *, secrets: dict[str, dict[str, str]] | None = None
    ) -> None:
        self.name = name
        spec = deployment["spec"]["template"]["spec"]
        self.grace_s: float = spec["terminationGracePeriodSeconds"]
        _busq_on_path(folder)
        sidecars = [each for each in spec.get("initContainers", []) if each.get("restartPolicy") == "Always"]
        assert sidecars == spec.get("initContainers", []), "no other init container is run here"
        self.sidecars = [Container(each, name, secrets or {}, folder) for each in sidecars]
        self.containers = [Container(each, name, secrets or {}, folder) for each in spec["containers"]]

    def __enter__(self) -> Self:
        for each in self.sidecars:
            each.start()
            each.until("startup")
        for each in self.containers:
            each.start()
        for each in self.containers:
            each.until("startup")
            each.until("readiness")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def container(self, name: str) -> Container:
        (found,) = [each for each in (*self.sidecars, *self.containers) if each.name == name]
        return found

    def kill(self) -> None:
        """The node is gone: nothing is asked, nothing is told."""
        for each in (*self.containers, *self.sidecars):
            each.kill()

    def delete(self) -> dict[str, Any]:
        """Take it down as a kubelet does. Answers with each container's exit status; None: it had to be killed."""
        over_at = time.monotonic() + self.grace_s
        for each in self.containers:
            hook = each.spec.get("lifecycle", {}).get("preStop")
            if hook is not None:
                each.execute(hook["exec"]["command"])
        left = {each.name: self._end(each, over_at) for each in self.containers}
        return left | {each.name: self._end(each, over_at) for each in reversed(self.sidecars)}

    @staticmethod
    def _end(container: Container, over_at: float) -> int | None:
        process = container.process
        assert process is not None
        process.terminate()
        try:
            return process.wait(max(0.0, over_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            container.kill()
            return None


def _busq_on_path(folder: Path) -> None:
    """The one thing that an image brings: `busq` on PATH."""
    command = folder / "busq"
    if not command.exists():
        command.write_text(f"#!{sys.executable}\nimport sys\nfrom busq.cli import main\nsys.exit(main())\n")
        command.chmod(0o755)
    assert shutil.which("sh")
