"""
A process's access to the bus: opened once, and then scripts are run on it.

What stands here knows of keys, arguments and servers, and nothing of jobs: the verbs are those of `store.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from busq import tasks
from busq.clock import Clock, SystemClock
from busq.config import Settings
from busq.errors import BusUnavailable, ConfigError
from busq.protocol import keys as bus_keys
from busq.protocol.jids import shard_of
from busq.protocol.keys import GROUP, ShardKeys
from busq.store import card, scripts
from busq.store.confirming import Confirming
from busq.store.connection import Client, Connections, reaching
from busq.store.forms import Value, in_ms


class Access:
    """
    One process's access to the bus. `by` names the process in the history.

    `rings`: whether its scripts publish notices to single jobs. A worker's do not, and its Redis user may not: what it
    decides is about its own jobs, and the rest it tells all workers on the channel of rules.
    """

    def __init__(self, settings: Settings, *, by: str, clock: Clock | None = None, rings: bool = True) -> None:
        self.settings = settings
        self.by = clean_name(by)
        self.clock = clock or SystemClock()
        self.connections = Connections(settings)
        self.redis = self.connections.commands
        self.shards = settings.shards or 0
        self.notice_prefix = bus_keys.notice_prefix(settings.namespace)
        self.done_prefix = bus_keys.done_prefix(settings.namespace)
        self.rules_channel = bus_keys.rules_channel(settings.namespace)
        self._keys: list[ShardKeys] = []
        self._flags_line = True
        self._opened = False
        self._constants: dict[str, Value] = {
            "by": self.by,
            "worker": self.by,
            "history_limit": settings.history_entries,
            "log_limit": settings.event_log_entries,
            "group": GROUP,
            "keep_succeeded_ms": in_ms(settings.keep_succeeded_s),
            "keep_ended_ms": in_ms(settings.keep_ended_s),
            "notice_prefix": self.notice_prefix if rings else b"",
            "done_prefix": self.done_prefix,
            "lease_ms": in_ms(settings.lease_s),
            "default_grace_ms": in_ms(settings.grace_s),
            "default_slack_ms": in_ms(settings.beat_s + settings.force_s),
            "default_max_losses": settings.max_losses,
        }

    # Opening -------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """
        Meet the bus: its wire version, its number of shards, what its scripts may say. Safe to repeat.

        Raise `ConfigError` when the bus was made with another number of shards or by a newer busq,
        `BusUnavailable` when Redis does not answer.
        """
        if self._opened:
            return
        settings = self.settings
        version, shards = await self._found(settings.shards or 1)
        if version > card.WIRE_VERSION:
            raise ConfigError(
                f"the bus {settings.namespace!r} speaks version {version}; this busq knows {card.WIRE_VERSION}, so "
                "upgrade it, or use another namespace"
            )
        if settings.shards is not None and settings.shards != shards:
            raise ConfigError(
                f"shards: {settings.shards} was given, but the bus {settings.namespace!r} was made with {shards}; "
                "leave it out, or use another namespace"
            )
        self.shards = shards
        self._keys = [ShardKeys(settings.namespace, shard) for shard in range(self.shards)]
        self._opened = True

    async def meet_again(self) -> None:
        """
        The data is not what it was: write the bus's own card again if it is gone. Raise `ConfigError` when somebody
        else has made a bus with another number of shards of it meanwhile.
        """
        _, shards = await self._found(self.shards)
        if shards != self.shards:
            raise ConfigError(
                f"the data of the bus {self.settings.namespace!r} was lost, and it was made anew with {shards} "
                f"shards instead of {self.shards}: start this process again"
            )

    async def close(self) -> None:
        await self.connections.close()

    async def _found(self, shards: int) -> card.Card:
        try:
            return await card.meet(self.connections, self.settings.namespace, shards)
        except BusUnavailable:
            told = (
                await card.ask_the_shards(self.connections, self.settings.namespace) if self.connections.apart else None
            )
            if told is None:
                raise
            return told

    async def keep_able(self) -> None:
        """
        See to it that every role can do its work: that the server has all scripts, and the bus its card.

        A server that restarts, fails over or is flushed forgets scripts, and no role but the watchdog may load any.
        """
        settings = self.settings
        with reaching(self.connections.place):
            await tasks.all_of(*(self._load_missing(server) for _, server in await self.connections.servers()))
            if self._opened and not await self.redis.exists(bus_keys.meta(settings.namespace)):
                await card.make(self.connections, settings.namespace, self.shards)

    # Where things are ----------------------------------------------------------------------------------

    def keys(self, shard: int) -> ShardKeys:
        return self._keys[shard]

    def shard_of(self, jid: str) -> int:
        return shard_of(jid, self.shards)

    def job_key(self, jid: str) -> bytes:
        return self._keys[self.shard_of(jid)].job(jid)

    # Scripts -------------------------------------------------------------------------------------------

    async def run(
        self,
        verb: str,
        shard: int,
        jids: Sequence[str],
        args: Sequence[Value],
        *,
        queue: str | None = None,
        named: dict[str, Value] | None = None,
        streams: Sequence[bytes] = (),
        confirming: Confirming | None = None,
    ) -> Any:
        """
        Lay out keys and arguments in the order of the script's header, and run it: for the verbs, in
        `store.py` and `scopes.py`.
        """
        fenced = self.connections.apart
        script = scripts.load(verb, flags_line=self._flags_line, fenced=fenced)
        keys, argv = self._laid_out(script, shard, jids, args, queue, named, streams)
        if fenced:
            keys.insert(0, self.keys(shard).whole)

        async def sent(script: scripts.Script) -> Any:
            if confirming is None:
                return await script.run(self.redis, keys, argv)
            server = self.connections.near(self.keys(shard).whole)
            return await confirming.run(script, self.redis, server, keys, argv, self.connections.place)

        with reaching(self.connections.place):
            try:
                return await sent(script)
            except ResponseError as error:
                self._meet_an_old_server(error)
            return await sent(scripts.load(verb, flags_line=False, fenced=fenced))

    def _meet_an_old_server(self, error: ResponseError) -> None:
        """Do without flags lines from now on where that is what `error` is about; else raise it."""
        if not scripts.is_too_old(error):
            raise error
        self._flags_line = False  # only for tries and tests: the packaged 6.2 server and fakeredis

    async def _load_missing(self, server: Client) -> None:
        fenced = self.connections.apart
        try:
            await scripts.load_missing(server, flags_line=self._flags_line, fenced=fenced)
        except ResponseError as error:
            self._meet_an_old_server(error)
            await scripts.load_missing(server, flags_line=False, fenced=fenced)

    def _laid_out(
        self,
        script: scripts.Script,
        shard: int,
        jids: Sequence[str],
        args: Sequence[Value],
        queue: str | None,
        named: dict[str, Value] | None,
        streams: Sequence[bytes],
    ) -> tuple[list[bytes], list[Value]]:
        own = self.keys(shard)
        keys: list[bytes] = []
        for name in script.keys:
            if name == "jobs...":
                keys += map(own.job, jids)
            elif name == "streams...":
                keys += streams
            elif name == "stream":
                keys.append(own.stream(queue or ""))
            else:
                keys.append(getattr(own, name))
        argv: list[Value] = []
        for name in script.argv:
            if name == "now_ms":
                argv.append(self.clock.stamp_ms())
            elif name.endswith("..."):
                argv += args
            else:
                argv.append(named[name] if named and name in named else self._constants[name])
        return keys, argv


def clean_name(by: str) -> str:
    """A process's name as it may stand in a line of history: printable, no tabs, at most 100 characters."""
    return "".join(c for c in by if c.isprintable() and c != "\t")[:100] or "nobody"
