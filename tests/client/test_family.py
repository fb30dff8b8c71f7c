"""What becomes of a call whose jobs have parents and keys: the answers of the store, and the places of jids."""

from __future__ import annotations

from typing import Any

import pytest

import busq
from busq.protocol.jids import place, place_of_key
from busq.store.store import Store

PARENT = "0190b6a1c5d27e3f8a0c4d5e6f708192.3fa1"


def answers(monkeypatch: pytest.MonkeyPatch, *given: tuple[str, busq.State | None]) -> None:
    async def enqueue(self: Store, jobs: Any, *, call: str, **how: Any) -> Any:
        assert len(jobs) == len(given)
        return [(*answer, "") for answer in given]

    monkeypatch.setattr(Store, "enqueue", enqueue)


@pytest.mark.parametrize(
    ("word", "state", "raised"),
    [
        ("orphan", None, busq.ParentClosed(PARENT, None)),
        ("orphan", busq.State.CANCELLING, busq.ParentClosed(PARENT, busq.State.CANCELLING)),
        ("orphan", busq.State.FAILED, busq.ParentClosed(PARENT, busq.State.FAILED)),
        ("too_deep", busq.State.RUNNING, busq.TooDeep(PARENT, 100)),
    ],
)
async def test_a_child_that_its_parent_does_not_gain_is_told_after_the_others_were_sent(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, word: str, state: busq.State | None, raised: busq.UsageError
) -> None:
    answers(monkeypatch, ("enqueued", busq.State.QUEUED), (word, state), ("in_use", busq.State.QUEUED))
    async with busq.Bus(redis_url) as bus:
        with pytest.raises(type(raised)) as caught:
            await bus.enqueue_many([bus.spec("k"), bus.options(parent=PARENT).spec("k"), bus.spec("k")])
    assert str(caught.value) == str(raised)


async def test_a_job_that_a_standing_rule_caught_is_born_cancelled(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, ("fenced", busq.State.CANCELLED))
    async with busq.Bus(redis_url) as bus:
        assert (await bus.enqueue("k")).state is busq.State.CANCELLED


async def test_places_are_checked_before_anything_is_sent(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch)
    async with busq.Bus(redis_url, shards=4) as bus:
        key = next(key for key in map(str, range(99)) if place_of_key(key) % 4 != place(PARENT) % 4)
        keyed = bus.options(key=key, supersede=True, jid=PARENT)
        with pytest.raises(busq.BadJid, match="Leave the jid out"):
            await bus.enqueue_many([bus.spec("k"), keyed.spec("k")])
        with pytest.raises(busq.BadJid, match="Leave the key out, or the parent"):
            await bus.options(key=key, supersede=True, parent=PARENT).enqueue("k")
