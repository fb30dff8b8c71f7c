"""What a job says of its parent and its key before anything is sent, and how the store's forms carry it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import busq
from busq.errors import BadJid, UsageError
from busq.protocol.cancel import Cause, Ended
from busq.protocol.hook import read_clean_up
from busq.protocol.jids import place, place_of_key
from busq.protocol.states import State
from busq.protocol.tree import read_finished
from busq.store import forms
from busq.store.forms import KindTerms, NewJob, Settlement

PARENT = "0190b6a1c5d27e3f8a0c4d5e6f708192.3fa1"


def spec(**options: Any) -> NewJob:
    return busq.Bus().options(**options).spec("k").job


# What a job says -------------------------------------------------------------------------------------------


def test_a_child_names_its_parent_and_what_its_cancel_does_where_that_is_not_the_usual() -> None:
    assert spec(parent=PARENT).fields == ("parent", PARENT)
    assert spec(parent=PARENT, on_parent_cancel="cancel").fields == ("parent", PARENT)
    for policy in ("wait", "abandon"):
        child = spec(parent=PARENT, on_parent_cancel=policy)
        assert child.fields == ("parent", PARENT, "policy", policy)
        assert (child.said("parent"), child.said("policy"), child.said("key")) == (PARENT, policy, None)


def test_options_given_one_after_another_add_up() -> None:
    bus = busq.Bus()

    @bus.job
    async def k() -> None: ...

    fields = k.options(key="a", supersede=True).options(group="g").options(on_parent_cancel="wait", parent=PARENT)
    assert fields.spec().job.fields == ("group", "g", "parent", PARENT, "policy", "wait", "key", "a")


def test_a_keyed_job_lives_where_its_key_does_and_a_keyed_child_where_its_parent_does() -> None:
    assert place(spec(key="report ü", supersede=True).jid) == place_of_key("report ü")
    assert place(spec(key="report ü", supersede=True, parent=PARENT).jid) == 0x3FA1
    assert spec(key="report ü", supersede=True).fields == ("key", "report ü")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_parent_cancel": "wait"}, "on_parent_cancel: 'wait' is for a child, and this job has no parent"),
        ({"on_parent_cancel": "stay", "parent": PARENT}, "'stay' will not do; it takes one of: cancel, wait, abandon"),
        ({"on_parent_cancel": "", "parent": PARENT}, "'' will not do"),
        ({"key": "a"}, "key: 'a' is there for supersede=True"),
        ({"key": "a", "supersede": False}, "give both or neither"),
        ({"supersede": True}, "give key= too"),
        ({"key": "a", "supersede": "no"}, "supersede: 'no' will not do; it takes True or False"),
        ({"key": "", "supersede": True}, "key takes 1 to 200 printable characters, and this one is empty"),
        ({"key": "a" * 201, "supersede": True}, "has 201"),
        ({"key": "a\nb", "supersede": True}, r"has '\n' at position 1"),
        ({"key": 7, "supersede": True}, "of type int"),
    ],
)
def test_what_a_job_cannot_say_of_itself_is_refused_before_anything_is_sent(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        spec(**options)
    assert words in str(caught.value)


def test_a_key_may_be_200_characters_long() -> None:
    assert spec(key="ä" * 200, supersede=True).said("key") == "ä" * 200


def test_a_job_that_cannot_live_where_it_must_is_refused_with_the_reason() -> None:
    key = next(key for key in map(str, range(99)) if place_of_key(key) % 4 != 0x3FA1 % 4)
    apart = spec(key=key, supersede=True, parent=PARENT)
    apart.check_shard(1)
    with pytest.raises(BadJid, match=r"key '\d+' belongs to shard \d of 4 and the parent .* Leave the key out"):
        apart.check_shard(4)
    chosen = spec(key=key, supersede=True, jid=PARENT)
    with pytest.raises(BadJid, match=r"jid .* falls into shard 1 of 4 and key .* Leave the jid out"):
        chosen.check_shard(4)
    with pytest.raises(BadJid, match="its parent"):
        spec(parent=PARENT, jid=next(j for j in map(str, range(99)) if place(j) % 4 != 1)).check_shard(4)
    spec(key=key, supersede=True).check_shard(4)
    spec(parent=PARENT).check_shard(4)


# What is raised --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (busq.ParentClosed("p", None), "parent 'p' is unknown"),
        (busq.ParentClosed("p", State.SUCCEEDED), "parent 'p' has ended (state succeeded)"),
        (busq.ParentClosed("p", State.CANCELLING), "parent 'p' was asked to stop"),
        (busq.TooDeep("p", 100), "parent 'p' stands 100 generations below the root"),
    ],
)
def test_a_parent_that_gains_no_child_is_named_with_what_it_is(error: Any, words: str) -> None:
    assert words in str(error)
    assert "nothing was enqueued for this job" in str(error)
    assert isinstance(error, UsageError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))


# The store's forms -----------------------------------------------------------------------------------------

TERMS = KindTerms("k", 0, 5, 1000, 2000)
OWN = [b"started", 1, b"payload", b"0", b"0", b"1000", b"-", b"", b""]


def test_what_a_hook_and_a_finalizer_are_told_is_told_apart_by_the_word_in_front() -> None:
    about = [b"hook", b"j", b"2", b"user", b"enough", b"api", b"killed"]
    hook = read_clean_up(forms.start_answer([*OWN, b"own saved", *about], TERMS).payload)
    assert (hook.payload, hook.jid, hook.attempt, hook.saved) == (b"payload", "j", 2, b"own saved")
    assert (hook.cause, hook.reason, hook.source, hook.ended) == (Cause.USER, "enough", "api", Ended.KILLED)

    about = [b"finalize", b"j", b"2", b"12", b"3", b"a b c", b"result", b"saved"]
    answer = forms.start_answer([*OWN, b"own saved", *about], TERMS)
    finished = read_finished(answer.payload)
    assert (finished.payload, finished.jid, finished.attempt) == (b"payload", "j", 2)
    assert (finished.children, finished.failed, finished.failed_children) == (12, 3, ("a", "b", "c"))
    assert (finished.result, finished.saved, answer.saved) == (b"result", b"saved", b"own saved")


def test_a_finalizer_of_a_job_without_children_is_told_of_none() -> None:
    about = [b"finalize", b"j", b"1", b"", b"", b"", b"", b""]
    finished = read_finished(forms.start_answer([*OWN, b"", *about], TERMS).payload)
    assert (finished.children, finished.failed, finished.failed_children, finished.result) == (0, 0, (), b"")


def test_a_settlement_says_that_there_is_a_finalizer() -> None:
    given = {"jid": "j", "entry": "1-1", "token": "w/1", "attempt": 1, "outcome": "succeeded"}
    assert Settlement(**given, finalizer=True).facts == ["finalizer", "1"]
    assert Settlement(**given).facts == []
