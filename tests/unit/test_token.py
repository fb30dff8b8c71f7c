"""The token of an attempt: tripped once and for all, by the first cause, until one of a higher rank comes."""

from __future__ import annotations

import pytest

from busq.errors import Cancelled
from busq.protocol.cancel import Cause, TripFacts
from busq.worker.token import CancelToken

CANCELS = [cause for cause in Cause if cause.cancels]
STOPS = [cause for cause in Cause if not cause.cancels]


def tripped(*causes: Cause) -> CancelToken:
    token = CancelToken()
    for cause in causes:
        token.trip(TripFacts(cause=cause, reason=f"because of {cause}"))
    return token


def shown(token: CancelToken) -> Cause | None:
    return token.facts and token.facts.cause


def test_timeout_lost_lease_and_shutdown_stop_an_attempt_and_cancel_nothing() -> None:
    assert STOPS == [Cause.TIMEOUT, Cause.LEASE_LOST, Cause.SHUTDOWN]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("cancel", CANCELS)
def test_a_cancel_outranks_what_only_stops_the_attempt(cancel: Cause, stop: Cause) -> None:
    assert shown(tripped(stop, cancel)) is cancel
    assert shown(tripped(cancel, stop)) is cancel


@pytest.mark.parametrize("second", CANCELS)
@pytest.mark.parametrize("first", CANCELS)
def test_of_two_cancels_the_first_stands(first: Cause, second: Cause) -> None:
    assert shown(tripped(first, second)) is first


@pytest.mark.parametrize("other", [Cause.TIMEOUT, Cause.SHUTDOWN])
def test_a_lost_lease_outranks_a_timeout_and_a_shutdown_and_of_those_the_first_stands(other: Cause) -> None:
    assert shown(tripped(other, Cause.LEASE_LOST)) is Cause.LEASE_LOST
    assert shown(tripped(Cause.LEASE_LOST, other)) is Cause.LEASE_LOST
    assert shown(tripped(Cause.TIMEOUT, Cause.SHUTDOWN)) is Cause.TIMEOUT
    assert shown(tripped(Cause.SHUTDOWN, Cause.TIMEOUT)) is Cause.SHUTDOWN


def test_a_check_says_so_every_time_with_the_cause_of_the_moment() -> None:
    token = tripped(Cause.SHUTDOWN)
    for cause in (Cause.SHUTDOWN, Cause.SHUTDOWN, Cause.USER, Cause.USER):
        token.trip(TripFacts(cause=cause, reason="why"))
        with pytest.raises(Cancelled) as raised:
            token.check()
        assert raised.value.cause is cause
    for _ in range(2):  # also when nobody says it again, and whatever became of the exception
        with pytest.raises(Cancelled):
            token.check()


def test_what_was_learned_of_a_shutdown_is_not_learned_of_the_cancel_after_it() -> None:
    token = tripped(Cause.SHUTDOWN)
    assert not token.observed
    token.observe()
    assert (token.observed, token.observed_cause) == (True, Cause.SHUTDOWN)
    token.trip(TripFacts(cause=Cause.USER))
    assert (token.observed, token.observed_at, token.observed_cause) == (False, None, None)
    token.observe()
    assert (token.observed, token.observed_cause) == (True, Cause.USER)


def test_the_same_cause_heard_again_leaves_what_was_learned() -> None:
    token = tripped(Cause.USER)
    token.observe()
    at = token.observed_at
    assert not token.trip(TripFacts(cause=Cause.USER))
    token.observe()
    assert token.observed_at == at


def test_another_process_can_have_learned_only_of_what_it_was_told() -> None:
    token = tripped(Cause.SHUTDOWN, Cause.USER)
    token.observe(Cause.SHUTDOWN)
    assert not token.observed
    token.observe(Cause.USER)
    assert token.observed


def test_nobody_learns_of_anything_before_the_trip() -> None:
    token = CancelToken()
    assert token.observe() is None
    token.check()
    token.trip(TripFacts(cause=Cause.USER))
    assert not token.observed
