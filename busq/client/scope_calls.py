"""
The calls of a bus that cancel by what jobs are, and not by their jids.

A filter is decided once, in one step whose cost does not grow with the number of jobs: this side checks what the
caller said, chooses the scope's id and sends it; which jobs match is for the scripts alone to judge.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, overload

from busq.client.scope import Scope
from busq.errors import PictureChanged, UsageError
from busq.protocol.cancel import checked_seconds, clean_words
from busq.protocol.durability import DurabilityWord, checked_durability, together
from busq.protocol.jids import new_jid
from busq.protocol.scope import Filter, Rule, Survey, check_moment, check_standing

if TYPE_CHECKING:
    from busq.client.link import Link

Until = datetime | timedelta | float


class Wish(TypedDict, total=False):
    """How a filter is cancelled. See `ScopeCalls.cancel_where`."""

    standing: bool
    until: Until | None
    expect: str | None
    reason: str
    source: str
    grace: float | None
    durability: DurabilityWord


class FilteredWish(Wish, total=False):
    """The same, with what jobs are chosen by."""

    group: str | None
    kind: str | None
    queue: str | None
    tags: Mapping[str, str] | None
    worker: str | None
    jid_prefix: str | None
    enqueued_before: datetime | None
    descendants_of: str | None
    where: str | None
    everything: bool


class ScopeCalls(abc.ABC):
    """What `Bus` can do by filter."""

    @abc.abstractmethod
    async def _link(self) -> Link: ...

    @overload
    async def cancel_where(self, *, dry_run: Literal[True], **wish: Unpack[FilteredWish]) -> Survey: ...
    @overload
    async def cancel_where(self, *, dry_run: Literal[False] = False, **wish: Unpack[FilteredWish]) -> Scope: ...
    @overload
    async def cancel_where(self, *, dry_run: bool, **wish: Unpack[FilteredWish]) -> Scope | Survey: ...

    async def cancel_where(
        self,
        *,
        group: str | None = None,
        kind: str | None = None,
        queue: str | None = None,
        tags: Mapping[str, str] | None = None,
        worker: str | None = None,
        jid_prefix: str | None = None,
        enqueued_before: datetime | None = None,
        descendants_of: str | None = None,
        where: str | None = None,
        everything: bool = False,
        standing: bool = False,
        until: Until | None = None,
        dry_run: bool = False,
        expect: str | None = None,
        reason: str = "",
        source: str = "",
        grace: float | None = None,
        durability: DurabilityWord = None,
    ) -> Scope | Survey:
        """
        Ask every job to stop that matches all of these conditions, and was admitted before this call.

        Decided when this returns, whatever the backlog: no matching job starts any more, and records are settled
        afterwards. Jobs enqueued later are not hit unless `standing=True`: a rule that stands `until` a moment (aware
        datetime, or seconds or a timedelta from now), or until it is revoked. `where` is an expression over record and
        arguments, as `"args.path ^= '/tmp/' and attempt > 1"`; no condition at all is refused unless `everything=True`.

        `dry_run=True` cancels nothing and gives a `Survey`: counts, and a digest of the picture. `expect=digest` looks
        again just before deciding, and cancels what it saw; it raises `PictureChanged` when that is another picture.
        `reason`, `source`, `grace` (seconds) and `durability` as for `cancel`; the scope's `confirmed` says how far the
        decision has got. Raise `UsageError`, `BadWhere`, `TooManyRules` or
        `BusUnavailable`.
        """
        conditions = Filter(
            group=group,
            kind=kind,
            queue=queue,
            tags=tags,
            worker=worker,
            jid_prefix=jid_prefix,
            enqueued_before=enqueued_before,
            descendants_of=descendants_of,
            where=where,
            everything=everything,
        ).checked()
        _check(conditions, standing=standing, until=until, expect=expect)
        reason, source = clean_words(reason, "reason"), clean_words(source, "source")
        grace_s = checked_seconds(grace, "grace")
        span = None if until is None else _span(until)
        asked = checked_durability(durability)
        link = await self._link()
        cutoffs = None
        if dry_run or expect is not None:
            survey, cutoffs = await link.scopes.survey(conditions)
            if expect is not None and survey.digest != expect:
                raise PictureChanged(expect, survey)
            if dry_run:
                return survey
        scope = Scope(self, f"s-{new_jid()}")
        confirming = link.confirming(together([asked]))
        await link.scopes.decide(
            scope.id,
            conditions,
            reason=reason,
            source=source,
            grace_s=grace_s,
            standing=standing,
            until=None if span is None else await _checked_end(link, span),
            cutoffs=cutoffs,  # those of the survey: what has come since then was not in the picture
            confirming=confirming,
        )
        if confirming is not None:
            scope.confirmed = confirming.answer(asked)
        return scope

    @overload
    async def cancel_group(self, group: str, /, *, dry_run: Literal[True], **wish: Unpack[Wish]) -> Survey: ...
    @overload
    async def cancel_group(self, group: str, /, *, dry_run: Literal[False] = False, **wish: Unpack[Wish]) -> Scope: ...
    async def cancel_group(self, group: str, /, *, dry_run: bool = False, **wish: Unpack[Wish]) -> Scope | Survey:
        """Ask the jobs of a group to stop. See `cancel_where`."""
        return await self.cancel_where(group=group, dry_run=dry_run, **wish)

    @overload
    async def cancel_kind(self, kind: str, /, *, dry_run: Literal[True], **wish: Unpack[Wish]) -> Survey: ...
    @overload
    async def cancel_kind(self, kind: str, /, *, dry_run: Literal[False] = False, **wish: Unpack[Wish]) -> Scope: ...
    async def cancel_kind(self, kind: str, /, *, dry_run: bool = False, **wish: Unpack[Wish]) -> Scope | Survey:
        """Ask the jobs of a kind to stop. See `cancel_where`."""
        return await self.cancel_where(kind=kind, dry_run=dry_run, **wish)

    @overload
    async def cancel_descendants(self, jid: str, /, *, dry_run: Literal[True], **wish: Unpack[Wish]) -> Survey: ...
    @overload
    async def cancel_descendants(
        self, jid: str, /, *, dry_run: Literal[False] = False, **wish: Unpack[Wish]
    ) -> Scope: ...
    async def cancel_descendants(self, jid: str, /, *, dry_run: bool = False, **wish: Unpack[Wish]) -> Scope | Survey:
        """Ask the children of a job to stop, theirs and so on; the job itself goes on. See `cancel_where`."""
        return await self.cancel_where(descendants_of=jid, dry_run=dry_run, **wish)

    def scope(self, id: str) -> Scope:
        """The handle of a scope that was decided before, here or elsewhere. Nothing is read yet."""
        return Scope(self, id)

    async def rules(self) -> list[Rule]:
        """The live rules: scopes that are being settled, and standing ones."""
        return await (await self._link()).scopes.rules()

    async def revoke(self, rule_id: str) -> bool:
        """Take a rule back. See `Scope.revoke`."""
        return await self.scope(rule_id).revoke()


def _check(conditions: Filter, *, standing: bool, until: Until | None, expect: str | None) -> None:
    if until is not None and not standing:
        raise UsageError(
            "until: only a standing rule has an end; give standing=True with it, or leave it out: without, a cancel "
            "hits what is there at this moment"
        )
    if standing and expect is not None:
        raise UsageError(
            "expect: a standing rule also hits jobs that no dry run has seen, so no digest can vouch for it; cancel "
            "with expect= first, then make the rule"
        )
    if standing:
        check_standing(conditions)


def _span(until: Until) -> datetime | timedelta:
    """A moment, or a length of time from now. Raise `UsageError` for anything else."""
    wanted = "it takes an aware datetime, or seconds or a timedelta from now"
    if isinstance(until, datetime):
        return check_moment(until, "until")
    if isinstance(until, timedelta):
        seconds = until.total_seconds()
    elif isinstance(until, int | float) and not isinstance(until, bool):
        seconds = until
    else:
        raise UsageError(f"until: {until!r} will not do; {wanted}")
    if not seconds > 0 or not math.isfinite(seconds):
        raise UsageError(f"until: {seconds:g} s from now will not do; {wanted}, more than 0")
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        raise UsageError(f"until: {until!r} is too far away; leave it out, and the rule stands until revoked") from None


async def _checked_end(link: Link, span: datetime | timedelta) -> datetime | timedelta:
    """The same, if by the server's clock it is to come; raise `UsageError` when it is over already, or never comes."""
    now = await link.reader.now()
    if isinstance(span, datetime):
        if span <= now:
            raise UsageError(f"until: {span.isoformat()} is over; by the server's clock it is {now.isoformat()}")
        return span
    try:
        now + span
    except OverflowError:
        raise UsageError(f"until: {span} from now is too far away; leave it out, and the rule stands") from None
    return span
