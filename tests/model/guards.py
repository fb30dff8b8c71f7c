"""
What the walks are worth: guards of the scripts that are taken out, and how many walks it takes to notice.

    python -m tests.model.guards [WALKS]

starts a server of its own, takes out one guard at a time and walks until the model disagrees, at most WALKS times (if
left out 1,000), each time from a fresh seed. It ends with the count of those that were noticed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from busq.store import scripts
from tests.model.test_walk import HOW, walking
from tests.servers import RedisServer, find_redis_server
from tests.store.test_guards import sabotaged


@dataclass(frozen=True)
class Guard:
    """`old` stands in the source of `script`, once; `new` stands there without the guard."""

    about: str
    script: str
    old: str
    new: str


GUARDS = (
    # Tombstones
    Guard("the first cause of a tombstone stands", "cancel", "tonumber(before) > now then", "false then"),
    Guard(
        "a tombstone is never shortened",
        "cancel",
        "or tonumber(before) >= tonumber(expiry) then",
        "then",
    ),
    Guard(
        "the same request does not put a tombstone off",
        "cancel",
        "string.sub(kept, -#request) == request",
        "false",
    ),
    Guard(
        "a tombstone that is over stops nothing", "enqueue", "mark and wish and tonumber(mark) > now", "mark and wish"
    ),
    Guard("a tombstone stops one job", "enqueue", "redis.call('HDEL', tombstones, jid)\n      n = ", "n = "),
    Guard("what is over leaves with its jid", "enqueue", "if mark then redis.call('ZREM', cancelled, jid) end", ""),
    # Pruning
    Guard(
        "members for live jobs stay",
        "prune",
        "'ZRANGEBYSCORE', cancelled, '-inf', stamp",
        "'ZRANGEBYSCORE', cancelled, '-inf', '+inf'",
    ),
    Guard(
        "a tombstone stays as long as it was asked for",
        "prune",
        "'ZRANGEBYSCORE', cancelled, '-inf', stamp",
        "'ZRANGEBYSCORE', cancelled, '-inf', now + 20000",
    ),
    Guard("a tombstone leaves whole", "prune", "redis.call('HDEL', tombstones, unpack(over))", ""),
    Guard("suspects stay as long as they are to", "prune", "now - tonumber(suspect_ms)", "now"),
    Guard("ended jobs stay listed", "prune", "index, '-inf', stamp", "index, '-inf', '+inf'"),
    # Clean-ups
    Guard("a clean-up is immune to rules", "carry_out", "if is_hook(facts.kind) then return nil, facts end", ""),
    Guard("a job has one clean-up", "start", "not was[1] and not was[2] and is_wanted", "not was[2] and is_wanted"),
    Guard(
        "a job without attempts is spared", "cancel", "occasion == 'attempted' and tonumber(attempt) > 0", "occasion"
    ),
    Guard("a declared hook counts", "cancel", "ties.on_cancel or declared(kind)", "ties.on_cancel"),
    Guard("the worker's word counts", "start", "put(fields, 'on_cancel', ARGV[kind_at + 8])", ""),
    Guard("a clean-up finds what was saved", "finish", "put(more, 'saved', was[9])", ""),
    Guard("a clean-up has a place of its own", "finish", "(was[2] or '') .. '/on_cancel'", "(was[2] or '')"),
    Guard("a clean-up's jid says its shard", "finalize", "string.match(prefix, '{(%d+)}')", "0"),
    Guard("a lost clean-up is told of", "reclaim", "if is_hook(was[7]) then tell_parent", "if false then tell_parent"),
    Guard(
        "a clean-up runs again on another worker",
        "reclaim",
        "requeue(job, fields, n, attempt, owner)",
        "answers[#answers + 1] = { 'reclaimed', 'queued' }",
    ),
    Guard(
        "a cancelled clean-up is told of",
        "cancel",
        "tell_parent(job, 'hook_ended', attempt, 'cancelled, ' .. ended)",
        "",
    ),
    Guard("a clean-up that failed is told of", "retry", "if told.hook then", "if false then"),
    # Workers that are gone
    Guard(
        "killed is claimed of the known gone only",
        "finalize",
        "ARGV[at] == '1' and 'killed' or 'abandoned'",
        "'killed'",
    ),
    Guard("the known gone are no suspects", "finalize", "ended == 'abandoned' and not was[8]", "not was[8]"),
    Guard(
        "who is listed is not listed twice", "finalize", "ended == 'abandoned' and not was[8]", "ended == 'abandoned'"
    ),
    Guard("how an attempt ended stands", "finalize", "was[8] or (ARGV", "(ARGV"),
    Guard("no finalize before the deadline", "finalize", "deadline > now", "false"),
    Guard("an unproven end is suspect", "reclaim", "if ended == 'abandoned' then", "if false then"),
    Guard("a good lease keeps what it holds", "reclaim", "lease and tonumber(lease) > now", "false"),
    Guard("who holds something is not forgotten", "forget", "if held > 0 then", "if false then"),
    Guard("who is alive is not forgotten", "forget", "if own_wish ~= '1' and lease", "if false and lease"),
    Guard("a wish to drain leaves with its worker", "forget", "redis.call('HDEL', drains, worker)", ""),
    Guard(
        "nobody unknown is asked to drain", "drain", "if not lease then return { 'missing' } end", "lease = lease or 0"
    ),
    # The cancelled set
    Guard("a read entry leaves no mark", "start", "then was_read(jid_of(job)) end", "then end"),
    Guard("another entry is not the unread one", "start", "and was[2] == entry then was_read", "then was_read"),
    Guard(
        "a start that is sent again is told what it began", "start", "was[5] == token and 'gone' or 'stale'", "'stale'"
    ),
    Guard("who was taken over settles nothing", "finish", "then now_at[2] = nil", "then"),
    Guard("an unread entry leaves a mark", "cancel", "if state == 'queued' then unread[jid] = true end", ""),
)


@contextmanager
def without(guard: Guard) -> Iterator[None]:
    whole = scripts.load

    def load(name: str, **how: bool) -> scripts.Script:
        script = whole(name, **how)
        return sabotaged(script, guard.old, guard.new) if name == guard.script else script

    scripts.load = load
    try:
        yield
    finally:
        scripts.load = whole


def noticed(url: str, most: int) -> tuple[int, str]:
    """How many walks it took until one disagreed, and what it found; "" when none of so many did."""
    walks, found = 0, ""
    with walking(url) as machine:
        run = machine.run

        def watched(step: Awaitable[Any]) -> Any:
            nonlocal found
            try:
                return run(step)
            except AssertionError as error:
                found = found or (str(error) or repr(error)).splitlines()[0]
                raise

        def counted(begin: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
            async def begun() -> None:
                nonlocal walks
                walks += not found  # one that disagrees is tried once more
                await begin()

            return begun

        machine.run = staticmethod(watched)
        for walk in machine.walks.values():
            walk.begin = counted(walk.begin)
        try:
            run_state_machine_as_test(machine, settings=settings(max_examples=most, phases=[Phase.generate], **HOW))
        except Exception:
            if not found:
                raise
    return walks, found


def main() -> int:
    logging.disable(logging.CRITICAL)
    most = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    server = RedisServer(find_redis_server() or sys.exit("no redis-server on PATH"))
    missed = []
    for guard in GUARDS:
        server.flush()
        with without(guard):
            walks, found = noticed(server.url, most)
        print(f"{walks if found else f'not in {most}'}\t{guard.script}: {guard.about}\t{found[:160]}", flush=True)
        missed += [guard] * (not found)
    server.close()
    print(f"{len(GUARDS) - len(missed)} of {len(GUARDS)} guards were noticed by the walks when they were taken out")
    return len(missed)


if __name__ == "__main__":
    sys.exit(main())
