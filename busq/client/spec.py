"""
A job not yet sent: what a producer says about it, checked here and now.

Whatever the caller got wrong is found before anything is sent, with the name of the field and what would do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

from busq.config import Settings
from busq.errors import QueueFull, RateLimited, UsageError
from busq.handlers import DEFAULT_QUEUE, Handler, HandlerOptions, check_kind
from busq.protocol.cancel import check_label
from busq.protocol.codec import encode_payload
from busq.protocol.durability import Durability, checked_durability
from busq.protocol.jids import check_jid, check_key, child_jid, keyed_jid, new_jid
from busq.protocol.tree import ON_PARENT_CANCEL, OnParentCancel
from busq.store.forms import NewJob

R_co = TypeVar("R_co", covariant=True)

MOST_TAGS = 32
MOST_QUEUE = 1_000_000_000
MOST_DELAY_S = 10 * 365 * 86_400.0  # ten years: beyond that somebody has mixed up seconds and milliseconds


class JobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """
    What one job may say for itself; None leaves it to the handler, then to the worker.

    Lengths of time in seconds. `delay`: not before that many seconds from now. `expires`: never started when it has
    waited longer than that for its first start. `deadline`: cancelled when it has not ended that long after its
    enqueueing, over all attempts. `parent`: the jid of the job whose child this is; `on_parent_cancel`: what becomes of
    it when that one is cancelled (`cancel`; `wait`: it goes on and the parent waits; `abandon`: it goes on alone).
    `key` with `supersede`: the older job of the same key, if it has not ended, is cancelled. `max_queue`: it is refused
    with `QueueFull` when as many jobs wait in its queue. `durability`: what is to be confirmed before the enqueue
    returns, "replicated" or "fsynced"; the handle's `confirmed` says what was.
    """

    jid: str | None = None
    queue: str | None = None
    delay: float | None = None
    group: str | None = None
    tags: Mapping[str, str] | None = None
    parent: str | None = None
    on_parent_cancel: OnParentCancel | None = None
    key: str | None = None
    supersede: bool | None = None
    retries: int | None = None
    timeout: float | None = None
    grace: float | None = None
    backoff: float | None = None
    backoff_max: float | None = None
    max_losses: int | None = None
    expires: float | None = None
    deadline: float | None = None
    max_queue: int | None = None
    durability: str | None = None

    def over(self, given: Mapping[str, Any]) -> JobOptions:
        """These options with `given` on top. Raise `UsageError` for a name that is none of them."""
        unknown = given.keys() - set(self.__struct_fields__)
        if unknown:
            raise UsageError(f"no option {sorted(unknown)[0]!r}; there are: {', '.join(self.__struct_fields__)}")
        return msgspec.structs.replace(self, **given)


class JobSpec(Generic[R_co]):
    """One job, ready to be sent. Made by `handler.spec(...)` and `bus.spec(kind, ...)`."""

    __slots__ = ("durability", "job", "result_type")

    def __init__(self, job: NewJob, result_type: Any, durability: Durability | None = None) -> None:
        self.job = job
        self.result_type = result_type
        self.durability = durability

    @property
    def jid(self) -> str:
        return self.job.jid

    @property
    def kind(self) -> str:
        return self.job.kind

    def __repr__(self) -> str:
        return f"<JobSpec {self.jid} ({self.kind}) for queue {self.job.queue!r}>"


def make_spec(
    settings: Settings, kind: str, handler: Handler | None, options: JobOptions, args: Any, kwargs: Any
) -> JobSpec[Any]:
    """
    Check and encode one job. `handler` None: this producer has not its code, and arguments travel as written.

    Raise `BadArguments`, `TooLarge`, `BadJid`, `ConfigError` or `UsageError`.
    """
    if handler is not None:
        args, kwargs = handler.bind(args, kwargs)
    else:
        check_kind(kind)
    durability = checked_durability(options.durability)
    _check_family(options)
    own = _options(kind, options, handler)
    delay_ms = _delay_ms(options.delay)
    _check_in_time(kind, delay_ms / 1000, own)
    payload = encode_payload(tuple(args), dict(kwargs), settings.payload_bytes)
    job = NewJob(
        jid=_jid(options),
        kind=kind,
        queue=own.queue or DEFAULT_QUEUE,
        payload=payload,
        delay_ms=delay_ms,
        fields=tuple(_fields(options, own, handler)),
        most=_most(options.max_queue),
    )
    return JobSpec(job, handler.result_type if handler is not None else Any, durability)


def _options(kind: str, options: JobOptions, handler: Handler | None) -> HandlerOptions:
    given = {
        "queue": options.queue,
        "retries": options.retries,
        "timeout_s": options.timeout,
        "grace_s": options.grace,
        "backoff_s": options.backoff,
        "backoff_max_s": options.backoff_max,
        "max_losses": options.max_losses,
        "expires_s": options.expires,
        "deadline_s": options.deadline,
    }
    given = {name: value for name, value in given.items() if value is not None}
    base = HandlerOptions() if handler is None else handler.options
    if not given:
        return base
    return msgspec.structs.replace(base, **given).checked(kind)


def _jid(options: JobOptions) -> str:
    if options.parent is not None:
        check_jid(options.parent)
    if options.jid is not None:
        return check_jid(options.jid)
    if options.parent is not None:
        return child_jid(options.parent)
    return new_jid() if options.key is None else keyed_jid(options.key)


def _check_family(options: JobOptions) -> None:
    """What a job says of its parent, and of the one that it takes the place of. Raise `UsageError`."""
    policy = options.on_parent_cancel
    if policy is not None and policy not in ON_PARENT_CANCEL:
        raise UsageError(f"on_parent_cancel: {policy!r} will not do; it takes one of: {', '.join(ON_PARENT_CANCEL)}")
    if policy is not None and options.parent is None:
        raise UsageError(f"on_parent_cancel: {policy!r} is for a child, and this job has no parent; give parent= too")
    if options.supersede not in (None, True, False):
        raise UsageError(f"supersede: {options.supersede!r} will not do; it takes True or False")
    if options.key is None:
        if options.supersede:
            raise UsageError("supersede: which jobs this one takes the place of is said by a key; give key= too")
        return
    check_key(options.key)
    if not options.supersede:
        raise UsageError(f"key: {options.key!r} is there for supersede=True, which was not given; give both or neither")


def _most(max_queue: int | None) -> int:
    if max_queue is None:
        return 0
    if isinstance(max_queue, bool) or not isinstance(max_queue, int) or not 1 <= max_queue <= MOST_QUEUE:
        raise UsageError(f"max_queue: {max_queue!r} will not do; it takes a number of jobs, 1 to {MOST_QUEUE:,}")
    return max_queue


def over_limit(
    job: NewJob, answer: tuple[Any, ...], jids: list[str], settings: Settings, shards: int
) -> QueueFull | RateLimited:
    """The error for a job that was over a limit; `jids` are those of the call that were refused so."""
    if answer[0] == "full":
        return QueueFull(job.queue, answer[2], math.ceil((job.most or settings.queue_limit or 0) / shards), jids)
    what, wait_ms = answer[2:]
    name, rate = (job.queue, settings.queue_rate) if what == "queue" else (job.said("group"), settings.group_rate)
    return RateLimited(what, name or "", rate or 0.0, wait_ms / 1000, jids)


def _delay_ms(delay: float | None) -> int:
    if delay is None:
        return 0
    if isinstance(delay, bool) or not isinstance(delay, int | float) or not math.isfinite(delay) or delay < 0:
        raise UsageError(f"delay: {delay!r} will not do; it takes seconds from now, 0 or more")
    if delay > MOST_DELAY_S:
        raise UsageError(f"delay: {delay!r} s is more than ten years; it takes seconds, not milliseconds")
    return math.ceil(delay * 1000)


def _check_in_time(kind: str, delay: float, own: HandlerOptions) -> None:
    for name, seconds in (("expires", own.expires_s), ("deadline", own.deadline_s)):
        if delay and seconds is not None and seconds <= delay:
            raise UsageError(
                f"{name}: {seconds:g} s are over when the delay of {delay:g} s is, so this {kind!r} would never start; "
                f"{name} runs from the enqueueing too, so give it more than the delay"
            )


def _fields(options: JobOptions, own: HandlerOptions, handler: Handler | None) -> list[str | int]:
    """Further fields of the record, names and values in turn."""
    fields: list[str | int] = []
    for name, value in (("retries", own.retries), ("max_losses", own.max_losses)):
        if value is not None:
            fields += (name, value)
    for name, seconds in (
        ("timeout", own.timeout_s),
        ("grace", own.grace_s),
        ("backoff", own.backoff_s),
        ("backoff_max", own.backoff_max_s),
        ("expires", own.expires_s),
        ("due_by", own.deadline_s),
    ):
        if seconds is not None:
            fields += (name, round(seconds * 1000))
    if own.late_success == "keep":
        fields += ("late", "keep")
    if handler is not None and handler.hook is not None:
        # Known by the record itself, the hook runs also for a job that is cancelled before any worker was there.
        fields += ("on_cancel", str(handler.hook.occasion))
    if options.group is not None:
        fields += ("group", check_label(options.group, "group"))
    if options.tags:
        fields += ("tags", msgspec.json.encode(_tags(options.tags)).decode())
    if options.parent is not None:
        fields += ("parent", options.parent)
    if options.on_parent_cancel not in (None, "cancel"):
        fields += ("policy", str(options.on_parent_cancel))
    if options.key is not None:
        fields += ("key", options.key)
    return fields


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    if len(tags) > MOST_TAGS:
        raise UsageError(f"tags: {len(tags)} were given; a job takes at most {MOST_TAGS}")
    for name, value in tags.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise UsageError(f"tags: {name!r}: {value!r} will not do; names and values are text")
    return {check_label(name, "a tag"): check_label(value, f"tag {name!r}") for name, value in tags.items()}
