"""
Every order of a few racing steps of one job, tried one by one.

Two workers, a client and a watchdog (race.py). Worker `a` holds the job's entry from the beginning.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest

from tests.orders.race import EXPIRES_S, Act, Race
from tests.store.bench import Bench

MOMENTS: Mapping[str, Mapping[str, int]] = {
    "expires": {"expires": EXPIRES_S * 1000},
    "deadline": {"due_by": EXPIRES_S * 1000},
    "both": {"expires": EXPIRES_S * 1000, "due_by": 2 * EXPIRES_S * 1000},
}
STEPS: Mapping[str, Act] = {
    name: getattr(Race, name)
    for name in (
        "cancel", "start_a", "start_b", "finish_a", "finish_b", "retry_a", "release_a", "reclaim", "finalize",
        "promote",
    )
}  # fmt: skip


async def _try(bench: Bench, order: tuple[str, ...], moments: Mapping[str, int]) -> None:
    race = Race(bench, await bench.take(await bench.enqueue(on_cancel="always", **moments)))
    for name in order:
        await race.step(ALL_STEPS[name])
    await race.end()


OF_MOMENTS = {"expire": Race.expire}
OF_LOST_REPLIES = {"adopt_a": Race.adopt_a, "give_back_a": Race.give_back_a}
ALL_STEPS = {**STEPS, **OF_MOMENTS, **OF_LOST_REPLIES}
LOST = ("start_a", "adopt_a", "give_back_a", "cancel", "expire", "reclaim", "finalize", "start_b", "finish_b")
FEW = ("start_a", "start_b", "cancel", "finish_a", "retry_a", "reclaim", "promote", "expire")


@pytest.mark.parametrize("first", STEPS)
async def test_the_promises_hold_in_every_order_of_three_steps(redis_url: str, first: str) -> None:
    await _try_all(redis_url, (first,), 2, list(STEPS))


@pytest.mark.parametrize("second", [name for name in STEPS if name != "start_a"])
async def test_the_promises_hold_in_every_order_of_three_steps_after_a_start(redis_url: str, second: str) -> None:
    await _try_all(redis_url, ("start_a", second), 2, list(STEPS))


@pytest.mark.parametrize("first", FEW)
@pytest.mark.parametrize("moments", MOMENTS)
async def test_the_promises_hold_in_every_order_for_a_job_with_moments(
    redis_url: str, moments: str, first: str
) -> None:
    await _try_all(redis_url, (first,), 3, FEW, MOMENTS[moments])


@pytest.mark.parametrize("second", [name for name in LOST if name != "start_a"])
async def test_the_promises_hold_in_every_order_when_the_answer_to_a_start_was_lost(
    redis_url: str, second: str
) -> None:
    await _try_all(redis_url, ("start_a", second), 2, LOST, MOMENTS["deadline"])


async def _try_all(
    url: str, begin: tuple[str, ...], more: int, steps: Sequence[str], moments: Mapping[str, int] | None = None
) -> None:
    # `start_a` may come again: the second attempt of the same worker is a race of its own.
    others = [name for name in steps if name not in begin or name == "start_a"]
    async with Bench(url) as bench:
        for rest in itertools.permutations(others, more):
            try:
                await _try(bench, (*begin, *rest), moments or {})
            except AssertionError as error:
                raise AssertionError(f"in the order {', '.join((*begin, *rest))}: {error}") from error
