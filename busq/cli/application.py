"""
Finding the application that APP names, as `module:bus`.

The current directory comes first on the path, as it does for `python -m`. Whatever is wrong is told in one line with
what was looked for; an error inside the application's own code is told with its place.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from typing import Any

import msgspec

from busq.client.bus import Bus
from busq.config import Settings
from busq.errors import ConfigError
from busq.redaction import guard

WANTED = "it takes module:bus, such as shop.jobs:bus"


def load(app: str) -> Bus:
    """The bus that APP names, with its handlers. Raise `ConfigError` that says what is wrong."""
    module_name, colon, name = app.partition(":")
    path = module_name.endswith(".py") or "/" in module_name
    if path or not colon or not name.isidentifier() or not all(map(str.isidentifier, module_name.split("."))):
        hint = ""
        if path:
            hint = f"; for that file, {module_name.removesuffix('.py').strip('./').replace('/', '.')}:{name or 'bus'}"
        raise ConfigError(f"APP: {app!r} will not do; {WANTED}{hint}")
    module = _imported(app, module_name)
    if not hasattr(module, name):
        near = [each for each, value in vars(module).items() if isinstance(value, Bus)]
        near = near or difflib.get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {module_name}:{near[0]}?" if near else ""
        raise ConfigError(f"APP: {app!r}: module {module_name!r} has no {name!r}{hint}")
    bus = getattr(module, name)
    if not isinstance(bus, Bus):
        raise ConfigError(f"APP: {app!r} is of type {type(bus).__name__}; it takes a busq.Bus")
    return bus


def check_runnable(app: str, bus: Bus) -> None:
    """Refuse a bus that a worker of this version cannot serve. Raise `ConfigError`."""
    if not len(bus.handlers):
        raise ConfigError(
            f"APP: {app!r} declares no handlers. Decorate functions with @{app.rpartition(':')[2]}.job, and have "
            "that module import the ones in which they stand."
        )


def settle(bus: Bus, *, url: str | None, namespace: str | None, **given: Any) -> Settings:
    """
    The settings to run this application with: ours over the bus's own, over the environment.

    The bus itself takes them too, so that what handlers enqueue goes where this worker reads. Raise `ConfigError`.
    """
    own = msgspec.structs.asdict(bus.settings)
    ours = {"url": url, "namespace": namespace, **given}
    settings = Settings.load(**{**own, **{name: value for name, value in ours.items() if value is not None}})
    bus.settings = settings
    guard(settings.url)
    return settings


def _imported(app: str, name: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(
                f"APP: {app!r}: there is no module {error.name!r}, neither in {folder} nor among the installed ones"
            ) from None
        raise ConfigError(_failed(app, name, error)) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(_failed(app, name, error)) from error


def _failed(app: str, name: str, error: BaseException) -> str:
    words = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    return f"APP: {app!r}: importing {name!r} failed: {words}{_where(error)}"


def _where(error: BaseException) -> str:
    """The innermost line of the application's own code, which is not always where the error was raised."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})"
    ours = ("importlib", os.path.dirname(__file__))
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not any(o in frame.filename for o in ours)
    ]
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    if not frames:
        return ""
    inside = [frame for frame in frames if frame.filename.startswith(os.getcwd() + os.sep)] or frames
    return f" ({inside[-1].filename}, line {inside[-1].lineno})"
