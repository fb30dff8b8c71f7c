"""The names of a server's troubles, and how one outage is told as one."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any, cast

import pytest
from redis import exceptions
from structlog.testing import capture_logs

import busq
from busq import events
from busq.clock import ManualClock
from busq.errors import BadRecord
from busq.protocol.states import Verb
from busq.protocol.trouble import Trouble, trouble_of
from busq.store.forms import Settlement
from busq.store.outage import CALM_S, Backoff, Outage
from busq.store.store import Store
from busq.store.tls import TlsRefused
from busq.store.trouble import as_ours, named
from busq.worker.attempt import Attempt
from busq.worker.outbox import Outbox


@pytest.mark.parametrize(
    ("code", "text", "trouble"),
    [
        ("OOM", "command not allowed when used memory > 'maxmemory'.", Trouble.OUT_OF_MEMORY),
        ("READONLY", "You can't write against a read only replica.", Trouble.READ_ONLY),
        ("MASTERDOWN", "Link with MASTER is down", Trouble.CUT_OFF),
        ("ERR", "max number of clients reached", Trouble.CROWDED),
        ("ERR", "The user executing the script can't run this command or subcommand", Trouble.FORBIDDEN),
        ("WRONGTYPE", "Operation against a key holding the wrong kind of value", None),
        ("BUSYGROUP", "Consumer Group name already exists", None),
        ("ERR", "unknown command 'FOO'", None),
    ],
)
def test_a_trouble_is_known_by_the_first_word_of_the_error(code: str, text: str, trouble: Trouble | None) -> None:
    assert trouble_of(code, text) is trouble


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (exceptions.ResponseError("Command # 2 (GET a(b)) of pipeline caused error: ('OOM no',)"), "out_of_memory"),
        (exceptions.ResponseError("ERR ACL failure in script: cannot access the key"), "forbidden"),
        (exceptions.MasterDownError("Link with MASTER is down"), "cut_off"),
        (exceptions.ClusterDownError("no node holds slot 5"), "cluster_down"),
        (exceptions.TryAgainError("sent round the cluster 16 times"), "refused"),
        (exceptions.NoScriptError("No matching script."), "refused"),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), "read_only"),
        (exceptions.OutOfMemoryError("command not allowed"), "out_of_memory"),
        (exceptions.AuthenticationError("no"), "login"),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "loading"),
        (exceptions.NoPermissionError("this user has no permissions"), "forbidden"),
        (exceptions.ConnectionError("gone"), "unreachable"),
        (OSError("gone"), "unreachable"),
        (TlsRefused("its certificate is not accepted"), "tls"),
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), None),
        (exceptions.ResponseError("Command # 1 (SET OOM b) of pipeline caused error: ('WRONGTYPE Operation',)"), None),
    ],
)  # fmt: skip
def test_an_error_without_its_first_word_is_known_by_its_class(error: Exception, trouble: str | None) -> None:
    assert named(error) == trouble
    ours = as_ours(error, "redis://there")
    assert isinstance(ours, BadRecord if trouble is None else busq.BusUnavailable)
    assert getattr(ours, "trouble", None) == trouble


@pytest.mark.parametrize("trouble", Trouble)
def test_every_trouble_has_words_and_advice(trouble: Trouble) -> None:
    assert trouble.words.split()[0] in ("is", "has", "cannot", "belongs", "refused", "must")
    assert trouble.advice.endswith(".")


def test_an_error_of_an_absent_bus_can_be_pickled_with_its_trouble() -> None:
    error = busq.BusUnavailable("full", Trouble.OUT_OF_MEMORY)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.trouble) == ("full", "out_of_memory")


# One outage ------------------------------------------------------------------------------------------------------

AWAY = busq.BusUnavailable("gone")
FULL = busq.BusUnavailable("full", Trouble.OUT_OF_MEMORY)


def test_an_outage_is_said_once_for_each_trouble_and_once_when_no_part_has_one() -> None:
    clock = ManualClock()
    outage = Outage(events.logger("test"), clock=clock)
    with capture_logs() as lines:
        for part, error in (("intake", AWAY), ("beat", AWAY), ("intake", AWAY), ("outbox", FULL), ("intake", FULL)):
            outage.began(part, error)
            clock.advance(1.0)
        outage.fine("intake")
        outage.fine("beat")
        assert outage.trouble == "out_of_memory"
        clock.advance(10.0)
        outage.fine("outbox")
    assert [(line["event"], line.get("trouble")) for line in lines] == [
        ("bus.lost", "unreachable"),
        ("bus.lost", "out_of_memory"),
        ("bus.back", None),
    ]
    assert lines[-1]["after_s"] == 15.0
    assert (outage.trouble, outage.words(), outage.count) == ("", "", 1)


def test_a_server_that_comes_and_goes_is_one_outage() -> None:
    clock = ManualClock()
    outage = Outage(events.logger("test"), clock=clock)
    with capture_logs() as lines:
        for _ in range(1000):
            outage.began("intake", AWAY)
            clock.advance(CALM_S / 3)
            outage.fine("intake")
        assert outage.trouble == "", "shown as it is at this moment"
        clock.advance(CALM_S)
        outage.fine("intake")
        outage.fine("intake")
    assert [line["event"] for line in lines] == ["bus.lost", "bus.back"]
    assert outage.count == 1


def test_each_part_answers_for_itself() -> None:
    outage = Outage(events.logger("test"), clock=ManualClock())
    outage.began("outbox", FULL)
    assert outage.words("intake") == ""
    assert outage.words("outbox") == outage.words() == "out_of_memory: full"


def test_what_was_met_last_is_shown() -> None:
    """A part that does not try for now knows only how it was when it tried."""
    outage = Outage(events.logger("test"), clock=ManualClock())
    for part, error in (("intake", AWAY), ("beat", AWAY), ("beat", FULL)):
        outage.began(part, error)
    assert (outage.trouble, outage.words()) == ("out_of_memory", "out_of_memory: full")
    outage.began("intake", AWAY)
    assert outage.trouble == "unreachable"
    assert outage.words("beat") == "out_of_memory: full"


async def test_what_is_told_no_after_an_outage_is_no_longer_in_it() -> None:
    """Nobody tries again then, so nobody would ever say that it is over."""
    outage = Outage(events.logger("test"), clock=ManualClock())
    answers: list[Exception] = [AWAY, BadRecord("odd")]

    async def send() -> None:
        raise answers.pop(0)

    outbox = Outbox(cast(Store, None), lambda *_: None, outage)
    with pytest.raises(BadRecord):
        await outbox.until_told(send, "spawn")
    assert (outage.words(), outage.trouble) == ("", "")


async def test_an_ending_whose_record_is_none_to_work_with_takes_no_other_one_along() -> None:
    """Whatever the scripts make of records: the one that raises is told of by itself, and the others are settled."""
    told: list[tuple[str, str]] = []

    class OneIsOdd:
        async def settle(self, *where: Any) -> list[tuple[str, str]]:
            jids = [each.jid for each in where[-1]]
            if "odd" in jids:
                raise BadRecord("no record")
            return [("settled", "succeeded") for _ in jids]

    outage = Outage(events.logger("test"), clock=ManualClock())
    outbox = Outbox(cast(Store, OneIsOdd()), lambda attempt, word, state: told.append((attempt.jid, word)), outage)
    with capture_logs() as lines:
        for jid in ("one", "odd", "two"):
            attempt = cast(Attempt, SimpleNamespace(jid=jid, shard=0, queue="q"))
            end = Settlement(jid=jid, entry=b"1-1", token="t", attempt=1, outcome="succeeded")
            outbox.settle(attempt, Verb.FINISH, end)
        await outbox._flush()
    assert told == [("one", "settled"), ("odd", "missing"), ("two", "settled")]
    assert [(line["event"], line["jid"]) for line in lines] == [("settle.failed", "odd")]


def test_pauses_grow_to_the_longest_and_begin_anew_after_a_good_try() -> None:
    backoff = Backoff(1.0)
    pauses = [backoff.pause_s() for _ in range(10)]
    assert all(0.5 * 0.05 * 2**n <= pause <= 0.05 * 2**n for n, pause in enumerate(pauses[:4]))
    assert all(0.5 <= pause <= 1.0 for pause in pauses[5:])
    backoff.reset()
    assert backoff.pause_s() <= 0.05
