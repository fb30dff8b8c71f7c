"""
Having writes confirmed: WAIT for replicas, WAITAOF for the disk.

The thing to hold in mind: both speak of what *this connection* has written. So they go out together with the script,
in one go on one connection; and when that connection breaks, everything is sent again from the script on, which is
safe to send twice. A WAIT alone on a fresh connection would confirm nothing and say yes.

What the server can do is asked before anything is written, so that a wish that cannot be granted changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import exceptions as redis_errors

from busq.config import Settings
from busq.errors import UsageError
from busq.protocol.durability import Confirmed, Durability
from busq.store.connection import Client, reaching
from busq.store.scripts import Arg, Script
from busq.store.trouble import named

WITHIN_SHARE = 0.8  # of a command's time: how long a confirmation may be waited for at the most


class Confirming:
    """What one call wants to have confirmed, and what has been, over all of its scripts."""

    def __init__(self, wanted: frozenset[Durability], settings: Settings) -> None:
        self._wanted = wanted
        self._replicas = settings.confirm_replicas
        self._within_ms = round(min(settings.confirm_within_s, settings.command_timeout_s * WITHIN_SHARE) * 1000)
        self._writes_through: dict[Client, bool] = {}
        """Servers that were asked what they can confirm: whether each has every write on its disk before it answers."""
        self._taken_by: int | None = None
        self._on_disk: bool | None = None

    def answer(self, asked: Durability | None) -> Confirmed | None:
        """What to tell one who asked for this; after the last script."""
        if asked is Durability.REPLICATED:
            replicas = self._taken_by or 0
            return Confirmed(asked=asked, ok=replicas >= self._replicas, wanted=self._replicas, replicas=replicas)
        if asked is Durability.FSYNCED:
            return Confirmed(asked=asked, ok=bool(self._on_disk), fsynced=bool(self._on_disk))
        return None

    async def run(
        self,
        script: Script,
        redis: Client,
        server: Client,
        keys: Sequence[bytes],
        argv: Sequence[Arg],
        place: str,
    ) -> Any:
        """
        The script's answer; `server` is the one that runs it. Raise redis-py's errors as the script does, and
        `UsageError`, with nothing written, where the first server has no way to confirm what is wanted. One that comes
        later confirms nothing then.
        """
        if server not in self._writes_through:
            self._writes_through[server] = await self._ask(server, place)
        always = self._writes_through[server]
        commands: list[tuple[Arg, ...]] = []
        if Durability.REPLICATED in self._wanted:
            commands.append(("WAIT", self._replicas, self._within_ms))
        if Durability.FSYNCED in self._wanted and not always:
            commands.append(("WAITAOF", 1, 0, self._within_ms))
        answer, *confirmations = await script.run_with(redis, keys, argv, commands)
        if Durability.REPLICATED in self._wanted:
            told = _count(confirmations.pop(0))
            self._taken_by = told if self._taken_by is None else min(self._taken_by, told)
        if Durability.FSYNCED in self._wanted:
            done = always or _count(confirmations.pop(0)) >= 1
            self._on_disk = done and self._on_disk is not False
        return answer

    async def _ask(self, redis: Client, place: str) -> bool:
        """See whether the server can confirm, by asking it to; return whether its disk has every write anyway."""
        always: bool | None = False
        with reaching(place):
            if Durability.FSYNCED in self._wanted:
                always = await _writes_through(redis)
            try:
                if Durability.REPLICATED in self._wanted:
                    await _refused(redis, "WAIT", 0, 1, what="replicated", place=place)
                if Durability.FSYNCED in self._wanted and not always:
                    await _refused(redis, "WAITAOF", 1, 0, 1, what="fsynced", place=place, closed=always is None)
            except UsageError:
                if not self._writes_through:  # else something is written already, and what is asked for fails by itself
                    raise
        return bool(always)


async def _refused(redis: Client, *command: Any, what: str, place: str, closed: bool = False) -> None:
    """
    Raise `UsageError` when the server says that it has no such command, or cannot do this. `closed`: this user may not
    see whether it need not be asked.
    """
    try:
        await redis.execute_command(*command)
    except redis_errors.ResponseError as error:
        if named(error) is not None:
            raise
        need = "a standalone server or a primary with replicas"
        if what == "fsynced":
            need = "an append-only file (appendonly yes), and WAITAOF (Redis 7.2, Valkey 8) or appendfsync always"
            need += ", which this user may not look up (+config|get)" if closed else ""
        said = str(error).rstrip(".")
        raise UsageError(
            f"durability: {what!r} cannot be confirmed by Redis at {place}: {said}. It takes {need}. Nothing was "
            "written; leave durability out, or change the server"
        ) from None


async def _writes_through(redis: Client) -> bool | None:
    """Whether the answer to a write comes after its fsync anyway; None where this user may not look."""
    try:
        found = await redis.execute_command("CONFIG", "GET", "append*")
    except redis_errors.ResponseError:
        return None
    settings = dict(zip(found[::2], found[1::2], strict=True)) if isinstance(found, list) else found
    told = {_text(name): _text(value) for name, value in settings.items()}
    return told.get("appendonly") == "yes" and told.get("appendfsync") == "always"


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _count(answer: Any) -> int:
    """WAIT tells a number, WAITAOF the own disk's and the replicas'. An error confirms nothing."""
    if isinstance(answer, Exception):
        return 0
    return int(answer[0] if isinstance(answer, list) else answer)
