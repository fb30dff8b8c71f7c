"""Imports point downwards only: who may import whom, read from the source of every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import busq.protocol

ROOT = Path(busq.protocol.__file__).parents[1]
MODULES = sorted(ROOT.rglob("*.py"))

# Usable by all. They may lean on the protocol, and on nothing else of busq.
FREE = {"attendants", "errors", "callables", "clock", "config", "events", "finalizers", "handlers", "hooks"}
FREE |= {"metrics", "redaction", "tasks"}

# Each ring: which parts of busq it may import beside itself and the free ones. What is not listed may import
# everything but `testing`: the public face, `busq dev`, and what ties the parts together.
RINGS = {
    "protocol": set(),
    "store": {"protocol"},
    "client": {"protocol", "store"},
    "worker": {"protocol", "store"},
    "watchdog": {"protocol", "store"},
    **{name: {"protocol"} for name in FREE},
}

# The throw-away server of `busq dev` is started, not spoken to: it asks with its own PING whether it is there.
STARTS_A_SERVER = {"cli/embedded.py"}


def imports(path: Path) -> set[str]:
    """Every module that this one names in an import, also inside functions and for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            if module == "busq":  # a module of ours, or a name of the public face
                found |= {f"busq.{each.name}" if _is_module(each.name) else "busq" for each in node.names}
            else:
                found.add(module)
    return found


def _is_module(name: str) -> bool:
    return (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()


def part_of(path: Path) -> str:
    """The part of busq that a file belongs to: `store` for store/lua, `errors` for errors.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def parts_used(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("busq.")}


def id_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=id_of)
def test_a_module_imports_downwards_only(path: Path) -> None:
    part = part_of(path)
    used = parts_used(path) - {part}
    if part in RINGS:
        assert used <= RINGS[part] | FREE
        assert "busq" not in imports(path), "the public face is for those outside; name the module"
    assert "testing" not in used


@pytest.mark.parametrize("path", [path for path in MODULES if part_of(path) == "protocol"], ids=id_of)
def test_the_protocol_speaks_to_nobody(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"redis", "asyncio", "structlog", "uvloop", "socket", "threading", "subprocess"} - _mint(path)


def _mint(path: Path) -> set[str]:
    """Jids are made in every thread: their mint takes a lock."""
    return {"threading"} if path.name == "jids.py" else set()


@pytest.mark.parametrize("path", MODULES, ids=id_of)
def test_only_the_store_imports_redis(path: Path) -> None:
    if part_of(path) != "store" and id_of(path) not in STARTS_A_SERVER:
        assert "redis" not in {name.split(".")[0] for name in imports(path)}


def test_the_rings_know_every_part_that_there_is() -> None:
    above = {"__init__", "__main__", "bus", "cli", "placeholder", "testing"}
    assert {part_of(path) for path in MODULES} - set(RINGS) <= above
