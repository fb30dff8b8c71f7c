"""Where a command of a cluster goes, and what becomes of it when it went wrong; the nodes are played by the tests."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from redis import exceptions as redis_errors
from redis.crc import key_slot

from busq.errors import ConfigError
from busq.store import slots
from busq.store.address import Node
from busq.store.cluster import MOST_HOPS, Cluster, key_of, slot_of
from busq.store.slots import SlotMap

A, B, C = (("a", 1), ("b", 2), ("c", 3))
HALF = 8192
LOW, HIGH = b"{b}", b"{a}"  # keys of either half of the slots


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("HGETALL", b"k"), b"k"),
        (("EVALSHA", "sha", 2, b"k", b"l", "x"), b"k"),
        (("EVAL", "return 1", 0), None),
        (("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", b"k", b"l", ">", ">"), b"k"),
        (("XGROUP", "CREATE", b"k", "g", "0"), b"k"),
        (("XGROUP CREATE", b"k", "g", "0"), b"k"),
        (("XINFO GROUPS", b"k"), b"k"),
        (("XPENDING", b"k", "g"), b"k"),
        (("PUBLISH", b"channel", b"m"), None),
        (("SCRIPT LOAD", "return 1"), None),
        (("SCRIPT", "LOAD", "return 1"), None),
        (("CONFIG GET", "save"), None),
        (("ACL", "WHOAMI"), None),
        (("INFO",), None),
        (("TIME",), None),
        (("WAIT", 1, 100), None),
    ],
)
def test_a_command_goes_by_its_key(words: tuple[Any, ...], key: bytes | None) -> None:
    assert key_of(words) == key
    assert slot_of(words) == (None if key is None else key_slot(key))


class Nodes:
    """Three nodes, two of them with half of the slots each. `answer` decides what each says; all calls are kept."""

    def __init__(self) -> None:
        self.calls: list[tuple[Node, tuple[Any, ...]]] = []
        self.maps: list[Any] = [[[0, HALF - 1, [b"a", 1]], [HALF, 16383, [b"b", 2]]]]
        self.asked: list[Node] = []
        self.answer: Callable[[Node, tuple[Any, ...]], Any] = lambda node, words: node
        self.slots = SlotMap([A, B, C], self._map, place="here")
        self.cluster = Cluster(self.slots, lambda node: _Client(self, node), resends=3, patience_s=60.0)  # type: ignore[arg-type,return-value]

    async def _map(self, node: Node) -> Any:
        self.asked.append(node)
        found = self.maps[0] if len(self.maps) == 1 else self.maps.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def say(self, node: Node, words: tuple[Any, ...]) -> Any:
        self.calls.append((node, words))
        return self.answer(node, words)


class _Client:
    def __init__(self, nodes: Nodes, node: Node) -> None:
        self._nodes = nodes
        self._node = node
        self._gathered: list[tuple[Any, ...]] = []

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        answer = self._nodes.say(self._node, words)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pipeline(self, transaction: bool) -> Any:
        assert not transaction
        batch = _Client(self._nodes, self._node)
        batch.execute_command = lambda *words, **options: batch._gathered.append(words)  # type: ignore[method-assign,assignment]
        return batch

    async def execute(self, raise_on_error: bool) -> list[Any]:
        return [self._nodes.say(self._node, words) for words in self._gathered]

    async def aclose(self) -> None: ...


def test_the_keys_of_these_tests_lie_in_either_half() -> None:
    assert key_slot(LOW) < HALF <= key_slot(HIGH)


async def test_each_key_goes_to_its_holder_and_the_map_is_read_once() -> None:
    nodes = Nodes()
    assert await nodes.cluster.get(LOW) == A
    assert await nodes.cluster.get(HIGH) == B
    assert len(nodes.asked) == 1


async def test_what_has_moved_is_found_at_once_and_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "REFRESH_EVERY_S", math.inf)
    nodes = Nodes()
    nodes.answer = lambda node, words: node if node == C else redis_errors.MovedError(f"{key_slot(LOW)} c:3")
    assert await nodes.cluster.get(LOW) == C
    assert await nodes.cluster.get(LOW) == C
    assert [node for node, _ in nodes.calls] == [A, C, C]


async def test_asking_goes_before_each_command_and_counts_for_this_once() -> None:
    nodes = Nodes()
    nodes.answer = lambda node, words: node if node == C else redis_errors.AskError(f"{key_slot(LOW)} c:3")
    for _ in range(2):
        assert await nodes.cluster.get(LOW) == C
    batch = nodes.cluster.pipeline()
    batch.get(LOW)
    batch.get(LOW)
    assert await batch.execute() == [C, C]
    get = ("GET", LOW)
    once = [(A, get), (C, ("ASKING",)), (C, get)]
    assert nodes.calls == [*once, *once, (A, get), *once, *once[1:]]


async def test_a_host_that_is_not_told_is_the_one_that_was_asked() -> None:
    nodes = Nodes()
    nodes.answer = lambda node, words: node if node[1] == 9 else redis_errors.MovedError(f"{key_slot(LOW)} :9")
    assert await nodes.cluster.get(LOW) == ("a", 9)


async def test_a_cluster_that_sends_round_and_round_is_told_so() -> None:
    nodes = Nodes()
    there = {A: "b:2", B: "a:1"}
    nodes.answer = lambda node, words: redis_errors.MovedError(f"{key_slot(LOW)} {there[node]}")
    with pytest.raises(redis_errors.TryAgainError, match="sent round the cluster"):
        await nodes.cluster.get(LOW)
    assert len(nodes.calls) == MOST_HOPS + 1


@pytest.mark.parametrize("error", [redis_errors.TryAgainError, redis_errors.ClusterDownError])
async def test_not_now_is_tried_again_for_a_while(error: type[redis_errors.ResponseError]) -> None:
    nodes = Nodes()
    nodes.answer = lambda node, words: node if len(nodes.calls) > 2 else error("not now")
    assert await nodes.cluster.get(LOW) == A
    nodes.cluster._patience_s = 0.05
    nodes.answer = lambda node, words: error("not now")
    with pytest.raises(error):
        await nodes.cluster.get(LOW)


async def test_without_an_answer_the_map_is_read_anew_and_the_command_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "REFRESH_FAILED_S", 0.0)
    nodes = Nodes()
    nodes.answer = lambda node, words: node if node != A else redis_errors.ConnectionError("gone")
    nodes.maps.append([[0, 16383, [b"b", 2]]])
    assert await nodes.cluster.get(LOW) == B
    assert [node for node, _ in nodes.calls] == [A, B]


async def test_a_refused_login_is_not_tried_again() -> None:
    nodes = Nodes()
    nodes.answer = lambda node, words: redis_errors.AuthenticationError("no")
    with pytest.raises(redis_errors.AuthenticationError):
        await nodes.cluster.get(LOW)
    assert len(nodes.calls) == 1


async def test_a_script_is_loaded_on_every_node_and_one_that_is_away_does_not_matter() -> None:
    nodes = Nodes()
    nodes.answer = lambda node, words: "sha" if node == B else redis_errors.ConnectionError("gone")
    assert await nodes.cluster.execute_command("SCRIPT LOAD", "return 1") == "sha"
    assert {node for node, _ in nodes.calls} == {A, B}


async def test_what_has_no_key_goes_where_it_is_told_to() -> None:
    nodes = Nodes()
    nodes.answer = lambda node, words: [node[0], 0]
    for _ in range(5):
        assert (await nodes.cluster.near(HIGH).execute_command("TIME"))[0] == "b"


async def test_a_node_that_failed_of_late_is_not_chosen_where_any_would_do() -> None:
    nodes = Nodes()
    await nodes.slots.refresh()
    nodes.slots.failed(A)
    assert {await nodes.slots.holder(None) for _ in range(20)} == {B}


async def test_a_new_connection_leads_elsewhere_than_the_last_one() -> None:
    nodes = Nodes()
    led = [await nodes.slots.seek() for _ in range(6)]
    assert all(one != other for one, other in itertools.pairwise(led))
    assert len(nodes.asked) == 6, "by the newest map each time"


async def test_a_node_that_does_not_answer_does_not_hold_up_the_reading_of_the_map() -> None:
    frozen = asyncio.Event()

    async def ask(node: Node) -> Any:
        if node == A:
            await frozen.wait()
        return [[0, 16383, [b"b", 2]]]

    for _ in range(5):  # who is asked first is drawn
        found = SlotMap([A, B], ask, place="here")
        async with asyncio.timeout(10):
            await found.refresh()
        assert found.primaries == [B]
        await found.aclose()


async def test_no_map_at_all_is_told_with_what_each_node_said() -> None:
    nodes = Nodes()
    nodes.maps = [redis_errors.ConnectionError("gone"), OSError("no way"), []]
    with pytest.raises(redis_errors.ConnectionError, match="no node of the cluster answers") as told:
        await nodes.slots.refresh()
    assert all(words in str(told.value) for words in ("gone", "no way", "knows of no slots"))
    nodes.maps = [redis_errors.ResponseError("ERR This instance has cluster support disabled")]
    with pytest.raises(ConfigError, match="is no cluster"):
        await nodes.slots.refresh()
