"""The README says what the code does: its drawn parts are current, and its first example runs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).parents[2]


def readme_parts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_parts", REPO / "scripts" / "readme_parts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_diagram_of_states_and_the_table_of_keys_are_those_of_the_code() -> None:
    text = (REPO / "README.md").read_text()
    assert readme_parts().with_parts(text) == text


def test_every_python_example_compiles() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        compile("async def example():\n" + "".join(f"    {line}\n" for line in block.splitlines()), "README.md", "exec")
