"""The mark that a shard bears for good, by whose change a worker knows that the data is not what it was."""

from __future__ import annotations

from typing import Any

import pytest

from busq import events
from busq.errors import BusUnavailable
from busq.protocol.lineage import Change, Shift
from busq.store import card
from busq.store.connection import Connections
from busq.store.lineage import LOOK_EVERY_S, Lineage
from tests.store.bench import Bench


async def test_a_shard_keeps_the_mark_of_who_came_first(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one looked before the first one wrote: with a mark each they would never agree."""
    async with Bench(redis_url) as bench:
        first = Lineage(bench.a, events.logger("test"))
        await first.look(0)
        hmget, answers = bench.b.redis.hmget, [[None, None]]

        async def late(*words: Any) -> Any:
            return answers.pop() if answers else await hmget(*words)

        monkeypatch.setattr(bench.b.redis, "hmget", late)
        second = Lineage(bench.b, events.logger("test"))
        await second.look(0)
        assert second._seen[0].birth == first._seen[0].birth != ""


async def test_a_mark_of_before_its_card_is_given_one_and_stays(redis_url: str) -> None:
    """As an earlier version wrote it; a number of shards on it is no change of history."""
    async with Bench(redis_url, shards=3) as bench:
        await bench.redis.hset(bench.a.keys(2).birth, "mark", "old")
        lineage = Lineage(bench.a, events.logger("test"))
        assert await lineage.look(2) is None
        assert await bench.redis.hgetall(bench.a.keys(2).birth) == {b"mark": b"old", b"v": b"1", b"shards": b"3"}
        bench.clock.advance(LOOK_EVERY_S)
        assert await lineage.look(2) is None
        await bench.redis.delete(bench.a.keys(2).birth)
        bench.clock.advance(LOOK_EVERY_S)
        assert await lineage.look(2) == Shift(change=Change.OTHER_DATA)


async def test_a_change_is_met_also_while_the_node_with_the_card_is_away(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster: one node went over to its replica, and the one that has the card is down."""

    async def away(*_: Any) -> Any:
        raise BusUnavailable("its node is down")

    async with Bench(redis_url) as bench:
        await Lineage(bench.a, events.logger("test")).look(0)
        monkeypatch.setattr(card, "meet", away)
        with pytest.raises(BusUnavailable):  # one server: without its card there is no bus
            await bench.a.meet_again()
        with monkeypatch.context() as cluster:
            cluster.setattr(Connections, "apart", True)
            await bench.a.meet_again()
