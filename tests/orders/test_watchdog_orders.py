"""
Every order of two watchdogs beside each other and one more, tried one by one.

Both see what is to be done for one and the same job, each at its own moment, and do it after the other has, or has not.
The first to look is always the first of the two: they are alike.
"""

from __future__ import annotations

import pytest

from tests.orders.interleaving import Steps, try_all_orders
from tests.orders.openings import Opening, read, retried, running, stopping, unheard, unread

OPENINGS: dict[str, Opening] = {
    "running": running, "unheard": unheard, "stopping": stopping, "read": read, "unread": unread, "retried": retried,
}  # fmt: skip
THIRDS: tuple[Steps, ...] = (("cancel",), ("beat_a",), ("end_a",), ("fail_a",), ("take_a",), ("take_b",))
FEW: tuple[Steps, ...] = (("cancel",), ("beat_a",), ("take_a",))
FIRST, SECOND = ("see_1", "act_1"), ("see_2", "act_2")


@pytest.mark.parametrize("opening", OPENINGS)
async def test_two_watchdogs_do_in_every_order_what_one_does(redis_url: str, opening: str) -> None:
    races = [(FIRST, SECOND), *((FIRST, SECOND, third) for third in THIRDS)]
    await try_all_orders(redis_url, OPENINGS[opening], races, begin=("lapse",), makes_sense=_first_looks_first)


@pytest.mark.parametrize("opening", ["running", "unread"])
async def test_two_watchdogs_that_forget_a_worker_lose_nothing_in_any_order(redis_url: str, opening: str) -> None:
    both = ((*FIRST, "forget_1"), (*SECOND, "forget_2"))
    races = [both, *((*both, third) for third in FEW)]
    await try_all_orders(redis_url, OPENINGS[opening], races, begin=("lapse",), makes_sense=_first_looks_first)


def _first_looks_first(order: Steps) -> bool:
    return order.index("see_1") < order.index("see_2")
