"""The loader, and what every shipped script must be."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from busq.protocol.keys import ShardKeys
from busq.protocol.scope import Filter
from busq.protocol.states import State, Verb
from busq.store import drains, scripts
from busq.store.scripts import BadScript, load, names
from tests.store.bench import NO_ENTRY, QUEUE, Bench, put_in
from tests.store.test_transitions import CASES

LUA = Path(str(resources.files("busq.store"))) / "lua"
GOOD = """--[[
  try: a script.

  Flags    none
  KEYS     events, jobs...
  ARGV     now_ms, per_job...
  Uses     clock
  Answers  nothing
]]
return { events, jobs, per_job, now }
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., scripts.Script]:
    """Write `try.lua` into a folder of scripts, and load it from there."""
    (tmp_path / "lua/lib").mkdir(parents=True)
    for library in (LUA / "lib").iterdir():
        (tmp_path / "lua/lib" / library.name).write_text(library.read_text())
    monkeypatch.setattr(scripts, "resources", SimpleNamespace(files=lambda _: tmp_path))

    def load_it(text: str, **how: Any) -> scripts.Script:
        (tmp_path / "lua/try.lua").write_text(text)
        return load.__wrapped__("try", **how)

    return load_it


def test_names_are_bound_to_the_positions_of_the_header(write: Callable[..., scripts.Script]) -> None:
    script = write(GOOD, flags_line=False)
    assert (script.keys, script.argv) == (("events", "jobs..."), ("now_ms", "per_job..."))
    assert script.source.startswith(
        "local events = KEYS[1]\nlocal jobs = 2\nlocal now_ms = ARGV[1]\nlocal per_job = 2\n"
    )


@pytest.mark.parametrize(("flags", "line"), [("none", "#!lua\n"), ("allow-oom", "#!lua flags=allow-oom\n")])
def test_the_flags_line_says_what_the_header_says(write: Callable[..., scripts.Script], flags: str, line: str) -> None:
    text = GOOD.replace("Flags    none", f"Flags    {flags}")
    with_line, without = write(text), write(text, flags_line=False)
    assert with_line.source == line + without.source
    assert with_line.sha != without.sha


def test_a_header_may_run_over_several_lines(write: Callable[..., scripts.Script]) -> None:
    script = write(GOOD.replace("now_ms, per", "now_ms,\n           by,\n           per").replace("now }", "now, by }"))
    assert script.argv == ("now_ms", "by", "per_job...")


@pytest.mark.parametrize(
    ("old", "new", "flaw"),
    [
        ("--[[", "-- [[", "does not open with a header"),
        ("  Flags    none\n", "", "lacks Flags"),
        ("  KEYS     events, jobs...\n", "", "lacks KEYS"),
        ("  ARGV     now_ms, per_job...\n", "", "lacks ARGV"),
        ("  Uses     clock\n", "", "lacks Uses"),
        ("events, jobs...", "events, stream, jobs...", "names 'stream' in its header and does not use it"),
        ("now_ms, per_job...", "now_ms, by, per_job...", "names 'by' in its header and does not use it"),
        ("{ events, ", "{ ", "names 'events' in its header and does not use it"),
        ("events, jobs...", "jobs..., events", "not the last"),
        ("events, jobs...", "events[1], jobs...", "no name for a header"),
    ],
)
def test_a_header_that_does_not_fit_its_body_is_refused(
    write: Callable[..., scripts.Script], old: str, new: str, flaw: str
) -> None:
    assert old in GOOD
    with pytest.raises(BadScript, match=re.escape(flaw)):
        write(GOOD.replace(old, new))


# Every shipped script -------------------------------------------------------------------------------------


def test_every_verb_has_a_script() -> None:
    """But for the last child's ending, which is part of whichever ends the child."""
    assert set(names()) == set(Verb) - {Verb.LAST_CHILD} | set(OTHERS)


async def _decide_and_revoke(bench: Bench) -> None:
    await bench.scopes.revoke(await bench.decide(kind="k"))


OTHERS: dict[str, Callable[[Bench], Awaitable[Any]]] = {
    "bury": lambda bench: bench.a.bury(0, QUEUE, NO_ENTRY, reason="x", raw=b"x"),
    "cascade": lambda bench: bench.dog.cascade(0, step=1),
    "decide": lambda bench: bench.decide(kind="k"),
    "declare": lambda bench: bench.a.declare(0, {"k": "always"}, keep_s=1),
    "drain": lambda bench: drains.ask(bench.a, "a", drains.Whole.WORKER),
    "forget": lambda bench: bench.a.forget(0, "a", [QUEUE]),
    "look": lambda bench: bench.a.look(0, ["job"]),
    "prune": lambda bench: bench.a.prune(0, limit=1, suspect_s=1),
    "revoke": _decide_and_revoke,
    "rewind": lambda bench: bench.dog.rewind(0, index="deadlines", rank=0, step=1),
    "survey": lambda bench: bench.scopes.survey(Filter(kind="k")),
}


@pytest.mark.parametrize("path", sorted(LUA.rglob("*.lua")), ids=lambda path: path.stem)
def test_a_script_is_about_a_screen(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 120
    assert max(map(len, path.read_text().splitlines())) <= 140


@pytest.mark.parametrize("name", names())
def test_a_script_does_without_what_blocks_or_breaks_a_server(name: str) -> None:
    source = load(name).source
    assert not re.search(r"'(KEYS|SCAN|SORT|FLUSH\w*|EVAL\w*)'|cmsgpack|XAUTOCLAIM", source)
    assert not re.search(r"\bKEYS\[\d+\]|\bARGV\[\d+\]", source.split("\n", 6)[-1]), (
        "positions are the loader's to write"
    )


@pytest.mark.parametrize("name", names())
def test_a_script_that_ends_jobs_still_works_when_memory_is_full(name: str) -> None:
    """Only what lets new work in may be refused by a full server."""
    lets_in, only_reads = {"enqueue", "start", "promote"}, {"look", "survey"}
    flags = "" if name in lets_in else " flags=no-writes" if name in only_reads else " flags=allow-oom"
    assert load(name).source.startswith(f"#!lua{flags}\n")


@pytest.mark.parametrize("flags_line", [True, False])
@pytest.mark.parametrize("name", names())
async def test_a_script_loads_with_and_without_its_flags_line(redis_url: str, name: str, flags_line: bool) -> None:
    async with Bench(redis_url) as bench:
        script = load(name, flags_line=flags_line)
        assert await bench.redis.script_load(script.source) in (script.sha, script.sha.encode())


@pytest.mark.parametrize("name", names())
async def test_a_script_survives_the_loss_of_the_script_cache(url: str, name: str) -> None:
    async with Bench(url) as bench:
        for _ in range(2):
            await bench.redis.script_flush()
            if name in OTHERS:
                await OTHERS[name](bench)
                continue
            held = await put_in(bench, State.QUEUED)
            await bench.redis.script_flush()
            await CASES[Verb(name)][0].call(bench, held)


async def test_a_batch_survives_the_loss_of_the_script_cache_half_way(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scripts.Script.run

    async def forgetful(self: scripts.Script, redis: Any, keys: Sequence[bytes], argv: Sequence[scripts.Arg]) -> Any:
        answer = await run(self, redis, keys, argv)
        await redis.script_flush()
        return answer

    monkeypatch.setattr(scripts.Script, "run", forgetful)
    async with Bench(url, shards=4) as bench:
        for n in range(20):
            await bench.enqueue(f"job-{n}")
        from busq.protocol.cancel import CancelRequest, Verdict

        answers = await bench.b.cancel([f"job-{n}" for n in range(20)], CancelRequest(), request="one")
        assert {answer.verdict for answer in answers} == {Verdict.CANCELLED}


async def test_keys_and_arguments_are_laid_out_in_the_order_of_the_header(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[scripts.Script, list[bytes], list[scripts.Arg]]] = []
    run = scripts.Script.run

    async def noting(self: scripts.Script, redis: Any, keys: Sequence[bytes], argv: Sequence[scripts.Arg]) -> Any:
        seen.append((self, list(keys), list(argv)))
        return await run(self, redis, keys, argv)

    monkeypatch.setattr(scripts.Script, "run", noting)
    async with Bench(redis_url) as bench:
        for verb in Verb:
            for case in CASES[verb]:
                held = await put_in(bench, State.QUEUED)
                await case.call(bench, held)
        for other in OTHERS.values():
            await other(bench)
    own = ShardKeys("busq", 0)
    assert {script.name for script, *_ in seen} == set(names())
    for script, keys, argv in seen:
        for name, key in zip(script.keys, keys, strict=False):
            if name == "jobs...":
                assert key.startswith(own.job(""))
            elif name in ("stream", "streams..."):
                assert key == own.stream(QUEUE)
            else:
                assert key == getattr(own, name)
        single = [name for name in script.argv if not name.endswith("...")]
        assert len(argv) >= len(single)
        assert argv[0] == bench.clock.stamp_ms() or isinstance(argv[0], int)


async def test_all_scripts_are_loaded_at_once_and_again_when_some_are_missing(url: str) -> None:
    async with Bench(url) as bench:
        await bench.redis.script_flush()
        await bench.dog.keep_able()
        for _ in range(2):
            await put_in(bench, State.QUEUED)
            assert await scripts.load_missing(bench.redis, flags_line=bench.dog._flags_line) == []
            await bench.redis.script_flush()
            await bench.dog.keep_able()
