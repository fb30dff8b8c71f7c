"""The table of transitions, as data: complete, closed, and it says what the contract promises."""

from __future__ import annotations

import pytest

from busq.protocol.states import TERMINAL, TRANSITIONS, State, Verb, allowed, is_terminal, moves

S, V = State, Verb
LIVE = [state for state in State if not is_terminal(state)]


def test_the_words_are_those_of_the_contract() -> None:
    assert [str(state) for state in State] == [
        "scheduled", "queued", "running", "waiting", "cancelling", "succeeded", "failed", "cancelled",
    ]  # fmt: skip
    assert {S.SUCCEEDED, S.FAILED, S.CANCELLED} == TERMINAL


@pytest.mark.parametrize("verb", Verb)
def test_every_verb_has_an_answer_for_every_state(verb: Verb) -> None:
    assert set(TRANSITIONS[verb]) == {None, *State}
    for answers in TRANSITIONS[verb].values():
        assert answers
        assert all(answers.values())


def test_no_move_leaves_a_terminal_state() -> None:
    assert not [move for move in moves() if move[0] in TERMINAL]


def test_only_enqueue_makes_a_record() -> None:
    assert {verb for before, verb, _ in moves() if before is None} == {V.ENQUEUE}


def test_a_job_that_is_cancelling_only_ever_ends_or_waits_for_its_children() -> None:
    """The latter when its handler returned in time, as it may; see `late_success`."""
    assert {after for before, _, after in moves() if before is S.CANCELLING} <= TERMINAL | {S.WAITING}
    assert {verb for before, verb, after in moves() if before is S.CANCELLING and after is S.SUCCEEDED} == {V.FINISH}
    assert not [move for move in moves() if move[0] is S.CANCELLING and move[2] is S.FAILED]


def test_only_start_makes_a_job_run_and_only_from_the_queue() -> None:
    assert [(before, verb) for before, verb, after in moves() if after is S.RUNNING] == [(S.QUEUED, V.START)]


@pytest.mark.parametrize("state", LIVE)
def test_every_live_state_can_be_cancelled(state: State) -> None:
    (reached,) = {to for states in TRANSITIONS[V.CANCEL][state].values() for to in states}
    assert reached in (S.CANCELLED, S.CANCELLING)


@pytest.mark.parametrize("state", State)
def test_every_state_but_waiting_can_be_reached(state: State) -> None:
    reached: set[State | None] = {None}
    while more := {after for before, _, after in moves() if before in reached} - reached:
        reached |= more
    # `waiting` is entered by the verb that settles a parent; it has no row yet.
    assert state in reached or state is S.WAITING


@pytest.mark.parametrize("verb", [V.RENEW, V.NOTE])
def test_a_beat_and_a_note_move_nothing(verb: Verb) -> None:
    assert not [move for move in moves() if move[1] is verb]


def test_allowed_asks_the_table() -> None:
    assert allowed(V.START, S.QUEUED, "started", S.RUNNING)
    assert not allowed(V.START, S.QUEUED, "started", S.QUEUED)
    assert not allowed(V.START, S.CANCELLED, "started", S.RUNNING)
    assert not allowed(V.START, S.QUEUED, "no such word", S.QUEUED)
    assert allowed(V.CANCEL, None, "not_found", None)
