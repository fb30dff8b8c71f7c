"""
The caller's side of a cancel by filter: what is checked before anything is sent, and what is sent then.

The bus is real, what decides is played: a `Decider` writes down what it was asked for and answers as a test wants it.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import busq
from busq.client import link as link_module
from busq.protocol.scope import Filter, ScopeLook, ScopeState
from tests.runtime.bench import until


def look(
    state: str = "settled", *, signalled: int = 0, unfinished: int = 0, examined: int = 7, total: int = 7
) -> ScopeLook:
    counts = {"signalled": signalled} if signalled else {}
    return ScopeLook(
        id="s-1",
        state=ScopeState(state),
        counts=counts,
        endings={},
        unfinished=unfinished,
        examined=examined,
        total=total,
    )


def picture(digest: str) -> busq.Survey:
    return busq.Survey(jobs=3, kinds={"k": 3}, queues={"default": 3}, states={"queued": 2, "running": 1}, digest=digest)


class Decider:
    def __init__(self) -> None:
        self.decided: list[tuple[str, Filter, dict[str, Any]]] = []
        self.surveyed: list[Filter] = []
        self.digest = "as-it-was"
        self.seen: ScopeLook | None = look()
        self.looks = 0
        self.revoked: ScopeState | None = ScopeState.REVOKED

    async def decide(self, id: str, conditions: Filter, **how: Any) -> None:
        self.decided.append((id, conditions, how))

    async def survey(self, conditions: Filter) -> tuple[busq.Survey, dict[int, int]]:
        self.surveyed.append(conditions)
        return picture(self.digest), {0: 41}

    async def look(self, id: str) -> ScopeLook | None:
        self.looks += 1
        return self.seen

    async def revoke(self, id: str) -> ScopeState | None:
        return self.revoked

    async def rules(self) -> list[busq.Rule]:
        return []


@asynccontextmanager
async def played(url: str) -> AsyncIterator[tuple[busq.Bus, Decider]]:
    async with busq.Bus(url) as bus:
        decider = Decider()
        (await bus._link()).scopes = decider  # type: ignore[assignment]
        yield bus, decider


# What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({}, "everything"),
        ({"group": "g", "until": 5}, "standing"),
        ({"group": "g", "standing": True, "expect": "d"}, "expect"),
        ({"group": "g", "standing": True, "until": datetime(2099, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"group": "g", "standing": True, "until": "tomorrow"}, "tomorrow"),
        ({"group": "g", "standing": True, "until": True}, "True"),
        ({"group": "g", "standing": True, "until": 0}, "more than 0"),
        ({"group": "g", "standing": True, "until": float("nan")}, "more than 0"),
        ({"group": "g", "standing": True, "until": -timedelta(seconds=1)}, "more than 0"),
        ({"group": "g", "standing": True, "until": 1e300}, "too far"),
        ({"group": "g", "grace": -1}, "grace"),
        ({"group": "g", "reason": 5}, "reason"),
        ({"group": "g", "source": "x" * 1001}, "source"),
        ({"where": "kind ="}, "where"),
        ({"where": "attempt > 1", "standing": True}, "standing rule cannot ask for attempt"),
    ],
)
async def test_what_cannot_be_meant_is_refused_before_there_is_a_connection(wish: dict[str, Any], said: str) -> None:
    bus = busq.Bus("redis://127.0.0.1:1/0")
    with pytest.raises(busq.UsageError, match=said):
        await bus.cancel_where(**wish)


async def test_an_option_that_there_is_not_is_refused_by_its_name(redis_url: str) -> None:
    bus: Any = busq.Bus(redis_url)
    for call in (lambda: bus.cancel_where(grupe="g"), lambda: bus.cancel_group("g", forse=True)):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            await call()


async def test_the_end_of_a_rule_must_be_ahead_by_the_servers_clock(redis_url: str) -> None:
    async with played(redis_url) as (bus, decider):
        with pytest.raises(busq.UsageError, match=r"until: 2001-.* is over"):
            await bus.cancel_where(group="g", standing=True, until=datetime(2001, 1, 1, tzinfo=UTC))
        with pytest.raises(busq.UsageError, match="too far"):
            await bus.cancel_where(group="g", standing=True, until=timedelta.max)
        assert decider.decided == []


# What is sent ------------------------------------------------------------------------------------------------


async def test_a_filter_is_decided_in_one_call_under_an_id_of_our_own(redis_url: str) -> None:
    async with played(redis_url) as (bus, decider):
        scope = await bus.cancel_where(
            group="g", kind="k", queue="q", tags={"tenant": "a"}, worker="w", jid_prefix="p", descendants_of="jid",
            enqueued_before=datetime(2026, 1, 1, tzinfo=UTC), where="attempt > 1",
            reason="no\nmore", source="api", grace=2,
        )  # fmt: skip
        [(id, conditions, how)] = decider.decided
        assert id == scope.id
        assert id.startswith("s-")
        assert (conditions.group, conditions.kind, conditions.queue, conditions.worker) == ("g", "k", "q", "w")
        assert (dict(conditions.tags or {}), conditions.jid_prefix, conditions.descendants_of) == (
            {"tenant": "a"}, "p", "jid",
        )  # fmt: skip
        assert (conditions.enqueued_before, conditions.where) == (datetime(2026, 1, 1, tzinfo=UTC), "attempt > 1")
        assert how == {
            "reason": "no more", "source": "api", "grace_s": 2.0, "standing": False, "until": None, "cutoffs": None,
            "confirming": None,
        }  # fmt: skip
        assert decider.surveyed == []
        assert decider.looks == 0
        assert (scope.counts, scope.endings) == ({"cancelled": 0, "signalled": 0}, {})
        assert (await bus.cancel_where(everything=True)).id != id


async def test_the_short_forms_are_the_long_one_with_one_condition(redis_url: str) -> None:
    async with played(redis_url) as (bus, decider):
        await bus.cancel_group("g", reason="why")
        await bus.cancel_kind("k", standing=True)
        await bus.cancel_descendants("jid", grace=1)
        assert await bus.cancel_group("g", dry_run=True) == picture("as-it-was")
        assert [conditions for _, conditions, _ in decider.decided] == [
            Filter(group="g"), Filter(kind="k"), Filter(descendants_of="jid"),
        ]  # fmt: skip
        assert [how["reason"] for _, _, how in decider.decided] == ["why", "", ""]
        assert [how["standing"] for _, _, how in decider.decided] == [False, True, False]
        assert [how["grace_s"] for _, _, how in decider.decided] == [None, None, 1.0]


@pytest.mark.parametrize("end", [3600, 3600.0, timedelta(hours=1), "a moment"])
async def test_the_end_of_a_rule_is_decided_as_a_moment_or_a_length_of_time(redis_url: str, end: Any) -> None:
    async with played(redis_url) as (bus, decider):
        # Not made when tests are collected: that may be long ago.
        until = datetime.now(UTC) + timedelta(hours=1) if end == "a moment" else end
        await bus.cancel_where(group="g", standing=True, until=until)
        assert decider.decided[0][2]["until"] == (until if end == "a moment" else timedelta(hours=1))


async def test_a_dry_run_decides_nothing_also_that_of_a_standing_rule(redis_url: str) -> None:
    async with played(redis_url) as (bus, decider):
        assert (await bus.cancel_where(group="g", dry_run=True)).jobs == 3
        assert (await bus.cancel_where(group="g", dry_run=True, standing=True, until=60)).digest == "as-it-was"
        assert decider.decided == []


async def test_an_expected_picture_is_looked_at_again_and_decided_as_it_was_seen(redis_url: str) -> None:
    async with played(redis_url) as (bus, decider):
        await bus.cancel_where(group="g", expect="as-it-was")
        assert len(decider.surveyed) == 1
        assert decider.decided[0][2]["cutoffs"] == {0: 41}


async def test_another_picture_is_refused_with_what_there_is(redis_url: str) -> None:
    async with played(redis_url) as (bus, decider):
        for dry_run in (False, True):
            with pytest.raises(busq.PictureChanged, match=r"(?s)nothing.*'old'.*'as-it-was'.*3 .*2 queued") as caught:
                await bus.cancel_where(group="g", expect="old", dry_run=dry_run)
        assert (caught.value.expected, caught.value.survey) == ("old", picture("as-it-was"))
        assert decider.decided == []


def test_the_errors_of_scopes_travel_between_processes() -> None:
    for error in (busq.PictureChanged("old", picture("new")), busq.ScopeNotFound("s-1")):
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


# The handle --------------------------------------------------------------------------------------------------


async def test_a_look_brings_the_handle_up_to_date(redis_url: str) -> None:
    async with played(redis_url) as (bus, decider):
        scope = bus.scope("s-1")
        assert decider.looks == 0
        decider.seen = look("settling", signalled=4, unfinished=2)
        seen = await scope.look()
        assert seen.counts == scope.counts == {"cancelled": 0, "signalled": 4}
        assert (seen.state, seen.unfinished) == ("settling", 2)


async def test_a_wait_is_woken_by_the_announcement_of_the_scope(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "LOOK_AGAIN_S", 3600)
    async with played(redis_url) as (bus, decider):
        decider.seen = look("settling")
        waiting = asyncio.create_task(bus.scope("s-1").wait())
        await until(lambda: decider.looks == 2)  # before it subscribed, and once the server had confirmed that
        decider.seen = look("settled", signalled=1)
        store = (await bus._link()).store
        await store.redis.publish(store.done_prefix + b"s-1", b"")
        assert (await asyncio.wait_for(waiting, 10)).counts["signalled"] == 1
        assert decider.looks == 3


async def test_a_wait_survives_a_lost_announcement(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LOOK_AGAIN_S", 0.02)
    async with played(redis_url) as (bus, decider):
        decider.seen = look("settling")
        waiting = asyncio.create_task(bus.scope("s-1").wait(timeout=20))
        await until(lambda: decider.looks >= 4)
        decider.seen = look()
        assert (await waiting).state == "settled"


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (look("settling", examined=3), "still settling, 3 of 7 records"),
        (look("settling", examined=0, total=0), "still settling, no watchdog has begun with it yet"),
        (look("settling", signalled=5, unfinished=2), "2 of 5 signalled jobs have not ended"),
        (look("settled", signalled=5, unfinished=1), "1 of 5 signalled jobs have not ended"),
        (look("standing", signalled=2, unfinished=1), "1 of 2 signalled jobs have not ended"),
    ],
)
async def test_a_wait_that_runs_out_of_time_names_what_is_unfinished(
    redis_url: str, seen: ScopeLook, said: str
) -> None:
    async with played(redis_url) as (bus, decider):
        decider.seen = seen
        with pytest.raises(TimeoutError, match=f"s-1 was not done after 0.01 s: .*{said}"):
            await bus.scope("s-1").wait(timeout=0.01)


async def test_a_wait_that_runs_out_of_time_looks_once_more(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with played(redis_url) as (bus, decider):
        seen = [look("settled"), look("settling")]

        async def next_look(id: str) -> ScopeLook | None:
            return seen.pop()

        monkeypatch.setattr(decider, "look", next_look)
        assert (await bus.scope("s-1").wait(timeout=0)).state == "settled"


async def test_a_cancelled_wait_leaves_nothing_behind(redis_url: str) -> None:
    async with played(redis_url) as (bus, decider):
        decider.seen = look("settling")
        waiting = asyncio.create_task(bus.scope("s-1").wait())
        await until(lambda: decider.looks == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not (await bus._link())._rung


async def test_a_revoke_says_whether_anything_was_left_and_knows_no_unknown_ids(redis_url: str) -> None:
    async with played(redis_url) as (bus, decider):
        assert await bus.scope("s-1").revoke() is True
        assert await bus.revoke("s-1") is True
        decider.revoked = ScopeState.SETTLED
        assert await bus.revoke("s-1") is False
        decider.revoked = decider.seen = None
        scope = bus.scope("s-1")
        for ask in (scope.revoke, scope.look, scope.wait, lambda: bus.revoke("s-1")):
            with pytest.raises(busq.ScopeNotFound, match="s-1"):
                await ask()
