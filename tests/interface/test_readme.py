"""The README says what the code does: its drawn parts are current, and its first example runs."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from busq.config import Settings
from busq.worker.worker import Worker
from tests.interface.commands import busq
from tests.runtime.bench import until

REPO = Path(__file__).parents[2]
DEFAULTS = [(field.name, field.default) for field in msgspec.structs.fields(Settings)]


def readme_parts() -> ModuleType:
    return loaded(REPO / "scripts" / "readme_parts.py")


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_diagram_of_states_and_the_table_of_keys_are_those_of_the_code() -> None:
    text = (REPO / "README.md").read_text()
    assert readme_parts().with_parts(text) == text


def test_the_table_of_settings_has_each_of_them_with_its_default() -> None:
    section = (REPO / "README.md").read_text().partition("### Settings")[2].partition("## ")[0]
    said: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`[a-z_`, ]+`) \| ([^|]+) \|", section, re.MULTILINE):
        said |= zip(re.findall(r"`(\w+)`", names), defaults.replace("`", "").split(", "), strict=True)
    words = {None: "none", 1024 * 1024: "1 MiB", 16 * 1024: "16 KiB"}
    own = {name: words.get(value, f"{value:g}" if isinstance(value, float) else str(value)) for name, value in DEFAULTS}
    assert said == {**own, "shards": "1"}


def test_the_table_of_commands_names_every_option() -> None:
    text = (REPO / "README.md").read_text()
    for words in ("worker", "watchdog", "enqueue", "cancel", "list", "top", "dead list", "dead purge", "acl"):
        (row,) = re.findall(rf"^\| `busq {words.split()[0]}\b[^|]* \|.*\|$", text, re.MULTILINE)
        offered = set(re.findall(r"--[a-z][a-z-]+", busq(*words.split(), "--help").stdout))
        assert offered - {"--url", "--namespace", "--output"} <= set(re.findall(r"--[a-z][a-z-]+", row)), words


def test_every_python_example_compiles() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        compile("async def example():\n" + "".join(f"    {line}\n" for line in block.splitlines()), "README.md", "exec")


async def test_the_first_example_runs_as_it_stands(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BUSQ_URL", redis_url)
    (block, *_) = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    (tmp_path / "app.py").write_text(block)
    app = loaded(tmp_path / "app.py")
    worker = Worker(app.bus.settings, app.bus.handlers)
    working = asyncio.create_task(worker.run())
    await app.main()
    worker.stop()
    await working
    first, second = [line for line in capsys.readouterr().out.splitlines() if "[" not in line]
    assert first.startswith("signalled ")
    assert second == "cancelled confirmed user deleted the video"


async def test_the_example_of_a_hook_runs_as_it_stands(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BUSQ_URL", redis_url)
    first, *others = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    (hook,) = [block for block in others if ".on_cancel" in block]
    (tmp_path / "hooked.py").write_text(first + hook)
    app = loaded(tmp_path / "hooked.py")
    worker = Worker(app.bus.settings, app.bus.handlers)
    working = asyncio.create_task(worker.run())
    async with app.bus:
        handle = await app.convert.enqueue("a", to="mp4")

        async def saved() -> bool:
            return (await handle.get()).saved is not None

        await until(saved)
        await handle.cancel(reason="no")
        job = await handle.wait(timeout=10)
        assert (await app.bus.wait(job.hook, timeout=10)).state == "succeeded"
    worker.stop()
    await working
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cleaning")]
    assert lines == ["cleaning up after a mp4 confirmed no {'parts': '/tmp/a.mp4.parts'}"]
