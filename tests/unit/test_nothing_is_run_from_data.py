"""
No bytes from Redis become code: read from the source of every module, so that no later one forgets it.

Kinds resolve through the registry of handlers alone. Modules are imported by name in two places, and those names come
from a command line or from the worker's own handlers, never from a job.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import busq

ROOT = Path(busq.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "yaml",
    "jsonpickle",
    "code",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_NAMES = {"shell"}  # subprocess with a shell

IMPORTS_BY_NAME = {
    "cli/application.py",  # APP on the command line
    "worker/executors/addresses.py",  # where a child finds the handlers that its worker has
    "worker/executors/hello.py",  # child_setup, given in code
    "worker/executors/child_main.py",  # both of them, in the child
}


def findings(source: str) -> list[str]:
    """Everything in a source that could make code of data, by line; imports by name apart."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [
                f"{node.lineno}: import {each.name}" for each in node.names if _top(each.name) in FORBIDDEN_MODULES
            ]
        elif isinstance(node, ast.ImportFrom) and _top(node.module or "") in FORBIDDEN_MODULES:
            found.append(f"{node.lineno}: from {node.module}")
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
                found.append(f"{node.lineno}: {called.id}()")
            if isinstance(called, ast.Attribute) and ast.unparse(called) in {"os.system", "os.popen", "builtins.eval"}:
                found.append(f"{node.lineno}: {ast.unparse(called)}()")
            for word in node.keywords:
                if word.arg in FORBIDDEN_NAMES and not (
                    isinstance(word.value, ast.Constant) and word.value.value is False
                ):
                    found.append(f"{node.lineno}: {word.arg}=")
    return found


def imports_by_name(source: str) -> bool:
    names = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute | ast.Name)}
    return bool(names & {"importlib.import_module", "import_module", "runpy", "importlib.util.spec_from_file_location"})


def _top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_makes_code_of_data(module: Path) -> None:
    assert findings(module.read_text()) == []


def test_modules_are_imported_by_name_only_where_the_name_is_not_from_a_job() -> None:
    found = {str(path.relative_to(ROOT)) for path in MODULES if imports_by_name(path.read_text())}
    assert found <= IMPORTS_BY_NAME, found - IMPORTS_BY_NAME


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from marshal import loads", "import yaml", "eval(data)", "exec(data)", "os.system(data)",
     "subprocess.run(data, shell=True)", "__import__(data)"],
)  # fmt: skip
def test_the_search_finds_what_it_is_there_for(source: str) -> None:
    assert findings(source)


def test_the_search_finds_imports_by_name() -> None:
    assert imports_by_name("import importlib\nimportlib.import_module(kind)")
