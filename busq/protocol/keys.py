"""
Every Redis key and channel, one small function each.

All keys of a shard carry its number as their hash tag, so that each script touches one slot; a jid alone finds its
shard. The table of keys in the README (`KEY_TABLE`) is made from here: adding a key means adding a row.
"""

from __future__ import annotations

from functools import cached_property

GROUP = b"busq"
DEFAULT_NAMESPACE = "busq"


class ShardKeys:
    """The keys of one shard. Bytes, ready for the wire."""

    def __init__(self, namespace: str, shard: int) -> None:
        self.shard = shard
        self.prefix = f"{namespace}:{{{shard}}}:".encode()
        self._jobs = self.prefix + b"job:"
        self._streams: dict[str, bytes] = {}

    def job(self, jid: str) -> bytes:
        return self._jobs + jid.encode()

    def stream(self, queue: str) -> bytes:
        key = self._streams.get(queue)
        if key is None:
            key = self._streams[queue] = self.prefix + b"queue:" + queue.encode()
        return key

    def _key(self, name: str) -> bytes:
        return self.prefix + name.encode()

    @cached_property
    def whole(self) -> bytes:
        """
        Never there. A script that names it is refused while its slot is on the move (see `store/scripts.py`).
        """
        return self._key("whole")

    @cached_property
    def events(self) -> bytes:
        return self._key("events")

    @cached_property
    def cancelled(self) -> bytes:
        return self._key("cancelled")

    @cached_property
    def tombstones(self) -> bytes:
        return self._key("tombstones")

    @cached_property
    def deadlines(self) -> bytes:
        return self._key("deadlines")

    @cached_property
    def timers(self) -> bytes:
        return self._key("timers")

    @cached_property
    def scheduled(self) -> bytes:
        return self._key("scheduled")

    @cached_property
    def queues(self) -> bytes:
        return self._key("queues")

    @cached_property
    def birth(self) -> bytes:
        return self._key("birth")

    @cached_property
    def counters(self) -> bytes:
        return self._key("counters")

    @cached_property
    def workers(self) -> bytes:
        return self._key("workers")

    @cached_property
    def worker_info(self) -> bytes:
        return self._key("worker_info")

    @cached_property
    def drains(self) -> bytes:
        return self._key("drains")

    @cached_property
    def suspects(self) -> bytes:
        return self._key("suspects")

    @cached_property
    def hooks(self) -> bytes:
        return self._key("hooks")

    @cached_property
    def rules(self) -> bytes:
        return self._key("rules")

    @cached_property
    def walk(self) -> bytes:
        return self._key("walk")

    @cached_property
    def waiting(self) -> bytes:
        return self._key("waiting")

    @cached_property
    def cascades(self) -> bytes:
        return self._key("cascades")

    @cached_property
    def keyed(self) -> bytes:
        return self._key("keyed")

    def scope(self, scope: str) -> bytes:
        return self._key("scope:" + scope)

    def children(self, jid: str) -> bytes:
        return self._key("children:" + jid)

    def rate(self, what: str, name: str) -> bytes:
        return self._key(f"rate:{what}:{name}")

    def fallen(self, jid: str) -> bytes:
        return self._key("fallen:" + jid)

    @cached_property
    def dead(self) -> bytes:
        return self._key("dead")

    @cached_property
    def succeeded(self) -> bytes:
        return self._key("ended:succeeded")

    @cached_property
    def failed(self) -> bytes:
        return self._key("ended:failed")

    @cached_property
    def cancelled_jobs(self) -> bytes:
        return self._key("ended:cancelled")


def meta(namespace: str) -> bytes:
    """The bus's own card: wire version and number of shards."""
    return f"{namespace}:meta".encode()


def notice_prefix(namespace: str) -> bytes:
    """Channels that ring when a job is asked to stop: `cancel:<jid>` in the default namespace."""
    return b"cancel:" if namespace == DEFAULT_NAMESPACE else f"{namespace}:cancel:".encode()


def done_prefix(namespace: str) -> bytes:
    """Channels that ring when a job has become terminal, or a scope is settled."""
    return f"{namespace}:done:".encode()


def rules_channel(namespace: str) -> bytes:
    """The channel that rings when a rule has been decided, or a job with children is asked to stop."""
    return f"{namespace}:rules".encode()


KEY_TABLE: tuple[tuple[str, str, str, str], ...] = (
    ("meta", "hash", "every role, once", "none: one key for each bus"),
    (
        "{s}:birth",
        "hash",
        "worker, watchdog, once",
        "none: by this mark other data is known for what it is; it says what `meta` says, too",
    ),
    ("{s}:job:<jid>", "hash", "every script", "none while live; 1 h after success, 24 h after failure or cancel"),
    (
        "{s}:queue:<queue>",
        "stream, group `busq`",
        "enqueue, workers, watchdog",
        "entries leave when their attempt ends",
    ),
    ("{s}:queues", "set", "enqueue, every cancel of a job with a hook", "one member for each queue name ever used"),
    (
        "{s}:scheduled",
        "sorted set, by due time",
        "enqueue, retry, promote, rewind",
        "members leave when due or cancelled",
    ),
    (
        "{s}:cancelled",
        "sorted set, by expiry",
        "cancel, expire",
        "members leave when the job ends or its entry is read; tombstones expire",
    ),
    ("{s}:tombstones", "hash", "cancel", "fields leave with their tombstone"),
    ("{s}:deadlines", "sorted set, by deadline", "cancel, expire, finalize, rewind", "members leave when the job ends"),
    (
        "{s}:timers",
        "sorted set, by moment",
        "enqueue, start, expire",
        "members leave when the job ends; only jobs with `expires` or `deadline` have one",
    ),
    ("{s}:ended:<state>", "sorted sets, by expiry", "every ending", "members leave when their record expires"),
    ("{s}:workers", "sorted set, by lease", "renew, rewind", "members leave when a worker leaves or is lost"),
    ("{s}:worker_info", "hash", "renew", "fields leave with the worker"),
    ("{s}:drains", "hash", "drain", "fields leave with the worker"),
    (
        "{s}:suspects",
        "sorted set, by time",
        "finalize, reclaim, every ending",
        "until the process is known to be gone, or a day",
    ),
    ("{s}:rules", "hash", "decide, revoke, carry_out", "fields leave when their rule is settled, over or revoked"),
    ("{s}:walk", "hash", "carry_out", "leaves when the rules that were there when it began are settled"),
    (
        "{s}:scope:<id>",
        "hash",
        "decide, revoke, carry_out, every ending",
        "none while its rule is live; 24 h after it is settled or revoked",
    ),
    ("{s}:children:<jid>", "sorted set, by admission", "enqueue, every ending", "members leave when the child ends"),
    (
        "{s}:fallen:<jid>",
        "set",
        "every ending of a failed child that has open children",
        "24 h; leaves when the job's cancel has been passed on",
    ),
    (
        "{s}:waiting",
        "sorted set, by time",
        "finish, every script that accepts a cancel or ends a cancelled attempt",
        "members leave when the job ends",
    ),
    (
        "{s}:cascades",
        "sorted set, by time",
        "every script that accepts a cancel",
        "members leave when the children have been told",
    ),
    ("{s}:keyed", "hash", "enqueue", "fields leave when the newest job of their key ends"),
    ("{s}:rate:<queue or group>", "string", "enqueue, where rates are set", "a minute after it has no say any more"),
    ("{s}:hooks", "hash", "declare", "fields leave when workers declare that the kind has no hook any more"),
    ("{s}:dead", "stream", "refuse, bury, finish", "until `busq dead purge` or `retry`"),
    ("{s}:events", "stream", "every script", "about the newest 100,000 entries"),
    ("{s}:counters", "hash", "every script", "none: two dozen fields"),
)

LEFT_WHEN_DRAINED: dict[str, str] = {
    "meta": "for good",
    "{s}:birth": "for good",
    "{s}:job:<jid>": "expires",
    "{s}:queue:<queue>": "for good, empty",
    "{s}:queues": "for good",
    "{s}:cancelled": "pruned",
    "{s}:tombstones": "pruned",
    "{s}:ended:<state>": "pruned",
    "{s}:suspects": "pruned",
    "{s}:scope:<id>": "expires",
    "{s}:fallen:<jid>": "expires",
    "{s}:rate:<queue or group>": "expires",
    "{s}:hooks": "for good",
    "{s}:dead": "for good",
    "{s}:events": "for good",
    "{s}:counters": "for good",
}
"""
What a bus may still hold when all of its jobs have ended and its processes have left, by row of the table of keys. What
expires has an expiry of its own; what is pruned holds members that a watchdog drops when their time is over.
"""
