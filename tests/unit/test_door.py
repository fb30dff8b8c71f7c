"""A child's door: each ticket goes to the child or back to the worker, never to both and never to nobody."""

from __future__ import annotations

import threading

from busq.worker.executors.door import TICKET, Door


def taken(door: Door) -> int:
    """What the child takes next."""
    return int.from_bytes(door.far_end.recv(TICKET), "big")


def test_tickets_are_taken_in_order_and_the_rest_can_be_taken_back() -> None:
    door = Door()
    door.let_in([1, 2, 70_000])
    door.let_in([70_001])
    assert taken(door) == 1
    assert door.take_back() == {2, 70_000, 70_001}
    assert door.take_back() == set()
    door.let_in([70_001])
    assert taken(door) == 70_001
    door.close()


def test_a_shut_door_ends_when_all_have_been_let_in() -> None:
    door = Door()
    door.let_in([1])
    door.shut()
    assert (taken(door), door.far_end.recv(TICKET)) == (1, b"")
    door.close()


def test_no_ticket_is_lost_or_taken_twice_while_both_sides_take() -> None:
    door, begun, back = Door(), [], []

    def child() -> None:
        while ticket := door.far_end.recv(TICKET):
            begun.append(int.from_bytes(ticket, "big"))

    thread = threading.Thread(target=child)
    thread.start()
    for first in range(0, 20_000, 10):
        door.let_in(range(first, first + 10))
        back += sorted(door.take_back())
    door.shut()
    thread.join(10)
    door.close()
    assert sorted(begun + back) == list(range(20_000))
    assert begun == sorted(begun)
