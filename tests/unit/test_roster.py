"""Whether a process is known to be gone: only its own machine can say so, and a number alone says nothing."""

from __future__ import annotations

import os

import msgspec

from busq.store.roster import process_card


def test_a_live_process_is_not_gone() -> None:
    assert not process_card("worker").is_known_gone()


def test_a_process_whose_number_was_given_to_another_one_is_gone() -> None:
    """The card of an earlier life of this very number."""
    card = msgspec.structs.replace(process_card("worker"), born="1")
    assert card.pid == os.getpid()
    assert card.is_known_gone()


def test_a_process_of_another_machine_is_never_known_to_be_gone() -> None:
    card = process_card("worker")
    assert not msgspec.structs.replace(card, realm="elsewhere", born="1").is_known_gone()
    assert not msgspec.structs.replace(card, realm="", born="1").is_known_gone()


def test_a_process_that_cannot_be_told_from_others_is_never_known_to_be_gone() -> None:
    assert not msgspec.structs.replace(process_card("worker"), born="").is_known_gone()
