"""
Servers that belong together: a primary with replicas and Sentinels, and a cluster.

All on loopback, all of `find_redis_server`, each ended with the process that started it; all with the roles' users,
and known to each other as the tester. Every wait is for what the servers themselves say.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from redis import Redis, RedisError
from redis.crc import key_slot

from busq.cli.embedded import HOST, free_port, wait_until_serving
from busq.cli.tied import end_process, tied_process
from tests.roles import TESTER, elsewhere, password_of
from tests.servers import PORT_TRIES, RedisServer

READY_WITHIN_S = 60.0
SERVICE = "jobs"
DOWN_AFTER_MS = 500
NODE_TIMEOUT_MS = 1000
SLOTS = 16384


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


def replicated(server: RedisServer, key: bytes) -> None:
    """Wait until a replica has all that this server had been told; `key` is one of its own, to count in."""
    with server.client() as client:
        client.incr(key)  # WAIT waits for what came by its own connection
        assert client.wait(1, round(READY_WITHIN_S * 1000)) == 1


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
                f"sentinel auth-user {SERVICE} {TESTER}\n"
                f"sentinel auth-pass {SERVICE} {password_of(TESTER)}\n"
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
        self.primary = start(users=True, options=at_once)
        follow = [*at_once, "--replicaof", HOST, str(self.primary.port)]
        self.replicas = [start(users=True, options=follow) for _ in range(replicas)]
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
        return elsewhere(self.primary.url, f"{hosts}/{SERVICE}", scheme="redis+sentinel")

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


class ClusterSet:
    """Three primaries that share all slots evenly, and a replica for each of them when `replicas` is 1."""

    def __init__(self, start: Callable[..., RedisServer], *, primaries: int = 3, replicas: int = 0) -> None:
        self.servers = [self._start(start) for _ in range(primaries * (1 + replicas))]
        self.primaries, self.replicas = self.servers[:primaries], self.servers[primaries:]
        first = self.servers[0]
        share = SLOTS // primaries + 1
        for place, server in enumerate(self.servers):
            with server.client() as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", place + 1)
                if place < primaries:
                    start_at = place * share
                    client.execute_command("CLUSTER ADDSLOTSRANGE", start_at, min(start_at + share, SLOTS) - 1)
                if server is not first:
                    with first.client() as at_first:
                        at_first.execute_command("CLUSTER MEET", HOST, server.port, _bus_port(server))
        for server in self.servers:
            self._until_it_knows_all(server)
        for primary, replica in zip(self.primaries, self.replicas, strict=False):
            with replica.client() as client:
                client.execute_command("CLUSTER REPLICATE", self.id_of(primary))
                wait_for(lambda client=client: client.info("replication")["master_link_status"] == "up", "a replica")
        for server in self.servers:
            self._until_it_knows_all(server)

    @property
    def url(self) -> str:
        nodes = ",".join(f"{HOST}:{server.port}" for server in self.primaries)
        return elsewhere(self.servers[0].url, nodes, scheme="redis+cluster")

    def id_of(self, server: RedisServer) -> str:
        with server.client() as client:
            return str(client.execute_command("CLUSTER MYID").decode())

    def holder(self, key: bytes) -> RedisServer:
        """The primary that holds this key's slot, as most servers that answer see it."""
        slot = key_slot(key)
        for server in self.servers:
            if not server.alive:
                continue
            with server.client() as client:
                for first, last, (_, port, *_), *_ in client.execute_command("CLUSTER SLOTS"):
                    if first <= slot <= last:
                        return next(each for each in self.servers if each.port == port)
        raise AssertionError(f"nobody holds slot {slot}")

    def flush(self) -> None:
        for server in self.primaries:
            server.flush()

    def move(self, key: bytes, to: RedisServer, *, step: int = 20) -> Iterator[int]:
        """
        Move this key's slot to another primary, `step` keys at a time, as `redis-cli --cluster reshard` does.

        Gives how many keys were moved, after each step; the slot belongs to the other one when it has ended.
        """
        source, slot = self.holder(key), key_slot(key)
        ours, theirs = self.id_of(source), self.id_of(to)
        login = ("AUTH2", TESTER, password_of(TESTER))
        with source.client() as at_source, to.client() as at_target:
            at_target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ours)
            at_source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", theirs)
            yield 0
            while keys := at_source.execute_command("CLUSTER GETKEYSINSLOT", slot, step):
                at_source.execute_command("MIGRATE", HOST, to.port, "", 0, 10_000, *login, "KEYS", *keys)
                yield len(keys)
            at_target.execute_command("CLUSTER SETSLOT", slot, "NODE", theirs)
            at_source.execute_command("CLUSTER SETSLOT", slot, "NODE", theirs)

    def promoted(self, lost: RedisServer, key: bytes) -> RedisServer:
        """Wait until every other server says that another one than `lost` holds this key."""

        def settled() -> bool:
            for server in self.servers:
                if server is lost:
                    continue
                with server.client() as client:
                    ports = {port for first, last, (_, port, *_), *_ in client.execute_command("CLUSTER SLOTS")}
                    if lost.port in ports or client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                        return False
            return True

        wait_for(settled, "a cluster that has put a replica in the place of a primary")
        return self.holder(key)

    def close(self) -> None:
        for server in self.servers:
            server.resume()
            server.close()

    def _start(self, start: Callable[..., RedisServer]) -> RedisServer:
        return start(
            users=True,
            options=[
                *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
                *("--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--repl-diskless-sync-delay", "0"),
                *("--cluster-require-full-coverage", "no"),
            ],
        )

    def _until_it_knows_all(self, server: RedisServer) -> None:
        with server.client() as client:
            wait_for(
                lambda: (
                    client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
                    and int(client.execute_command("CLUSTER INFO")["cluster_known_nodes"]) == len(self.servers)
                ),
                "a node that knows the cluster",
            )


def _bus_port(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.config_get("cluster-port")["cluster-port"])
