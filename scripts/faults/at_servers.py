"""
Faults of a server: of one drawn by chance, where there are several.

They come one at a time: two of them at once would only hide each other, and in a cluster take the majority with them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.exceptions import RedisError

from faults.server import Server
from faults.topology import Topology

Fault = Callable[[random.Random], Awaitable[str | None]]
"""Does it, from begin to end; what was hit, or None when there was nobody."""

NAMES = (
    "kill_server", "stop_server", "client_pause", "busy_script", "script_flush", "kill_pubsub", "kill_normal",
    "memory_full", "clock_of_server",
)  # fmt: skip


class ServerFaults:
    """`tell(ev, fault, target, **more)` writes down a fault and its end."""

    def __init__(self, topology: Topology, tell: Callable[..., None]) -> None:
        self._topology = topology
        self._tell = tell
        self._alone = asyncio.Lock()

    def all(self) -> dict[str, Fault]:
        return {name: getattr(self, name) for name in NAMES}

    @asynccontextmanager
    async def _hurting(self, name: str, chance: random.Random, **more: Any) -> AsyncIterator[Server]:
        """One of the servers, by itself, from the fault's beginning until all of them serve again."""
        async with self._alone:
            server = chance.choice(self._topology.servers)
            self._tell("fault", name, server.name, **more)
            yield server
            await self._topology.whole()
            self._tell("heal", name, server.name)

    async def kill_server(self, chance: random.Random) -> str | None:
        async with self._hurting("kill_server", chance) as server:
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(chance.choice([0.0, 0.1, 1.0]))
            await server.start()
        return server.name

    async def stop_server(self, chance: random.Random) -> str | None:
        async with self._hurting("stop_server", chance) as server:
            server.freeze()
            await asyncio.sleep(chance.choice([0.5, 2.0, 4.0]))
            server.thaw()
        return server.name

    async def client_pause(self, chance: random.Random) -> str | None:
        ms, what = chance.choice([200, 1500]), chance.choice(["ALL", "WRITE"])
        async with self._hurting("client_pause", chance, ms=ms, what=what) as server, server.admin() as admin:
            await admin.execute_command("CLIENT", "PAUSE", ms, what)
            await asyncio.sleep(ms / 1000)
        return server.name

    async def busy_script(self, chance: random.Random) -> str | None:
        """Somebody else's endless script, until it is ended: everybody hears BUSY."""
        async with self._hurting("busy_script", chance) as server, server.admin() as other, server.admin() as admin:
            endless = asyncio.create_task(other.execute_command("EVAL", "while true do end", 0))
            await asyncio.sleep(chance.choice([0.5, 1.2]))
            with suppress(RedisError):
                await admin.execute_command("SCRIPT", "KILL")
            await asyncio.gather(endless, return_exceptions=True)
        return server.name

    async def memory_full(self, chance: random.Random) -> str | None:
        async with self._hurting("memory_full", chance) as server, server.admin() as admin:
            used = (await admin.info("memory"))["used_memory"]
            await admin.config_set("maxmemory", used - 1024)
            await asyncio.sleep(chance.choice([0.3, 1.5]))
            await admin.config_set("maxmemory", 0)
        return server.name

    async def clock_of_server(self, chance: random.Random) -> str | None:
        """Forward or back, by much or by little; there it stays."""
        if not all(server.has_own_clock for server in self._topology.servers):
            return "no compiler for the shim"
        seconds = chance.choice([30, 3600, -1, -30, -3600, -7200])
        async with self._hurting("clock_of_server", chance, seconds=seconds) as server:
            server.step_clock(seconds)
        return server.name

    async def script_flush(self, chance: random.Random) -> str | None:
        return await self._at_server("script_flush", chance, "SCRIPT", "FLUSH", chance.choice(["SYNC", "ASYNC"]))

    async def kill_pubsub(self, chance: random.Random) -> str | None:
        return await self._at_server("kill_pubsub", chance, "CLIENT", "KILL", "TYPE", "pubsub")

    async def kill_normal(self, chance: random.Random) -> str | None:
        return await self._at_server("kill_normal", chance, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def _at_server(self, name: str, chance: random.Random, *command: str) -> str | None:
        server = chance.choice(self._topology.servers)
        async with server.admin() as admin:
            self._tell("fault", name, server.name)
            hit = await admin.execute_command(*command)
            self._tell("heal", name, server.name)
        if command[0] == "CLIENT" and not int(hit):
            return None
        return server.name
