"""
What a walk chooses from.

Which jobs, entries and attempts a step is about is picked by their place, the newest first: what most happens to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st

from busq.protocol.cancel import Cause
from busq.protocol.scope import Filter
from tests.model.working import HOOKED, STOPPED_HOW

T = TypeVar("T")

PICK = st.integers(0, 11)
FEW = st.lists(PICK, min_size=1, max_size=3)
GROUPS = st.sampled_from(["g1", "g2", None])
KINDS = st.sampled_from(["k1", HOOKED])
POLICIES = st.sampled_from(["cancel", "cancel", "wait", "abandon"])
AFTER_A_LOST_START = ("sent again", "found", "given back", "left as it is")
PARENTS = st.integers(0, 11)  # a place that is not there: none
READ = st.tuples(st.integers(0, 3), st.integers(0, 3))
SECONDS = st.sampled_from([0.5, 3, 8, 20, 700])
SHARDS = (1, 2, 3)  # of a bus
SHARD = st.integers(0, 2)
OCCASIONS = st.sampled_from(["", "", "always", "attempted"])
STOPPED = st.sampled_from(list(STOPPED_HOW))
CAUSES = st.sampled_from([Cause.USER, Cause.SCOPE])
FOR_SO_LONG = st.sampled_from([5, 5, 30, 2000])
DELAYS = st.sampled_from([0, 0, 0, 4000])
MOMENTS = st.sampled_from([0, 0, 0, 6000, 12000])
WHERES = st.sampled_from(
    [
        "state == 'queued'",
        "state in ['running', 'waiting']",
        "state != 'running'",
        "attempt >= 1",
        "attempt == 0",
        "failures > 0 or losses > 0",
        "losses == 0 and failures == 0 and attempt > 0",
        "age > 5",
        "args.n >= 2",
        "parent == null",
        "parent != null and not group == 'g1'",
        "kind $= '/finalize'",
    ]
)


FILTERS = (
    st.builds(Filter, group=st.sampled_from(["g1", "g2"]), where=WHERES | st.none())
    | st.builds(Filter, where=WHERES)
    | st.builds(Filter, worker=st.sampled_from(["a", "b"]))
    | st.builds(Filter, kind=st.just(HOOKED))
    | st.just(Filter(everything=True))
)


def one_of(items: Sequence[T], pick: int) -> T:
    """The newest few are what most happens to."""
    return items[-1 - pick % len(items)]


def some_of(items: Sequence[T], picks: Sequence[int]) -> list[T]:
    return list(dict.fromkeys(one_of(items, pick) for pick in picks))
