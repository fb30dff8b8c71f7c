"""How many short jobs are started ahead: rules and numbers, no process and no clock."""

from __future__ import annotations

import pytest

from busq.callables import Pool
from busq.handlers import Handler, HandlerOptions
from busq.worker.pace import MOST_AHEAD, RECENT, Pace
from busq.worker.slots import Slots


def handler(kind: str, pool: Pool = Pool.PROCESS) -> Handler:
    def function() -> None: ...

    return Handler(function, kind=kind, options=HandlerOptions(pool=pool))


def paced(**took_s: float) -> Pace:
    pace = Pace()
    pace.children = 2
    for kind, seconds in took_s.items():
        for _ in range(RECENT):
            pace.heard(kind, seconds)
    return pace


def slots(pace: Pace) -> Slots:
    return Slots({Pool.COROUTINE: 100, Pool.THREAD: 2, Pool.PROCESS: 2}, pace)


# The pace ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("took_s", "ahead"), [(0.00001, MOST_AHEAD), (0.0, MOST_AHEAD), (0.001, 5), (0.004, 1), (0.0051, 0), (2.0, 0)]
)
def test_what_is_started_ahead_adds_up_to_five_milliseconds(took_s: float, ahead: int) -> None:
    assert paced(kind=took_s).ahead("kind") == ahead


def test_a_kind_that_has_never_run_is_not_started_ahead() -> None:
    assert Pace().ahead("unknown") == 0


def test_a_long_run_counts_as_much_as_it_took_and_fades() -> None:
    pace = paced(kind=0.0001)
    pace.heard("kind", 1.0)
    assert pace.ahead("kind") == 0
    for _ in range(RECENT * 10):
        pace.heard("kind", 0.0001)
    assert pace.ahead("kind") > 40


# The room ------------------------------------------------------------------------------------------------


def room(of: Slots, *kinds: str) -> tuple[int, int]:
    return of.room((), kinds)


def test_an_unknown_kind_has_room_for_as_many_jobs_as_there_are_children() -> None:
    some = slots(paced(short=0.001))
    assert room(some, "unknown") == (2, 2)
    assert [some.take(handler("unknown")) for _ in range(3)] == [True, True, False]
    assert room(some, "unknown") == (0, 0)
    some.give_back(handler("unknown"))
    assert room(some, "unknown") == (1, 1)
    some.give_back(handler("unknown"))
    assert (room(some, "unknown"), some.used) == ((2, 2), 0)


def test_a_short_kind_has_room_for_some_more_before_each_child() -> None:
    some = slots(paced(short=0.001))
    assert room(some, "short") == (12, 12)
    for _ in range(12):
        assert some.take(handler("short"))
    assert room(some, "short") == (0, 0)


def test_nothing_is_started_ahead_of_children_that_are_not_ready() -> None:
    pace = paced(short=0.001)
    pace.children = 0
    assert room(slots(pace), "short") == (2, 2)


def test_nothing_is_started_ahead_of_a_child_that_is_held_up() -> None:
    pace = paced(short=0.001)
    pace.held_up = 1
    assert room(slots(pace), "short") == (7, 7)


def test_a_child_that_a_long_job_has_to_itself_has_nothing_waiting() -> None:
    some = slots(paced(short=0.001))
    assert some.take(handler("long"))
    assert room(some, "short") == (6, 6)
    assert some.take(handler("long"))
    assert room(some, "short") == (0, 0)


def test_short_jobs_that_wait_keep_no_long_job_out() -> None:
    some = slots(paced(short=0.001))
    for _ in range(12):
        some.take(handler("short"))
    assert [some.take(handler("long")) for _ in range(3)] == [True, True, False]


def test_what_was_read_when_there_was_more_room_is_started_all_the_same() -> None:
    pace = paced(short=0.001)
    some = slots(pace)
    for _ in range(RECENT * 5):
        pace.heard("short", 0.002)
    assert room(some, "short")[0] < 12
    assert all(some.take(handler("short")) for _ in range(10))


def test_a_queue_of_short_and_long_kinds_is_certain_of_the_children_and_hopes_for_more() -> None:
    some = slots(paced(short=0.001))
    assert room(some, "short", "long") == (2, 12)
    for _ in range(12):
        some.take(handler("short"))
    assert room(some, "short", "long") == (0, 0), "where a long one would fit, most entries would not"


def test_the_other_pools_have_room_for_what_they_have_slots() -> None:
    some = slots(paced())
    assert some.room({Pool.COROUTINE, Pool.THREAD}, ()) == (2, 100)
    assert [some.take(handler("t", Pool.THREAD)) for _ in range(3)] == [True, True, False]
    assert some.room({Pool.COROUTINE, Pool.THREAD}, ()) == (0, 100)
    assert some.used == 2
