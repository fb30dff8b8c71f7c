"""Where a race over one job begins. Both workers are on the roster, and everybody knows what has happened so far."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.orders.crew import Crew
from tests.orders.kennel import Kennel
from tests.orders.race import RETRIES, Race
from tests.store.bench import Held

Opening = Callable[[Kennel], Awaitable[Crew]]


async def unread(bench: Kennel) -> Crew:
    """Nobody has read the entry, and both workers have beaten."""
    for store in (bench.a, bench.b):
        await bench.beat(store)
    return Crew(bench, Held(await bench.enqueue(on_cancel="always")))


async def read(bench: Kennel) -> Crew:
    """Worker `a` has read the entry, and has not begun."""
    crew = await unread(bench)
    crew.a, crew.holds = await bench.take(crew.jid), True
    return crew


async def running(bench: Kennel) -> Crew:
    crew = await read(bench)
    await crew.take_a()
    return crew


async def unheard(bench: Kennel) -> Crew:
    """Worker `a` has begun, and its answer was lost: it does not know."""
    crew = await read(bench)
    lost = Held(crew.jid, crew.a.entry)
    assert (await bench.begin(lost, retries=RETRIES)).word == "started"
    crew.alive[lost.token], crew.holds = "a", False
    crew.attempts.append(lost.attempt)
    return crew


async def stopping(bench: Kennel) -> Crew:
    """It runs, and was asked to stop."""
    crew = await running(bench)
    await crew.step(Race.cancel)
    return crew


async def retried(bench: Kennel) -> Crew:
    """It has failed, and waits for its next attempt."""
    crew = await running(bench)
    await crew.fail_a()
    return crew
