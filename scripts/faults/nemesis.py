"""
The one who does it: carries out the steps of a plan on a bus of real processes, and writes down each of them.

Faults of processes overlap as they fall; those of servers are in at_servers.py. A fault that finds nobody to hit is
tried again a little later, so a run does what its plan counts; but not where nobody comes any more.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from redis.exceptions import RedisError

from faults import forged
from faults.at_servers import Fault, ServerFaults
from faults.cables import Cable
from faults.crew import Crew, Place, children_of
from faults.history import History
from faults.plan import SETTINGS, Plan, Step
from faults.proxy import Link
from faults.topology import Topology

AGAIN_S = 0.3  # until a fault that found nobody is tried again
TRIES = 200


class NobodyComes(Exception):
    """All clients of a role have done their share: no process takes their places any more."""


class Nemesis:
    def __init__(
        self, topology: Topology, crew: Crew, skew: Any, plan: Plan, cables: Mapping[str, Cable] = MappingProxyType({})
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self._topology = topology
        self._crew = crew
        self._skew = skew
        self._plan = plan
        self._cables = cables
        self._pulled: set[str] = set()
        self._history = History("nemesis", "nemesis")
        self._running: set[asyncio.Task[None]] = set()
        self._faults = self._all()

    async def carry_out(self) -> None:
        """Every step at its moment, or as soon after it as may be; returns when the last one has ended."""
        began = time.monotonic()
        for step in self._plan.steps:
            await asyncio.sleep(max(0.0, began + step.at - time.monotonic()))
            task = asyncio.create_task(self._step(step))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            while len(self._running) > 30:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        while self._running:
            await asyncio.wait(self._running)

    async def _step(self, step: Step) -> None:
        chance = random.Random(step.seed)
        for _ in range(TRIES):
            try:
                hit = await self._faults[step.fault](chance)
            except (RedisError, OSError):
                hit = None  # the server is away: another fault is at it
            except NobodyComes:
                break
            if hit is not None:
                self.counts[step.fault] += 1
                return
            await asyncio.sleep(AGAIN_S)
        self.missed[step.fault] += 1

    def _all(self) -> dict[str, Fault]:
        found: dict[str, Fault] = {}
        for role in ("worker", "watchdog", "producer", "canceller"):
            found[f"kill_{role}"] = self._signalling(role, signal.SIGKILL)
            found[f"stop_{role}"] = self._freezing(role)
        for role in ("worker", "watchdog"):
            found[f"term_{role}"] = self._signalling(role, signal.SIGTERM)
        for how in ("delay", "cut_reply", "cut_request", "half_open", "dribble", "reset"):
            found[f"proxy_{how}"] = self._in_proxy(how)
        for name in (
            "kill_child", "stop_child", "clock_of_process", "poison", "forged_notice", "partition",
        ):  # fmt: skip
            found[name] = getattr(self, f"_{name}")
        return found | ServerFaults(self._topology, self._tell).all()

    def _tell(self, ev: str, fault: str, target: str, **more: Any) -> None:
        """One line; a fault and its end are told in the same task, and by that have the same operation."""
        task = asyncio.current_task()
        self._history.tell(ev, "info", op=task and task.get_name(), val={"fault": fault, "target": target, **more})

    # Processes -------------------------------------------------------------------------------------------

    def _signalling(self, role: str, number: signal.Signals) -> Fault:
        name = f"{'kill' if number == signal.SIGKILL else 'term'}_{role}"

        async def fault(chance: random.Random) -> str | None:
            place = self._pick(role, chance)
            if place is None:
                return None
            target, ended = f"{place.name}:{place.pid}", place.ended
            self._tell("fault", name, target)
            if number == signal.SIGTERM:
                place.killed = True  # asked to go, with whatever exit code
            self._crew.signal(place, number)
            await ended.wait()
            self._tell("heal", name, target)
            return target

        return fault

    def _freezing(self, role: str) -> Fault:
        async def fault(chance: random.Random) -> str | None:
            place = self._pick(role, chance)
            if place is None or place.pid is None:
                return None
            pid, target = place.pid, f"{place.name}:{place.pid}"
            length_s = _freeze_s(chance)
            self._tell("fault", f"stop_{role}", target, seconds=length_s)
            place.frozen = True
            self._crew.signal(place, signal.SIGSTOP)
            await asyncio.sleep(length_s)
            if place.pid == pid:
                self._crew.signal(place, signal.SIGCONT)
                place.frozen = False
            self._tell("heal", f"stop_{role}", target)
            return target

        return fault

    def _pick(self, role: str, chance: random.Random) -> Place | None:
        """One that can be hit now, if there is one. Raise `NobodyComes`."""
        if self._crew.is_over(role):
            raise NobodyComes
        places = self._crew.of(role)
        return chance.choice(places) if places else None

    async def _kill_child(self, chance: random.Random) -> str | None:
        found = self._child(chance)
        if found is None:
            return None
        place, pid = found
        self._tell("fault", "kill_child", f"{place.name}:{pid}")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._tell("heal", "kill_child", f"{place.name}:{pid}")
        return str(pid)

    async def _stop_child(self, chance: random.Random) -> str | None:
        found = self._child(chance)
        if found is None:
            return None
        place, pid = found
        target = f"{place.name}:{pid}"
        self._tell("fault", "stop_child", target)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(_freeze_s(chance))
        # It may have been killed and collected meanwhile, and its number be somebody else's by now.
        if place.pid is not None and pid in children_of(place.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._tell("heal", "stop_child", target)
        return target

    def _child(self, chance: random.Random) -> tuple[Place, int] | None:
        found = [
            (place, pid) for place in self._crew.of("worker") if place.pid is not None for pid in children_of(place.pid)
        ]
        return chance.choice(found) if found else None

    # Clocks of processes, connections and messages -------------------------------------------------------

    async def _clock_of_process(self, chance: random.Random) -> str | None:
        seconds = chance.choice([-3600, -5, 5, 3600])
        self._tell("fault", "clock_of_process", "every process", seconds=seconds)
        self._skew(seconds)
        await asyncio.sleep(chance.uniform(0.5, 3.0))
        self._skew(0)
        self._tell("heal", "clock_of_process", "every process")
        return "every process"

    def _in_proxy(self, how: str) -> Fault:
        async def fault(chance: random.Random) -> str | None:
            links = self._topology.choose(chance, chance.choice([0.05, 0.3, 1.0]))
            if not links:
                return None
            self._tell("fault", f"proxy_{how}", f"{len(links)} connections")
            for link in links:
                _hurt(link, how, chance)
            await asyncio.sleep(chance.choice([0.3, 1.0, 4.0]))
            for link in links:
                if how == "half_open" and chance.random() < 0.5:
                    link.abort()
                link.heal()
            self._tell("heal", f"proxy_{how}", f"{len(links)} connections")
            return how

        return fault

    async def _partition(self, chance: random.Random) -> str | None:
        """The cable of a worker or a watchdog is pulled for a while, at times for longer than a lease."""
        free = sorted(set(self._cables) - self._pulled)
        if not free:
            return None
        name = chance.choice(free)
        self._pulled.add(name)
        length_s = chance.choice([0.5, 2.0, 1.6, 2.4]) * float(SETTINGS["lease_s"])
        self._tell("fault", "partition", name, seconds=length_s)
        self._cables[name].pull()
        await asyncio.sleep(length_s)
        self._cables[name].plug()
        self._pulled.discard(name)
        self._tell("heal", "partition", name)
        return name

    async def _poison(self, chance: random.Random) -> str | None:
        shard = chance.randrange(self._plan.shards)
        server = self._topology.holder(b"{%d}" % shard)
        async with server.admin() as admin:
            self._tell("fault", "poison", f"shard {shard}")
            await forged.poison(admin, chance, shard)
            self._tell("heal", "poison", f"shard {shard}")
        return "a queue"

    async def _forged_notice(self, chance: random.Random) -> str | None:
        async with chance.choice(self._topology.servers).admin() as admin:
            self._tell("fault", "forged_notice", "every channel")
            await forged.notices(admin, chance)
            self._tell("heal", "forged_notice", "every channel")
        return "every channel"


def _freeze_s(chance: random.Random) -> float:
    """Mostly short, at times past the lease."""
    lease_s = float(SETTINGS["lease_s"])
    return chance.choice([0.1, 0.4, 1.0, 1.6 * lease_s]) if chance.random() < 0.8 else 2.2 * lease_s


def _hurt(link: Link, how: str, chance: random.Random) -> None:
    if how == "delay":
        link.delay_s = chance.choice([0.02, 0.2])
    elif how == "half_open":
        link.passing.clear()
    else:
        link.asked = False
        setattr(link, how, True)
