"""
Servers that belong together: a primary with replicas and Sentinels, and a cluster.

All on loopback, all of `find_redis_server`, each ended with the process that started it. Every wait is for what the
servers themselves say.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from busq.cli.embedded import HOST, free_port, wait_until_serving
from busq.cli.tied import end_process, tied_process
from tests.servers import PORT_TRIES, RedisServer

READY_WITHIN_S = 60.0
SERVICE = "jobs"
DOWN_AFTER_MS = 500
NODE_TIMEOUT_MS = 1000


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """What `condition` answers, once it is true; a server that does not answer yet is asked again."""
    until = time.monotonic() + READY_WITHIN_S
    trouble: Exception | None = None
    while time.monotonic() < until:
        try:
            if found := condition():
                return found
        except RedisError as error:
            trouble = error
        time.sleep(0.02)
    raise AssertionError(f"not within {READY_WITHIN_S:g} s: {what} ({trouble})")


class Sentinel:
    """One Sentinel that watches a primary under the name `SERVICE`."""

    def __init__(self, executable: str, primary_port: int, quorum: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="busq-test-sentinel-")
        for _ in range(PORT_TRIES):
            self.port = free_port()
            configuration = Path(self._folder.name) / "sentinel.conf"
            configuration.write_text(
                f"port {self.port}\nbind {HOST}\ndir {self._folder.name}\n"
                f"sentinel monitor {SERVICE} {HOST} {primary_port} {quorum}\n"
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {SERVICE} 5000\n"
            )
            self._process = tied_process([executable, str(configuration), "--sentinel"])
            if wait_until_serving(self._process, self.port):
                return
            end_process(self._process)
        raise RuntimeError(f"{executable} --sentinel does not start")

    def state(self) -> dict[str, Any]:
        """What it knows of the primary."""
        with self.client() as client:
            found: dict[str, Any] = client.sentinel_master(SERVICE)
        return found

    def client(self) -> Redis:
        return Redis(HOST, self.port, decode_responses=True, protocol=2)

    def close(self) -> None:
        end_process(self._process)
        self._folder.cleanup()


class SentinelSet:
    """One primary, replicas, and three Sentinels that agree on it."""

    def __init__(self, start: Callable[..., RedisServer], executable: str, *, replicas: int = 1) -> None:
        at_once = ["--repl-diskless-sync-delay", "0"]
        self.primary = start(options=at_once)
        follow = [*at_once, "--replicaof", HOST, str(self.primary.port)]
        self.replicas = [start(options=follow) for _ in range(replicas)]
        self.servers = [self.primary, *self.replicas]
        for replica in self.replicas:
            self._until_it_follows(replica)
        self.sentinels = [Sentinel(executable, self.primary.port, 2) for _ in range(3)]
        for sentinel in self.sentinels:
            wait_for(
                lambda sentinel=sentinel: (
                    sentinel.state()["num-other-sentinels"] == 2 and sentinel.state()["num-slaves"] == replicas
                ),
                "a Sentinel that knows all others and all replicas",
            )

    @property
    def url(self) -> str:
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def promoted(self) -> RedisServer:
        """Wait until the Sentinels have made one of the replicas the primary; that one."""

        def port() -> int:
            known = {int(sentinel.state()["port"]) for sentinel in self.sentinels}
            return known.pop() if len(known) == 1 and known != {self.primary.port} else 0

        new = wait_for(port, "Sentinels that agree on a new primary")
        return next(server for server in self.servers if server.port == new)

    def _until_it_follows(self, replica: RedisServer) -> None:
        with replica.client() as client:
            wait_for(lambda: client.info("replication")["master_link_status"] == "up", "a replica that follows")

    def close(self) -> None:
        for each in (*self.sentinels, *self.servers):
            each.close()
