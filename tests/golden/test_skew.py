"""
A release beside the code of today, on one bus: every step of a job's life by the one or by the other, in all pairings.

A process of a release is today's Python with the scripts that the release sent. Stories are told with each step given
to the one or the other; all must come to the same end, told by the same events.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from busq.protocol.cancel import Cause
from busq.protocol.scope import Filter
from busq.protocol.states import State, Verb, is_terminal
from busq.store import scripts
from busq.store.scopes import Scopes
from busq.store.store import Store
from tests.golden.making import read_scripts, versions
from tests.store.bench import DEADLINE_S, LEASE_S, SLACK_S, Bench, Held

pytestmark = pytest.mark.parametrize("version", versions())

_sent: ContextVar[dict[str, scripts.Script] | None] = ContextVar("_sent", default=None)


class OldStore(Store):
    """A process of a release."""

    release: dict[str, scripts.Script]

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        token = _sent.set(self.release)
        try:
            return await super().run(*args, **kwargs)
        finally:
            _sent.reset(token)


@pytest.fixture(autouse=True)
def old_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = scripts.load

    def load(name: str, *, flags_line: bool = True) -> scripts.Script:
        release = _sent.get()
        return now(name, flags_line=flags_line) if release is None else release[name]

    monkeypatch.setattr(scripts, "load", load)


class Cast:
    """A bench on which `by()` says who takes the next step, as one pairing has it."""

    def __init__(self, bench: Bench, old: OldStore) -> None:
        self.bench = bench
        self._both = {"new": bench.a, "old": old}
        self.plan: Iterator[str] = iter(())

    def by(self) -> None:
        """Give the bench's next calls to the one or the other."""
        store = self._both[next(self.plan)]
        self.bench.a = self.bench.b = self.bench.dog = store
        self.bench.scopes = Scopes(store)


@asynccontextmanager
async def opened(url: str, version: str) -> AsyncIterator[Cast]:
    async with Bench(url) as bench:
        old = OldStore(bench.settings, by="a", clock=bench.clock)
        old.release = read_scripts(version)
        await old.open()
        stores = bench.a, bench.b, bench.dog
        yield Cast(bench, old)
        await old.close()
        bench.a, bench.b, bench.dog = stores


# Stories: each step begins with `by()` ------------------------------------------------------------------------


async def _ends_well(cast: Cast) -> list[str]:
    b = cast.bench
    cast.by()
    jid = await b.enqueue(delay_s=1, retries=1, group="g")
    b.clock.advance(1)
    cast.by()
    await b.promote(jid)
    cast.by()
    held = await b.run(jid)
    cast.by()
    assert (await b.beat(held=[held]))[0].word == "running"
    cast.by()
    assert await b.settle(Verb.FINISH, held, result=b"\x01\x01") == ("settled", "succeeded")
    return [jid]


async def _fails_and_is_retried(cast: Cast) -> list[str]:
    b = cast.bench
    cast.by()
    held = await b.run(retries=1)
    cast.by()
    assert (await b.settle(Verb.RETRY, held, delay_s=1))[1] == "scheduled"
    b.clock.advance(1)
    cast.by()
    await b.promote(held.jid)
    cast.by()
    again = await b.run(held.jid, retries=1)
    cast.by()
    assert (await b.settle(Verb.RETRY, again, error=b"\x01e", cause="error"))[1] == "failed"
    return [held.jid]


async def _is_cancelled_while_it_runs(cast: Cast) -> list[str]:
    b = cast.bench
    cast.by()
    held = await b.run()
    cast.by()
    assert (await b.cancel(held.jid, reason="r", source="s")).verdict == "signalled"
    cast.by()
    assert (await b.beat(held=[held]))[0].word == "cancelling"
    cast.by()
    assert (await b.cancel(held.jid, grace_s=0.0)).verdict == "already_cancelling"
    cast.by()
    assert (await b.settle(Verb.FINISH, held, "failed", observed=True))[1] == "cancelled"
    return [held.jid]


async def _is_cancelled_and_finalized(cast: Cast) -> list[str]:
    b = cast.bench
    cast.by()
    jid = await b.enqueue()
    cast.by()
    held = await b.run(jid)
    cast.by()
    await b.cancel(held.jid)
    b.clock.advance(DEADLINE_S)
    cast.by()
    assert (await b.finalize(held.jid))[0] == "finalized"
    cast.by()
    assert (await b.settle(Verb.FINISH, held))[0] == "stale"
    return [jid]


async def _is_reclaimed(cast: Cast) -> list[str]:
    b = cast.bench
    cast.by()
    held = await b.run()
    await b.beat(held=[held])
    b.clock.advance(LEASE_S)
    cast.by()
    assert (await b.reclaim(held))[0] == "reclaimed"
    cast.by()
    again = await b.run(held.jid)
    cast.by()
    assert (await b.settle(Verb.FINISH, held))[0] == "stale"
    cast.by()
    await b.settle(Verb.RELEASE, again)
    cast.by()
    assert (await b.cancel(held.jid)).verdict == "cancelled"
    return [held.jid]


async def _is_hit_by_a_rule(cast: Cast) -> list[str]:
    b = cast.bench
    cast.by()
    queued, running = await b.enqueue(group="g"), await b.run(group="g")
    cast.by()
    scope = await b.decide(group="g", how={"standing": True})
    cast.by()
    later = await b.enqueue(group="g")
    assert await b.state(later) is State.CANCELLED
    cast.by()
    await b.walk()
    b.clock.advance(SLACK_S + 5)
    cast.by()
    await b.finalize(running.jid)
    cast.by()
    assert await b.scopes.revoke(scope) is not None
    return [queued, running.jid, later]


async def _passes_its_cancel_on(cast: Cast) -> list[str]:
    b = cast.bench
    cast.by()
    parent = await b.run()
    cast.by()
    child = await b.enqueue(parent=parent.jid)
    cast.by()
    assert (await b.settle(Verb.FINISH, parent))[1] == "waiting"
    cast.by()
    await b.cancel(parent.jid)
    cast.by()
    await b.pass_on()
    return [parent.jid, child]


STORIES: dict[str, tuple[Callable[[Cast], Awaitable[list[str]]], int]] = {
    "ends well": (_ends_well, 5),
    "fails and is retried": (_fails_and_is_retried, 5),
    "is cancelled while it runs": (_is_cancelled_while_it_runs, 5),
    "is cancelled and finalized": (_is_cancelled_and_finalized, 5),
    "is reclaimed": (_is_reclaimed, 6),
    "is hit by a rule": (_is_hit_by_a_rule, 6),
    "passes its cancel on": (_passes_its_cancel_on, 5),
}


@pytest.mark.parametrize("story", STORIES)
async def test_every_pairing_of_old_and_new_comes_to_the_same_end(redis_url: str, version: str, story: str) -> None:
    tell, steps = STORIES[story]
    ends: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    async with opened(redis_url, version) as cast:
        for plan in itertools.product(("new", "old"), repeat=steps):
            cast.plan = iter(plan)
            jids = await tell(cast)
            assert next(cast.plan, None) is None, "the story has more steps"
            ends[plan] = [_end(await cast.bench.job(jid), await cast.bench.events(jid)) for jid in jids]
            for jid in jids:
                assert is_terminal((await cast.bench.job(jid)).state)
    alike = ends[("new",) * steps]
    assert [plan for plan, end in ends.items() if end != alike] == []


def _end(job: Any, events: list[str]) -> tuple[Any, ...]:
    return job.state, job.cause, job.ended, job.reason, job.source, job.attempt, job.failures, job.losses, events


async def test_a_start_after_a_cancel_is_refused_by_either(redis_url: str, version: str) -> None:
    async with opened(redis_url, version) as cast:
        for plan in itertools.product(("new", "old"), repeat=3):
            cast.plan = iter(plan)
            cast.by()
            held: Held = await cast.bench.take(await cast.bench.enqueue())
            cast.by()
            await cast.bench.scopes.decide(cast.bench.fresh("scope"), Filter(jid_prefix=held.jid))
            cast.by()
            assert (await cast.bench.begin(held)).word == "stale"
            assert (await cast.bench.job(held.jid)).cause == Cause.SCOPE
