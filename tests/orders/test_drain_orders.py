"""
Every order of a drain as a whole with one and two others, tried one by one.

The wish is written down, the worker reads it on its beat, gives back what it has not begun, ends or hands back what it
runs, and leaves. Those steps keep their order; whatever the others do comes before, between and after them. A drain is
no cancel: it costs the job nothing, and a cancel meanwhile is honoured.
"""

from __future__ import annotations

import pytest

from tests.orders.interleaving import Steps, try_all_orders
from tests.orders.openings import Opening, read, running, unheard

DRAINS: dict[str, tuple[Opening, Steps]] = {
    "of a worker that has read a job": (read, ("ask", "beat_a", "give_back_a", "leave_a")),
    "of a worker that takes another job": (read, ("ask", "take_a", "beat_a", "hand_back_a", "leave_a")),
    "of a worker whose job ends": (running, ("ask", "beat_a", "end_a", "leave_a")),
    "of a worker whose job fails": (running, ("ask", "beat_a", "fail_a", "leave_a")),
    "of a worker whose job goes on": (running, ("ask", "beat_a", "hand_back_a", "leave_a")),
    "of a worker that knows nothing of its job": (unheard, ("ask", "beat_a", "give_back_a", "leave_a")),
}
OTHERS: tuple[Steps, ...] = (
    ("cancel",),
    ("take_b", "end_b"),
    ("beat_a", "beat_a"),
    ("lapse", "see_1", "act_1", "forget_1"),
)
PAIRS: dict[str, tuple[Steps, ...]] = {
    "a client and a worker": (("cancel",), ("take_b", "end_b")),
    "a client and a watchdog": (("cancel",), ("see_lapsed_1", "act_1")),
    "a worker and a watchdog": (("take_b",), ("see_lapsed_1", "act_1")),
}
IN_PAIRS = [drain for drain in DRAINS if not drain.endswith(("takes another job", "fails"))]


@pytest.mark.parametrize("drain", DRAINS)
async def test_a_drain_costs_a_job_nothing_in_every_order_with_another(redis_url: str, drain: str) -> None:
    opening, steps = DRAINS[drain]
    await try_all_orders(redis_url, opening, [(steps, other) for other in OTHERS])


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("drain", IN_PAIRS)
async def test_a_drain_costs_a_job_nothing_in_every_order_with_two_others(
    redis_url: str, drain: str, pair: str
) -> None:
    opening, steps = DRAINS[drain]
    await try_all_orders(redis_url, opening, [(steps, *PAIRS[pair])])
