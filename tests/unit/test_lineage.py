"""What two looks at a server's history say of it."""

from __future__ import annotations

import msgspec
import pytest

from busq.protocol.lineage import Change, Glimpse, Shift, judge

BEFORE = Glimpse(birth="b", run_id="r", replid="h", offset=1000)


def now(**other: object) -> Glimpse:
    return msgspec.structs.replace(BEFORE, **other)


@pytest.mark.parametrize(
    ("glimpse", "shift"),
    [
        (now(offset=2000), None),
        (now(birth="other"), Shift(change=Change.OTHER_DATA)),
        (now(birth="other", run_id="r2", replid="h2", past_replid="h"), Shift(change=Change.OTHER_DATA)),
        (now(run_id="r2", replid="h2"), Shift(change=Change.RESTARTED)),
        (now(replid="h2"), None),
        (now(replid="h2", is_replica=True), Shift(change=Change.RESYNCED)),
        (now(replid="h2", past_replid="other"), Shift(change=Change.RESYNCED)),
        (now(run_id="r2", offset=1000), Shift(change=Change.PROMOTED, lost_bytes=0)),
        (now(run_id="r2", offset=900), Shift(change=Change.PROMOTED, lost_bytes=100)),
        (
            now(run_id="r2", replid="h2", past_replid="h", past_offset=1200),
            Shift(change=Change.PROMOTED, lost_bytes=0),
        ),
        (
            now(run_id="r2", replid="h2", past_replid="h", past_offset=400),
            Shift(change=Change.PROMOTED, lost_bytes=600),
        ),
        (now(replid="h2", past_replid="h", past_offset=1000), Shift(change=Change.PROMOTED, lost_bytes=0)),
        (now(run_id="", replid=""), None),
        (now(run_id="", replid="", birth="other"), Shift(change=Change.OTHER_DATA)),
        (now(birth=""), None),
    ],
)
def test_what_became_of_a_history(glimpse: Glimpse, shift: Shift | None) -> None:
    assert judge(BEFORE, glimpse) == shift


def test_a_server_that_says_nothing_is_judged_by_the_birth_mark_alone() -> None:
    silent = Glimpse(birth="b")
    assert judge(silent, silent) is None
    assert judge(silent, Glimpse(birth="c")) == Shift(change=Change.OTHER_DATA)
    assert judge(silent, BEFORE) is None, "it may be asked from now on"


@pytest.mark.parametrize(
    ("shift", "lost"),
    [
        (Shift(change=Change.OTHER_DATA), True),
        (Shift(change=Change.RESYNCED), True),
        (Shift(change=Change.PROMOTED, lost_bytes=1), True),
        (Shift(change=Change.PROMOTED, lost_bytes=0), False),
        (Shift(change=Change.RESTARTED), False),
    ],
)
def test_a_change_of_history_says_whether_writes_are_gone_for_certain(shift: Shift, lost: bool) -> None:
    assert shift.lost is lost
