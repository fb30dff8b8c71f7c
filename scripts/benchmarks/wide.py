"""
What the benchmarks of wide cancels share: many jobs of chosen groups, and what something costs the server.

A machine that others use makes wall time say little; the server's own CPU time is disturbed less and is told beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis

from benchmarks.processes import Place

AT_ONCE = 5000  # specs made and sent in one go: a million of them at once would fill the memory


async def fill(place: Place, kinds: Iterator[tuple[str, str]]) -> None:
    """A job of each (kind, group), in turn."""
    async with place.bus() as bus:
        options: dict[str, Any] = {}
        specs = []
        for kind, group in kinds:
            if group not in options:
                options[group] = bus.options(group=group)
            specs.append(options[group].spec(kind))
            if len(specs) == AT_ONCE:
                await bus.enqueue_many(specs)
                specs.clear()
        if specs:
            await bus.enqueue_many(specs)


class Cpu:
    """Microseconds of CPU time of the server's main thread, from `with` to its end."""

    us = 0.0


@contextmanager
def server_cpu(place: Place) -> Iterator[Cpu]:
    spent = Cpu()
    with Redis.from_url(place.url) as redis:
        before = _cpu_us(redis)
        yield spent
        spent.us = _cpu_us(redis) - before


def _cpu_us(redis: Redis) -> float:
    told = redis.info("cpu")
    seconds: float = told["used_cpu_user_main_thread"] + told["used_cpu_sys_main_thread"]
    return seconds * 1e6
