"""Hooks as declared: what is refused and why, where they run, and how their one argument is made."""

from __future__ import annotations

from datetime import date
from functools import partial
from typing import Any

import pytest

import busq
from busq.callables import Pool
from busq.config import Settings
from busq.errors import BadArguments, BadPayload, ConfigError, UsageError
from busq.handlers import Handler, Handlers
from busq.hooks import Hook
from busq.protocol.cancel import Cause, Ended
from busq.protocol.codec import encode_payload, encode_result
from busq.protocol.hook import hook_kind, hook_queue, is_hook, read_clean_up, without_hook, write_clean_up
from busq.worker.reception import terms_of


def declared(function: Any = None, **options: Any) -> Any:
    async def sends(to: str, /, when: date, *more: int, copies: int = 1, **named: Any) -> None: ...

    return busq.Bus().job(**options)(function or sends)


async def cleans(job: busq.CancelledJob) -> None: ...


def cleans_in_a_thread(job: busq.CancelledJob) -> None: ...


def hook_of(handler: Any) -> Hook:
    hook = handler.handler.hook
    assert isinstance(hook, Hook)
    return hook


def facts(payload: bytes = b"", saved: bytes = b"") -> bytes:
    return write_clean_up(payload, "j", 2, "user", "enough", "tests", "confirmed", saved)


# Declaring -------------------------------------------------------------------------------------------------


def test_a_hook_is_declared_with_and_without_options_and_its_function_stays_as_it_is() -> None:
    plain, given = declared(), declared()
    assert plain.on_cancel(cleans) is cleans
    assert given.on_cancel(timeout=3, retries=1, never_started=False)(cleans) is cleans
    assert hook_of(plain).kind == hook_kind(plain.kind) == "sends/on_cancel"
    settings = Settings.load({}, hook_limit_s=7)
    told, told_too = terms_of(hook_of(plain), settings), terms_of(hook_of(given), settings)
    assert (told.timeout_ms, told.retries, told.grace_ms, told.occasion) == (7000, 3, 1000, "")
    assert (told_too.timeout_ms, told_too.retries) == (3000, 1)
    assert terms_of(plain.handler, settings).occasion == "always"
    assert terms_of(given.handler, settings).occasion == "attempted"
    assert terms_of(declared().handler, settings).occasion == ""
    assert Settings().hook_limit_s == 10.0


@pytest.mark.parametrize(
    ("pool", "hook", "where"),
    [
        (None, cleans, Pool.COROUTINE),
        (None, cleans_in_a_thread, Pool.THREAD),
        ("thread", cleans_in_a_thread, Pool.THREAD),
        ("process", cleans_in_a_thread, Pool.PROCESS),
        ("process", cleans, Pool.COROUTINE),
    ],
)
def test_a_hook_runs_where_its_handler_does_or_in_its_loop(pool: str | None, hook: Any, where: Pool) -> None:
    def works() -> None: ...

    handler = declared(None if pool is None else works, pool=pool)
    handler.on_cancel(hook)
    assert hook_of(handler).pool is where


async def _yields(job: Any) -> Any:
    yield job


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: None, "is called with one argument"),
        (lambda job, more: None, "missing a required argument: 'more'"),
        (lambda *, job: None, "does not take that"),
        (_yields, "is a generator"),
        (int, "is a class"),
        ("cleans", "cannot be called"),
    ],
)
def test_a_function_that_is_no_hook_is_refused(function: Any, words: str) -> None:
    handler = declared()
    with pytest.raises(ConfigError, match=words):
        handler.on_cancel(function)
    assert handler.handler.hook is None
    handler.on_cancel(cleans)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": "5"}, {"retries": -1}, {"retries": 1.5}])
def test_an_option_that_will_not_do_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"'sends/on_cancel': {next(iter(options))}"):
        declared().on_cancel(**options)(cleans)


def test_a_handler_has_one_hook() -> None:
    handler = declared()
    handler.on_cancel(cleans)
    with pytest.raises(ConfigError, match=r"'sends' has an on_cancel hook already, tests.*cleans \(line"):
        handler.on_cancel(cleans_in_a_thread)
    assert hook_of(handler).function is cleans


def test_a_handler_is_no_hook() -> None:
    handler, other = declared(), declared()
    with pytest.raises(ConfigError, match="is a handler"):
        handler.on_cancel(other)


def test_what_takes_one_argument_in_the_end_is_a_hook() -> None:
    def cleans(where: str, job: busq.CancelledJob, often: int = 1) -> None: ...

    handler = declared()
    handler.on_cancel(partial(cleans, "here"))
    assert hook_of(handler).pool is Pool.THREAD


# Beside the handlers ---------------------------------------------------------------------------------------


def test_hooks_are_found_by_their_kind_and_shown_nowhere_else() -> None:
    bus = busq.Bus()

    @bus.job(queue="media")
    async def encode() -> None: ...

    @bus.job(queue="media", pool="thread")
    def decode() -> None: ...

    @bus.job
    async def plain() -> None: ...

    def pools(handlers: list[Handler]) -> set[Pool]:
        return {handler.pool for handler in handlers}

    handlers: Handlers = bus.handlers
    assert not handlers.have_hooks
    decode.on_cancel(cleans_in_a_thread)
    assert handlers.have_hooks
    assert handlers.get("decode/on_cancel") is hook_of(decode)
    assert handlers.kinds() == ["decode", "encode", "plain"]
    assert handlers.near("decode/on_cance") == []
    assert handlers.queues() == {"default", "media"}
    assert pools(handlers.of_queue("media")) == {Pool.COROUTINE, Pool.THREAD}
    assert pools(handlers.of_queue("default")) == {Pool.COROUTINE}
    assert pools(handlers.of_queue(hook_queue("media"))) == {Pool.THREAD}
    assert pools(handlers.of_queue(hook_queue("elsewhere"))) == {Pool.THREAD}
    plain.on_cancel(cleans)
    assert pools(handlers.of_queue(hook_queue("media"))) == {Pool.THREAD}
    assert pools(handlers.of_queue(hook_queue("elsewhere"))) == {Pool.THREAD, Pool.COROUTINE}


def test_a_hook_cannot_be_enqueued() -> None:
    handler = declared()
    handler.on_cancel(cleans)
    with pytest.raises(UsageError, match="runs by itself after a cancelled job"):
        hook_of(handler).bind((), {})


def test_the_names_of_clean_ups_are_told_from_those_of_users() -> None:
    assert hook_queue("q") == hook_queue(hook_queue("q")) == "q/on_cancel"
    assert without_hook("q/on_cancel") == without_hook("q") == "q"
    assert is_hook(hook_kind("on_cancel"))
    assert not is_hook("on_cancel")


# The argument ----------------------------------------------------------------------------------------------


def test_a_hooks_argument_has_the_jobs_arguments_by_name_as_they_are_annotated() -> None:
    handler = declared()
    handler.on_cancel(cleans)
    args, kwargs = handler.handler.bind(("a", date(2026, 1, 2), 5, 6), {"colour": "red"})
    (job,), named = hook_of(handler).unbind(facts(encode_payload(args, kwargs, 1000), encode_result({"n": 1}, 1000)))
    assert named == {}
    assert job == busq.CancelledJob(
        jid="j",
        kind="sends",
        args={"to": "a", "when": date(2026, 1, 2), "more": (5, 6), "copies": 1, "named": {"colour": "red"}},
        cause=Cause.USER,
        reason="enough",
        source="tests",
        ended=Ended.CONFIRMED,
        saved={"n": 1},
        attempt=2,
    )
    with pytest.raises(AttributeError):
        job.jid = "other"


def test_a_job_that_saved_nothing_and_took_nothing() -> None:
    async def bare() -> None: ...

    handler = declared(bare)
    handler.on_cancel(cleans)
    (job,), _ = hook_of(handler).unbind(facts(encode_payload((), {}, 100)))
    assert (job.args, job.saved) == ({}, None)


def test_arguments_that_do_not_fit_are_named() -> None:
    handler = declared()
    handler.on_cancel(cleans)
    with pytest.raises(BadArguments, match="argument 'when' takes date"):
        hook_of(handler).unbind(facts(encode_payload(("a", "tomorrow"), {}, 1000)))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x90", facts()[:-1], write_clean_up(b"", "j", 1, "nonsense", "", "", "confirmed", b""),
     write_clean_up(b"", "j", 1, "user", "", "", "", b"")],
)  # fmt: skip
def test_what_is_no_clean_up_is_refused(data: bytes) -> None:
    with pytest.raises(BadPayload):
        read_clean_up(data)
