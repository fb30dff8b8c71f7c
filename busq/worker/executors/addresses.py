"""
Where a handler is found again in another process: a module that can be imported, and a name in it.

Functions are never sent. What another process could not find by name is refused when the worker starts, with the
reason. A program that declares handlers itself (`python shop.py`) is run in the child once more under the name
`__mp_main__`, so that its `if __name__ == "__main__":` part stays out, as `multiprocessing` does it.
"""

from __future__ import annotations

import importlib
import runpy
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

from busq.callables import Pool
from busq.errors import ConfigError
from busq.finalizers import Finalizer
from busq.handlers import Handler, HandlerOptions
from busq.hooks import Hook
from busq.protocol.hook import is_hook, without_hook
from busq.protocol.tree import is_attendant, without_finalizer
from busq.worker.executors.frames import Address

MAIN = "__main__"
CHILDS_MAIN = "__mp_main__"


# In the worker -------------------------------------------------------------------------------------------


def address_of(handler: Handler) -> Address:
    """Where a child will find this handler. Raise `ConfigError` when it will not."""
    function = handler.function
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        raise _refused(handler, f"{handler.function!r} has no name of its own in a module")
    if "<locals>" in name:
        raise _refused(handler, "it is declared inside another function")
    if "<lambda>" in name:
        raise _refused(handler, "it is a lambda")
    try:
        found = _look_up(sys.modules[module], name)
    except (KeyError, AttributeError):
        raise _refused(handler, f"there is no {name!r} in module {module!r}") from None
    if found is not function and getattr(found, "handler", None) is not handler:
        raise _refused(handler, f"{module}.{name} is another object now ({found!r:.80})")
    if module == MAIN and not any(main_program()):
        raise _refused(handler, "its module is no file: it was typed in or given with -c")
    if module != MAIN and getattr(sys.modules[module], "__spec__", None) is None:
        raise _refused(handler, f"module {module!r} was not imported by its name")
    return Address(handler.kind, module, name)


def main_program() -> tuple[str, str]:
    """The program of this process: its name when it was started with `-m`, else its path; nothing for neither."""
    main = sys.modules[MAIN]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        return str(spec.name), ""
    return "", str(getattr(main, "__file__", None) or "")


def _refused(handler: Handler, why: str) -> ConfigError:
    return ConfigError(
        f"handler {handler.kind!r} ({handler.where}): pool: 'process' imports the handler by name in a child process, "
        f"and {why}. Put it at the top level of a module, or leave pool out and it runs in a thread"
    )


# In the child --------------------------------------------------------------------------------------------


def load(addresses: Iterable[Address], main_name: str, main_path: str) -> dict[str, Handler]:
    """The handlers at these addresses, by kind. Raises whatever the application's own code raises."""
    addresses = list(addresses)
    if any(address.module == MAIN for address in addresses):
        _load_main(main_name, main_path)
    found = {address.kind: _handler_at(address) for address in addresses if not is_attendant(address.kind)}
    return found | {each.kind: _attendant_at(each, found) for each in addresses if is_attendant(each.kind)}


def _load_main(name: str, path: str) -> None:
    main = types.ModuleType(CHILDS_MAIN)
    if name:
        content = runpy.run_module(name, run_name=CHILDS_MAIN, alter_sys=True)
    else:
        content = runpy.run_path(path, run_name=CHILDS_MAIN)
    main.__dict__.update(content)
    sys.modules[MAIN] = sys.modules[CHILDS_MAIN] = main


def _handler_at(address: Address) -> Handler:
    found = _look_up(importlib.import_module(address.module), address.name)
    handler = getattr(found, "handler", None)
    if isinstance(handler, Handler):
        return handler
    return Handler(found, kind=address.kind, options=HandlerOptions(pool=Pool.PROCESS))


def _attendant_at(address: Address, handlers: Mapping[str, Handler]) -> Handler:
    """The one that its handler has here; where only the worker put the two together, it is done again."""
    hook = is_hook(address.kind)
    of = handlers[(without_hook if hook else without_finalizer)(address.kind)]
    if own := of.hook if hook else of.finalizer:
        return own
    function = _look_up(importlib.import_module(address.module), address.name)
    return Hook(function, of) if hook else Finalizer(function, of)


def _look_up(module: Any, name: str) -> Any:
    found = module
    for part in name.split("."):
        found = getattr(found, part)
    return found
