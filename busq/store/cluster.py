"""
A cluster, spoken to like one server: each command goes to the node that holds its key.

    MOVED                    the map is mended, and the command goes where it was told
    ASK                      goes there for this once, with ASKING before it on the same connection
    TRYAGAIN, CLUSTERDOWN    not now: again in a moment, for a while
    no answer, no connection the map is read anew, and the command sent again a few times

redis-py has a client for clusters, which is not used here: it sends ASKING and the command on whichever two of its
connections are free, so that while a slot moves a command may go round until it gives up; and when it reads the map it
closes connections on which other tasks wait. The node's connections and the commands' names are redis-py's.

The thing to hold in mind: all keys of one call lie in one slot (`protocol/keys.py`), and each call may be sent twice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Self

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.commands import AsyncCoreCommands
from redis.crc import key_slot

from busq.store.address import Node
from busq.store.slots import SlotMap

MOST_HOPS = 16  # redirections of one call; more is a cluster that does not know itself
PAUSE_S = (0.02, 0.3)  # before a call is sent again: the first pause and the longest

Words = tuple[Any, ...]
"""A command and its arguments, as redis-py has it: the first may hold two words."""

_Commands: Any = AsyncCoreCommands  # the methods for all commands, which call our `execute_command`

_WITH_A_VERB = ("XGROUP", "XINFO", "OBJECT", "MEMORY")
_OF_EVERY_NODE = ("SCRIPT LOAD", "SCRIPT FLUSH", "FLUSHALL", "FLUSHDB")
_OF_ANY_NODE = (
    "PING", "TIME", "INFO", "PUBLISH", "PUBSUB", "CONFIG", "ACL", "CLUSTER", "CLIENT", "COMMAND", "ROLE", "WAIT",
    "WAITAOF", "SCRIPT", "LATENCY", "SLOWLOG", "DBSIZE",
)  # fmt: skip
_ELSEWHERE = (redis_errors.MovedError, redis_errors.AskError)
_NOT_NOW = (redis_errors.TryAgainError, redis_errors.ClusterDownError, redis_errors.MasterDownError)
_NO_ANSWER = (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError)


def key_of(words: Words) -> Any:
    """The key that says where a command belongs; None for one without."""
    name, *rest = str(words[0]).upper().split()
    if name in ("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"):
        return words[3] if int(words[2]) else None
    if name in ("XREADGROUP", "XREAD"):
        return words[[str(word).upper() for word in words].index("STREAMS") + 1]
    if name in _OF_ANY_NODE:
        return None
    place = 2 if name in _WITH_A_VERB and not rest else 1
    return words[place] if len(words) > place else None


def slot_of(words: Words) -> int | None:
    key = key_of(words)
    return None if key is None else key_slot(key if isinstance(key, bytes) else str(key).encode())


class Cluster(_Commands):  # type: ignore[misc]
    """
    `make_client(node)` gives a client of one node that sends nothing twice: that is done here, `resends` times and for
    `patience_s` where the answer is "not now".
    """

    def __init__(
        self, slots: SlotMap, make_client: Callable[[Node], Redis], *, resends: int, patience_s: float
    ) -> None:
        self.slots = slots
        self._make_client = make_client
        self._resends = resends
        self._patience_s = patience_s
        self._clients: dict[Node, Redis] = {}

    def client(self, node: Node) -> Redis:
        """A client of this node alone."""
        found = self._clients.get(node)
        if found is None:
            found = self._clients[node] = self._make_client(node)
        return found

    def near(self, key: bytes) -> Near:
        """The cluster, with commands that have no key of their own sent to the node that holds this one."""
        return Near(self, key_slot(key))

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        if " ".join(map(str, words[:2])).upper().startswith(_OF_EVERY_NODE):
            return await self._everywhere(words, options)
        return await self.routed(slot_of(words), words, options)

    async def routed(self, slot: int | None, words: Words, options: dict[str, Any]) -> Any:
        (answer,) = await self.send(slot, [(words, options)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pipeline(self, transaction: bool = False) -> Batch:
        """Commands of one slot, sent together; never as a transaction."""
        return Batch(self)

    async def send(self, slot: int | None, batch: Sequence[tuple[Words, dict[str, Any]]]) -> list[Any]:
        """
        Answers in the order of the commands; what a command was refused for is its answer.

        All go again when one of them was sent to the wrong node.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + self._patience_s
        hops = tries = waits = 0
        asked: Node | None = None
        node: Node | None
        while True:
            node = asked
            try:
                node = asked or await self.slots.holder(slot)
                answers = await _sent(self.client(node), batch, asking=asked is not None)
                elsewhere = next((each for each in answers if isinstance(each, (*_ELSEWHERE, *_NOT_NOW))), None)
                if elsewhere is None:
                    return answers
                raise elsewhere
            except _ELSEWHERE as error:
                hops += 1
                if hops > MOST_HOPS or node is None:
                    raise redis_errors.TryAgainError(f"sent round the cluster {MOST_HOPS} times: {error}") from error
                told = (error.host or node[0], error.port)
                asked = None if isinstance(error, redis_errors.MovedError) else told  # MovedError is an AskError too
                if asked is None:
                    self.slots.moved(error.slot_id, told)
            except _NOT_NOW as error:
                asked = None
                if clock() >= until:
                    raise
                waits = await _pause(waits)
                if not isinstance(error, redis_errors.TryAgainError):
                    await self.slots.refresh()
            except redis_errors.AuthenticationError:
                raise
            except _NO_ANSWER:
                asked = None
                if node is not None:
                    self.slots.failed(node)
                tries += 1
                if tries > self._resends:
                    raise
                waits = await _pause(waits)

    async def _everywhere(self, words: Words, options: dict[str, Any]) -> Any:
        """The answer of the last node; a node that is away now will say itself what it lacks."""
        await self.slots.holder(None)
        nodes = self.slots.primaries
        clients: list[Any] = [self.client(node) for node in nodes]
        answers: list[Any] = await asyncio.gather(
            *(client.execute_command(*words, **options) for client in clients), return_exceptions=True
        )
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, _NO_ANSWER):
                self.slots.failed(node)
        good = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not good:
            raise answers[0]
        return good[-1]

    async def aclose(self) -> None:
        await self.slots.aclose()
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.aclose()


class Near(_Commands):  # type: ignore[misc]
    """Made by `Cluster.near`; those of one place are equal."""

    def __init__(self, cluster: Cluster, slot: int) -> None:
        self._cluster = cluster
        self._slot = slot

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Near) and (self._cluster, self._slot) == (other._cluster, other._slot)

    def __hash__(self) -> int:
        return hash((self._cluster, self._slot))

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        return await self._cluster.routed(self._slot, words, options)


class Batch(_Commands):  # type: ignore[misc]
    """Commands that are gathered and then sent together, where the first of them with a key belongs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._gathered: list[tuple[Words, dict[str, Any]]] = []

    def execute_command(self, *words: Any, **options: Any) -> Self:
        self._gathered.append((words, options))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        batch, self._gathered = self._gathered, []
        if not batch:
            return []
        slot = next((slot for words, _ in batch if (slot := slot_of(words)) is not None), None)
        answers = await self._cluster.send(slot, batch)
        for answer in answers:
            if raise_on_error and isinstance(answer, Exception):
                raise answer
        return answers


async def _sent(client: Any, batch: Sequence[tuple[Words, dict[str, Any]]], *, asking: bool) -> list[Any]:
    if len(batch) == 1 and not asking:
        ((words, options),) = batch
        try:
            return [await client.execute_command(*words, **options)]
        except redis_errors.ResponseError as error:
            return [error]
    pipe: Any = client.pipeline(transaction=False)
    for words, options in batch:
        if asking:  # holds for the one command after it, on this connection
            pipe.execute_command("ASKING")
        pipe.execute_command(*words, **options)
    answers: list[Any] = await pipe.execute(raise_on_error=False)
    return answers[1::2] if asking else answers


async def _pause(waits: int) -> int:
    first, longest = PAUSE_S
    await asyncio.sleep(random.uniform(0.5, 1.0) * min(longest, first * 2**waits))
    return min(waits + 1, 10)
