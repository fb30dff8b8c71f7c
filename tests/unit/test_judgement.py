"""When a worker counts as lost, and how long a failed job waits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busq.protocol.judgement import (
    REFUSAL_FIRST_S,
    REFUSAL_MOST_S,
    REFUSALS,
    SILENT_BEATS,
    Sighting,
    is_lost,
    retry_delay_s,
)

NOW_MS = 1_700_000_000_000.0


@pytest.mark.parametrize(
    ("lease_left_ms", "silent_s", "lost"),
    [
        (1, 1000, False),
        (0, SILENT_BEATS, True),
        (-1, SILENT_BEATS, True),
        (-1, SILENT_BEATS - 0.01, False),
        (-3_600_000, 0, False),
    ],
    ids=["a good lease", "just over", "over", "over, but seen a moment ago", "the server's clock was moved"],
)
def test_a_worker_is_lost_when_its_lease_is_over_and_it_was_silent(
    lease_left_ms: float, silent_s: float, lost: bool
) -> None:
    sighting = Sighting(NOW_MS + lease_left_ms, since=100.0)
    assert is_lost(sighting, now=100.0 + silent_s, server_now_ms=NOW_MS, beat_s=1.0) is lost


def test_silence_is_measured_in_beats() -> None:
    sighting = Sighting(NOW_MS - 1, since=0.0)
    assert is_lost(sighting, now=0.31, server_now_ms=NOW_MS, beat_s=0.1)
    assert not is_lost(sighting, now=0.31, server_now_ms=NOW_MS, beat_s=0.2)


@given(failures=st.integers(1, 10**6), first=st.floats(0.001, 100), factor=st.floats(1, 1000), seed=st.integers())
def test_a_delay_stays_between_its_step_and_half_as_much_again_and_within_its_bounds(
    failures: int, first: float, factor: float, seed: int
) -> None:
    most = first * factor
    delay = retry_delay_s(failures, backoff_s=first, backoff_max_s=most, rng=random.Random(seed))
    step = min(most, first * 2.0 ** min(failures - 1, 60))
    assert min(step, most / 1.5) * (1 - 1e-9) <= delay <= step * 1.5 * (1 + 1e-9)
    assert first <= delay <= most


def test_delays_double_up_to_the_most() -> None:
    class Top(random.Random):
        def random(self) -> float:
            return 1.0

    delays = [retry_delay_s(n, backoff_s=1, backoff_max_s=10, rng=Top()) for n in range(1, 7)]
    assert delays == [1.5, 3, 6, 10, 10, 10]


def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    rng = random.Random(1)
    assert len({retry_delay_s(3, backoff_s=1, backoff_max_s=300, rng=rng) for _ in range(100)}) == 100


def test_ten_refusals_leave_time_for_a_rollout() -> None:
    assert REFUSALS == 10
    assert 180 <= sum(min(REFUSAL_MOST_S, REFUSAL_FIRST_S * 2**n) for n in range(REFUSALS)) <= 600
