"""
Where the bus of a run lives: one server, or the nodes of a Redis Cluster, and the proxies before them.

A cluster here is primaries alone. With replicas a failover would lose acknowledged writes by nature, and no judge
could tell that from a broken promise; so a node that is killed comes back with its file, and its slots wait for it. No
slot moves either: what a moved key holds comes as RESTORE, which the judge cannot read.

A client of one server goes by a proxy or not. In a cluster it goes where the nodes say they are, and every second node
says the address of its proxy.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis.crc import key_slot
from redis.exceptions import RedisError

from busq.cli.embedded import HOST, free_port
from faults.cables import Cable
from faults.proxy import Link, Proxy
from faults.server import Server
from faults.users import Users

SLOTS = 16384
WHOLE_S = 120.0
MEETINGS = 12
FEWEST_NODES = 3
"""With fewer, one that dies takes the majority with it, and so the others too."""


class Topology:
    """What all sorts of them have: `servers`, each with its folder, and `proxies`."""

    scheme = "redis"
    path = "/0"

    def __init__(self, servers: Sequence[Server], proxies: Sequence[Proxy], users: Users | None) -> None:
        self.servers = servers
        self.proxies = proxies
        self._users = users

    async def start(self) -> None:
        """Start all of it, and wait until it serves."""
        for proxy in self.proxies:
            await proxy.start()
        for server in self.servers:
            await server.start()

    async def whole(self) -> None:
        """Wait until every server serves what is its own; a lone one does when it answers."""

    def url(self, user: str, *, by_proxy: bool, cable: Cable | None = None) -> str:
        """Where this user connects to: by its own cable, if it has one."""
        login = "" if self._users is None else self._users.login(user)
        if cable is not None:
            return f"{self.scheme}://{login}{cable.near}:{self.servers[0].port}{self.path}"
        hosts = ",".join(f"{HOST}:{port}" for port in self._ports(by_proxy))
        return f"{self.scheme}://{login}{hosts}{self.path}"

    def holder(self, key: bytes) -> Server:
        """The server that has this key."""
        return self.servers[0]

    @property
    def links(self) -> list[Link]:
        """The connections that are open through a proxy now."""
        return [link for proxy in self.proxies for link in proxy.links]

    def choose(self, chance: random.Random, part: float) -> list[Link]:
        """Some of the connections; one at least, if there is one."""
        links = sorted(self.links, key=id)
        return chance.sample(links, min(len(links), max(1, round(len(links) * part))))

    @property
    def restarts(self) -> int:
        return sum(server.starts - 1 for server in self.servers)

    async def close(self) -> None:
        for proxy in self.proxies:
            await proxy.close()
        for server in self.servers:
            server.close()

    def _ports(self, by_proxy: bool) -> list[int]:
        return [self.proxies[0].port if by_proxy else self.servers[0].port]


class Alone(Topology):
    """One server, which listens on further addresses, too, and a proxy before it."""

    def __init__(self, executable: str, folder: Path, users: Users | None, addresses: Sequence[str] = ()) -> None:
        further = ["--bind", HOST, *addresses, "--protected-mode", "no"] if addresses else []
        server = Server(executable, folder / "server", users, further)
        super().__init__([server], [Proxy(server.port)], users)


class Cluster(Topology):
    """So many nodes that share all slots evenly."""

    scheme = "redis+cluster"
    path = ""

    def __init__(self, executable: str, folder: Path, users: Users | None, nodes: int) -> None:
        self._bus_ports = [free_port() for _ in range(nodes)]
        servers = [
            Server(executable, folder / f"server{number}", users, [
                "--cluster-enabled", "yes", "--cluster-port", str(port), "--cluster-node-timeout", "1000",
                "--cluster-require-full-coverage", "no",
            ])
            for number, port in enumerate(self._bus_ports)
        ]  # fmt: skip
        super().__init__(servers, [Proxy(server.port) for server in servers[::2]], users)

    async def start(self) -> None:
        for proxy, server in zip(self.proxies, self.servers[::2], strict=True):
            await proxy.start()
            server.add_options("--cluster-announce-port", str(proxy.port))
        for server in self.servers:
            await server.start()
        for number, server in enumerate(self.servers):
            first, last = self._slots(number)
            await self._tell(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            await self._tell(server, "CLUSTER", "ADDSLOTSRANGE", first, last)
        for _ in range(MEETINGS):
            # Nodes give a meeting up when it takes longer than their time-out, which a busy machine may be for.
            for server, port in zip(self.servers[1:], self._bus_ports[1:], strict=True):
                await self._tell(self.servers[0], "CLUSTER", "MEET", HOST, server.port, port)
            with suppress(RuntimeError):
                await self.whole(WHOLE_S / MEETINGS)
                return
        await self.whole()

    async def whole(self, within_s: float = WHOLE_S) -> None:
        """Wait until every node says that it serves, and knows that every other one does."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            with suppress(RedisError, OSError):
                if all([await self._is_whole(server) for server in self.servers]):
                    return
            await asyncio.sleep(0.02)
        raise RuntimeError(f"the cluster is not whole within {within_s:g} s; see the server.log of each node")

    def holder(self, key: bytes) -> Server:
        return self.servers[node_of(key, len(self.servers))]

    def _ports(self, by_proxy: bool) -> list[int]:
        told = {id(server): proxy.port for server, proxy in zip(self.servers[::2], self.proxies, strict=True)}
        return [told.get(id(server), server.port) for server in self.servers]

    def _slots(self, number: int) -> tuple[int, int]:
        nodes = len(self.servers)
        return SLOTS * number // nodes, SLOTS * (number + 1) // nodes - 1

    async def _is_whole(self, server: Server) -> bool:
        said = await self._tell(server, "CLUSTER", "INFO")
        told = dict(line.split(":", 1) for line in _lines(said))
        serving = [line for line in _lines(await self._tell(server, "CLUSTER", "NODES")) if "fail" not in line]
        return (
            told["cluster_state"] == "ok"
            and told["cluster_slots_ok"] == str(SLOTS)
            and len(serving) == len(self.servers)
        )

    async def _tell(self, server: Server, *command: Any) -> Any:
        async with server.admin() as admin:
            return await admin.execute_command(*command)


def node_of(key: bytes, nodes: int) -> int:
    """Which of so many nodes has this key."""
    return ((key_slot(key) + 1) * nodes - 1) // SLOTS


def _lines(said: Any) -> list[str]:
    return [line for line in said.decode().splitlines() if line]
