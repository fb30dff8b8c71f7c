"""
Actors whose own steps keep their order, and every way in which they may come between each other.

A step is named as its method is; those of a watchdog have its number behind them, as in `see_1`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tests.orders.crew import Crew
from tests.orders.kennel import Kennel
from tests.orders.openings import Opening

Steps = tuple[str, ...]


def interleaved(*actors: Steps) -> Iterator[Steps]:
    """Every order of all their steps in which those of each stay as they are."""
    if not any(actors):
        yield ()
    for k, steps in enumerate(actors):
        if steps:
            for rest in interleaved(*actors[:k], steps[1:], *actors[k + 1 :]):
                yield (steps[0], *rest)


async def take(crew: Crew, name: str) -> None:
    if name == "cancel":
        await crew.step(Crew.cancel)
    elif name[-1].isdigit():
        await getattr(crew, name[:-2])(name[-1])
    else:
        await getattr(crew, name)()


async def try_all_orders(
    url: str,
    opening: Opening,
    races: Iterable[tuple[Steps, ...]],
    *,
    begin: Steps = (),
    makes_sense: Callable[[Steps], bool] = lambda order: True,
) -> None:
    """Of each race, which is made of actors; `begin`: what has happened before."""
    async with Kennel(url) as bench:
        for order in dict.fromkeys(order for actors in races for order in interleaved(*actors)):
            if not makes_sense(order):
                continue
            crew = await opening(bench)
            try:
                for name in (*begin, *order):
                    await take(crew, name)
                await crew.end()
            except AssertionError as error:
                raise AssertionError(f"in the order {', '.join((*begin, *order))}: {error}") from error
