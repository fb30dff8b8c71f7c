"""
Wide cancels: deciding them, looking how far they are, taking them back.

A rule is written into each shard by one script, whatever its backlog; from then on whoever touches a job judges it
(`lua/lib/judge.lua`). A watchdog walks the records afterwards (`carry_out`), and workers hear one announcement.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from busq.errors import TooManyRules
from busq.protocol.cancel import Verdict
from busq.protocol.job import moment, text
from busq.protocol.scope import Filter, Rule, ScopeLook, ScopeState, Survey
from busq.store import watch
from busq.store.confirming import Confirming
from busq.store.connection import reaching
from busq.store.forms import in_ms
from busq.store.store import Store

LIVE_RULES = 100  # in one shard: every script that touches a job reads them all
STEP = 200  # records in one step of a survey
FOR_EVER_MS = 253_402_300_799_000  # the last moment of the year 9999


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A rule as written down. Scripts read all of it but `filter` and `standing`; `grace_ms` "": the job's own."""

    id: str
    filter: Filter
    reason: str = ""
    source: str = ""
    grace_ms: int | str = ""
    standing: bool = False


class Scopes:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def decide(
        self,
        scope: str,
        filter: Filter,
        *,
        reason: str = "",
        source: str = "",
        grace_s: float | None = None,
        standing: bool = False,
        until: datetime | timedelta | None = None,
        cutoffs: Mapping[int, int] | None = None,
        confirming: Confirming | None = None,
    ) -> None:
        """
        Decide that all jobs which fit shall stop: those admitted so far, in each shard in one step; with `standing`
        later ones too, up to `until`: a moment, or a length of time by the clock of each shard's own server. Sent again
        under the same name it changes nothing.

        `cutoffs`: by shard, the admission number up to which jobs count, as `survey` gives them. Raise `TooManyRules`
        or `BusUnavailable`; either may come when some shards have decided already, and then the call may be repeated.
        """
        stored = _Stored(
            id=scope,
            filter=filter,
            reason=reason,
            source=source,
            grace_ms="" if grace_s is None else in_ms(grace_s),
            standing=standing,
        )
        for shard in range(self._store.shards):
            answer = await self._store.run(
                "decide",
                shard,
                (),
                (),
                named={
                    "scope": scope,
                    "condition": msgspec.json.encode(filter.condition()),
                    "rule": msgspec.json.encode(stored),
                    "cutoff": "" if cutoffs is None else cutoffs[shard],
                    "until_ms": await self._until_ms(shard, until) if standing else 0,
                    "most": LIVE_RULES,
                },
                confirming=confirming,
            )
            if answer[0] == b"crowded":
                raise TooManyRules(
                    f"{int(answer[1])} rules are live in shard {shard}, as many as may be: nothing was decided there. "
                    "Wait until a watchdog has settled some, revoke standing ones (`busq rules`), or cover more jobs "
                    "with one call"
                )

    async def _until_ms(self, shard: int, until: datetime | timedelta | None) -> int:
        if until is None:
            return FOR_EVER_MS
        if isinstance(until, datetime):
            return round(until.timestamp() * 1000)
        # The servers of a cluster have clocks of their own, and each shard compares by its own.
        return round(await watch.server_now_ms(self._store, shard)) + in_ms(until.total_seconds())

    async def revoke(self, scope: str) -> ScopeState | None:
        """
        Take a rule back: it decides nothing any more, and what it has stopped stays stopped. None: no such scope.

        Answers the state that it is in now, `revoked` or, when there was nothing left to take back, `settled`.
        """
        heard = [
            await self._store.run("revoke", shard, (), (), named={"scope": scope})
            for shard in range(self._store.shards)
        ]
        states = {ScopeState(answer[1].decode()) for answer in heard if answer[0] != b"missing"}
        return _together(states) if states else None

    # Looking -------------------------------------------------------------------------------------------

    async def look(self, scope: str) -> ScopeLook | None:
        """How far a scope is, over all shards; None when there is none of this name, or its time is over."""
        found: list[Mapping[bytes, bytes]] = []
        walks: list[Mapping[bytes, bytes]] = []
        for shard in range(self._store.shards):
            keys = self._store.keys(shard)
            with reaching(self._store.connections.place):
                pipe = self._store.redis.pipeline(transaction=False)
                pipe.hgetall(keys.scope(scope))
                pipe.hgetall(keys.walk)
                own, walk = await pipe.execute()
            if own:
                found.append(own)
                # A walk that began before the rule was made does not settle it: the next one will.
                meant = int(own.get(b"number", 0)) <= int(walk.get(b"upto", 0))
                walks.append(walk if meant and own.get(b"state") == b"settling" else {})
        if not found:
            return None
        counts = Counter({str(Verdict.CANCELLED): 0, str(Verdict.SIGNALLED): 0})
        endings: Counter[str] = Counter()
        for own in found:
            for field, value in own.items():
                sort, _, word = field.decode().partition(":")
                if sort in ("v", "e"):
                    (counts if sort == "v" else endings)[word] += int(value)
        return ScopeLook(
            id=scope,
            state=_together({_state(own) for own in found}),
            counts=dict(counts),
            endings=dict(endings),
            unfinished=sum(int(own.get(b"unfinished", 0)) for own in found),
            examined=sum(int(walk.get(b"examined", 0)) for walk in walks),
            total=sum(int(walk.get(b"total", 0)) for walk in walks),
        )

    async def rules(self) -> list[Rule]:
        """Every live rule, the oldest first."""
        found: dict[str, list[Mapping[bytes, bytes]]] = {}
        for shard in range(self._store.shards):
            keys = self._store.keys(shard)
            with reaching(self._store.connections.place):
                held = await self._store.redis.hgetall(keys.rules)
                scopes = [_scope_of(value) for number, value in held.items() if number.isdigit()]
                if not scopes:
                    continue
                pipe = self._store.redis.pipeline(transaction=False)
                for scope in scopes:
                    pipe.hgetall(keys.scope(scope))
                answers = await pipe.execute()
            for scope, own in zip(scopes, answers, strict=True):
                if own:
                    found.setdefault(scope, []).append(own)
        rules = [_rule(scope, owns) for scope, owns in found.items()]
        return sorted(rules, key=lambda rule: (rule.decided_at is None, rule.decided_at, rule.id))

    async def survey(self, filter: Filter) -> tuple[Survey, dict[int, int]]:
        """
        What a rule would hit, were it decided now; and by shard the admission number up to which was counted.

        In steps: a job that moves meanwhile is counted once, in the state in which it was met. Keeps 8 bytes and the
        set's own share for each job that fits.
        """
        condition = msgspec.json.encode(filter.condition())
        kinds: Counter[str] = Counter()
        queues: Counter[str] = Counter()
        states: Counter[str] = Counter()
        seen: set[int] = set()
        sum_of_marks = 0
        cutoffs: dict[int, int] = {}
        for shard in range(self._store.shards):
            with reaching(self._store.connections.place):
                cutoffs[shard] = int(await self._store.redis.hget(self._store.keys(shard).counters, "enqueued") or 0)
            async for jid, kind, queue, state in self._fitting(shard, condition, cutoffs[shard]):
                mark = int.from_bytes(hashlib.blake2b(jid, digest_size=8).digest())
                if mark in seen:
                    continue
                seen.add(mark)
                sum_of_marks = (sum_of_marks + mark) & 0xFFFF_FFFF_FFFF_FFFF
                kinds[text(kind) or ""] += 1
                queues[text(queue) or ""] += 1
                states[text(state) or ""] += 1
        counted = [dict(sorted(each.items())) for each in (kinds, queues, states)]
        digest = hashlib.blake2b(msgspec.json.encode([counted, sum_of_marks]), digest_size=8).hexdigest()
        survey = Survey(jobs=len(seen), kinds=counted[0], queues=counted[1], states=counted[2], digest=digest)
        return survey, cutoffs

    async def _fitting(
        self, shard: int, condition: bytes, cutoff: int
    ) -> AsyncIterator[tuple[bytes, bytes, bytes, bytes]]:
        """Jid, kind, queue and state of what fits, step by step; perhaps twice when it moves meanwhile."""
        at_ms = await watch.server_now_ms(self._store, shard)
        queues = [f"queue:{queue}" for queue in await watch.queues(self._store, shard)]
        for place in ("scheduled", "waiting", *queues):
            cursor = b"0"
            while cursor:
                named: dict[str, Any] = {
                    "condition": condition,
                    "at_ms": round(at_ms),
                    "cutoff": cutoff,
                    "place": place,
                    "cursor": cursor,
                    "step": STEP,
                }
                cursor, *found = await self._store.run("survey", shard, (), (), named=named)
                for i in range(0, len(found), 4):
                    yield found[i], found[i + 1], found[i + 2], found[i + 3]


def _scope_of(value: bytes) -> str:
    return msgspec.json.decode(value.partition(b"\n")[2], type=_Stored).id


def _state(own: Mapping[bytes, bytes]) -> ScopeState:
    return ScopeState((own.get(b"state") or b"settled").decode())


_ORDER = (ScopeState.SETTLING, ScopeState.STANDING, ScopeState.REVOKED, ScopeState.SETTLED)


def _together(states: set[ScopeState]) -> ScopeState:
    """Of several shards the one that is furthest behind."""
    return next(state for state in _ORDER if state in states)


def _rule(scope: str, owns: Sequence[Mapping[bytes, bytes]]) -> Rule:
    own = owns[0]
    stored = msgspec.json.decode(own[b"rule"], type=_Stored)
    until_ms = int(own.get(b"until") or 0)
    return Rule(
        id=scope,
        filter=stored.filter,
        standing=stored.standing,
        until=moment(str(until_ms)) if 0 < until_ms < FOR_EVER_MS else None,
        reason=stored.reason,
        source=stored.source,
        grace_s=int(stored.grace_ms) / 1000 if stored.grace_ms != "" else None,
        decided_at=moment(own.get(b"at")),
        by=text(own.get(b"by")) or "",
        state=_together({_state(each) for each in owns}),
    )
