"""Finalizers as declared: what is refused and why, where they run, and how their one argument is made."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

import busq
from busq.callables import Pool
from busq.config import Settings
from busq.errors import BadArguments, BadPayload, ConfigError, UsageError
from busq.finalizers import Finalizer
from busq.handlers import Handler
from busq.protocol.codec import encode_payload, encode_result
from busq.protocol.hook import hook_kind
from busq.protocol.tree import (
    finalizer_kind,
    is_attendant,
    is_finalizer,
    read_finished,
    without_finalizer,
    write_finished,
)
from busq.worker.executors import addresses
from busq.worker.reception import terms_of


def declared(function: Any = None, **options: Any) -> Any:
    async def sends(to: str, /, when: date, *more: int, copies: int = 1, **named: Any) -> date:
        return when

    return busq.Bus().job(**options)(function or sends)


async def sums(job: busq.FinishedJob) -> None: ...


def sums_in_a_thread(job: busq.FinishedJob) -> None: ...


def finalizer_of(handler: Any) -> Finalizer:
    finalizer = handler.handler.finalizer
    assert isinstance(finalizer, Finalizer)
    return finalizer


def facts(payload: bytes = b"", result: bytes = b"", saved: bytes = b"") -> bytes:
    return write_finished(payload, "j", 2, 3, 1, ["k"], result, saved)


# Declaring -------------------------------------------------------------------------------------------------


def test_a_finalizer_is_declared_with_and_without_options_and_its_function_stays_as_it_is() -> None:
    plain, given = declared(), declared()
    assert plain.finalize(sums) is sums
    assert given.finalize(timeout=3, retries=2)(sums) is sums
    assert finalizer_of(plain).kind == finalizer_kind(plain.kind) == "sends/finalize"
    settings = Settings.load({}, hook_limit_s=7, grace_s=4)
    told, told_too = terms_of(finalizer_of(plain), settings), terms_of(finalizer_of(given), settings)
    assert (told.timeout_ms, told.retries, told.grace_ms, told.occasion) == (None, 0, 4000, "")
    assert (told_too.timeout_ms, told_too.retries) == (3000, 2)


@pytest.mark.parametrize(
    ("pool", "finalizer", "where"),
    [
        (None, sums, Pool.COROUTINE),
        (None, sums_in_a_thread, Pool.THREAD),
        ("thread", sums_in_a_thread, Pool.THREAD),
        ("process", sums_in_a_thread, Pool.PROCESS),
        ("process", sums, Pool.COROUTINE),
    ],
)
def test_a_finalizer_runs_where_its_handler_does_or_in_its_loop(pool: str | None, finalizer: Any, where: Pool) -> None:
    def works() -> None: ...

    handler = declared(None if pool is None else works, pool=pool)
    handler.finalize(finalizer)
    assert finalizer_of(handler).pool is where


async def _yields(job: Any) -> Any:
    yield job


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: None, "is called with one argument, a busq.FinishedJob"),
        (lambda job, more: None, "missing a required argument: 'more'"),
        (_yields, "is a generator"),
        ("sums", "cannot be called"),
    ],
)
def test_a_function_that_is_no_finalizer_is_refused(function: Any, words: str) -> None:
    handler = declared()
    with pytest.raises(ConfigError, match=words):
        handler.finalize(function)
    assert handler.handler.finalizer is None
    handler.finalize(sums)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"retries": -1}])
def test_an_option_that_will_not_do_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"'sends/finalize': {next(iter(options))}"):
        declared().finalize(**options)(sums)


def test_a_handler_has_one_finalizer_beside_its_hook() -> None:
    handler = declared()
    handler.on_cancel(sums)
    handler.finalize(sums)
    with pytest.raises(ConfigError, match=r"'sends' has a finalizer already, tests.*sums \(line"):
        handler.finalize(sums_in_a_thread)
    assert finalizer_of(handler).function is sums


def test_a_handler_is_no_finalizer() -> None:
    handler, other = declared(), declared()
    with pytest.raises(ConfigError, match=r"a finalizer of 'sends' is a function, and .* is a handler"):
        handler.finalize(other)


# Beside the handlers ---------------------------------------------------------------------------------------


def test_finalizers_are_found_by_their_kind_and_count_among_the_handlers_of_their_jobs_queue() -> None:
    bus = busq.Bus()

    @bus.job(queue="media")
    async def encode() -> None: ...

    @bus.job
    async def plain() -> None: ...

    encode.finalize(sums_in_a_thread)

    def pools(handlers: list[Handler]) -> set[Pool]:
        return {handler.pool for handler in handlers}

    handlers = bus.handlers
    assert handlers.get("encode/finalize") is finalizer_of(encode)
    assert handlers.kinds() == ["encode", "plain"]
    assert handlers.near("encode/finaliz") == ["encode"]
    assert handlers.queues() == {"default", "media"}
    assert not handlers.have_hooks
    assert pools(handlers.of_queue("media")) == {Pool.COROUTINE, Pool.THREAD}
    assert pools(handlers.of_queue("default")) == {Pool.COROUTINE}


def test_a_finalizer_cannot_be_enqueued() -> None:
    handler = declared()
    handler.finalize(sums)
    with pytest.raises(UsageError, match="is a finalizer: it runs by itself when a job and its children have ended"):
        handler._bus.spec("sends/finalize")
    with pytest.raises(ConfigError, match="'/' at position 5"):
        busq.Bus().spec("sends/finalize")


def test_the_kinds_of_finalizers_are_told_from_those_of_users_and_hooks() -> None:
    assert without_finalizer("k/finalize") == without_finalizer("k") == "k"
    assert is_finalizer(finalizer_kind("finalize"))
    assert not is_finalizer("finalize")
    assert not is_finalizer(hook_kind("k"))
    assert [is_attendant(kind) for kind in ("k", "k/on_cancel", "k/finalize")] == [False, True, True]


# In a child process ----------------------------------------------------------------------------------------

bus = busq.Bus()


@bus.job(pool="process")
def works() -> None: ...


@works.finalize
@works.on_cancel
def attends(job: Any) -> None: ...


def alone(job: Any) -> None: ...


def test_a_child_process_finds_finalizers_and_hooks_by_the_names_of_their_functions() -> None:
    found = addresses.load([addresses.address_of(handler) for handler in bus.handlers], "", "")
    assert found == {handler.kind: handler for handler in bus.handlers}
    assert {type(handler).__name__ for handler in found.values()} == {"Handler", "Hook", "Finalizer"}


def test_what_only_the_worker_put_together_is_put_together_again_in_the_child() -> None:
    other = busq.Bus().job(kind="alone_works", pool="process")(alone)
    other.finalize(attends)
    ours = [other.handler, finalizer_of(other)]
    found = addresses.load([addresses.address_of(handler) for handler in ours], "", "")
    made = found["alone_works/finalize"]
    assert isinstance(made, Finalizer)
    assert (made.function, made.of.kind, made.pool) == (attends, "alone_works", Pool.PROCESS)


# The argument ----------------------------------------------------------------------------------------------


def test_a_finalizers_argument_has_what_the_job_took_and_gave_as_it_is_annotated() -> None:
    handler = declared()
    handler.finalize(sums)
    day = date(2026, 1, 2)
    args, kwargs = handler.handler.bind(("a", day, 5, 6), {"colour": "red"})
    written = facts(encode_payload(args, kwargs, 1000), encode_result(day, 1000), encode_result({"n": 1}, 1000))
    (job,), named = finalizer_of(handler).unbind(written)
    assert named == {}
    assert job == busq.FinishedJob(
        jid="j",
        kind="sends",
        args={"to": "a", "when": day, "more": (5, 6), "copies": 1, "named": {"colour": "red"}},
        result=day,
        saved={"n": 1},
        attempt=2,
        children=3,
        failed=1,
        failed_children=("k",),
    )
    with pytest.raises(AttributeError):
        job.jid = "other"


def test_a_result_that_does_not_fit_its_annotation_is_given_as_it_was_written() -> None:
    handler = declared()
    handler.finalize(sums)
    payload = encode_payload(("a", "2026-01-02"), {}, 1000)
    (job,), _ = finalizer_of(handler).unbind(facts(payload, encode_result([1], 1000)))
    assert job.result == [1]


def test_a_job_that_took_gave_and_saved_nothing() -> None:
    async def bare() -> None: ...

    handler = declared(bare)
    handler.finalize(sums)
    (job,), _ = finalizer_of(handler).unbind(facts(encode_payload((), {}, 100)))
    assert (job.args, job.result, job.saved) == ({}, None, None)


def test_arguments_that_do_not_fit_are_named() -> None:
    handler = declared()
    handler.finalize(sums)
    with pytest.raises(BadArguments, match="argument 'when' takes date"):
        finalizer_of(handler).unbind(facts(encode_payload(("a", "tomorrow"), {}, 1000)))


NO_NUMBER = write_finished(b"", "j", "x", 0, 0, [], b"", b"")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", facts()[:-1], NO_NUMBER])
def test_what_says_nothing_of_a_finished_job_is_refused(data: bytes) -> None:
    with pytest.raises(BadPayload):
        read_finished(data)
