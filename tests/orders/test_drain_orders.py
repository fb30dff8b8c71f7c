"""
Every order of a drain as a whole with one and two others, tried one by one.

The wish is written down, the worker reads it on its beat, gives back what it has not begun, ends or hands back what it
runs, and leaves. Those steps keep their order; whatever the others do comes before, between and after them. A drain is
no cancel: it costs the job nothing, and a cancel meanwhile is honoured.
"""

from __future__ import annotations

import pytest

from tests.orders.crew import Opening, read, running, unheard
from tests.orders.interleaving import OTHERS, try_all_orders

DRAINS: dict[str, tuple[Opening, tuple[str, ...]]] = {
    "of a worker that has read a job": (read, ("ask", "beat_a", "give_back_a", "leave_a")),
    "of a worker that may take a job": (read, ("ask", "take_a", "beat_a", "hand_back_a", "leave_a")),
    "of a worker whose job ends": (running, ("ask", "beat_a", "end_a", "leave_a")),
    "of a worker whose job fails": (running, ("ask", "beat_a", "fail_a", "leave_a")),
    "of a worker whose job goes on": (running, ("ask", "beat_a", "hand_back_a", "leave_a")),
    "of a worker that knows nothing of its job": (unheard, ("ask", "beat_a", "give_back_a", "leave_a")),
}


@pytest.mark.parametrize("drain", DRAINS)
async def test_a_drain_costs_a_job_nothing_in_every_order_with_another(redis_url: str, drain: str) -> None:
    opening, steps = DRAINS[drain]
    await try_all_orders(redis_url, opening, *((steps, others) for others in OTHERS.values()))


@pytest.mark.parametrize("pair", [("cancel", "worker"), ("cancel", "watchdog"), ("worker", "watchdog")])
@pytest.mark.parametrize("drain", DRAINS)
async def test_a_drain_costs_a_job_nothing_in_every_order_with_two_others(
    redis_url: str, drain: str, pair: tuple[str, str]
) -> None:
    opening, steps = DRAINS[drain]
    await try_all_orders(redis_url, opening, (steps, OTHERS[pair[0]], OTHERS[pair[1]]))
