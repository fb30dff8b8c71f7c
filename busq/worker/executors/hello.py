"""
What a child is told first, and the environment that it gets: all that it needs, and no way into Redis.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from urllib.parse import unquote, urlsplit

from busq.config import Settings
from busq.errors import ConfigError
from busq.handlers import Handler
from busq.worker.executors.addresses import MAIN, address_of, main_program
from busq.worker.executors.frames import Hello

ROOM_BYTES = 64 * 1024  # in a frame, beside what a handler may give or take

SECRET_NAMES = frozenset({"BUSQ_URL", "REDIS_URL"})


def hello_for(settings: Settings, handlers: Iterable[Handler], setup: str) -> Hello:
    """
    What every child is told first. Raise `ConfigError` when a child will not find one of these handlers or its `setup`.

    `setup` (module:function) is called in each child before anything of the application is imported there.
    """
    if setup:
        _check_setup(setup)
    found = [address_of(handler) for handler in handlers]
    main_name, main_path = main_program() if any(each.module == MAIN for each in found) else ("", "")
    return Hello(
        handlers=found, main_name=main_name, main_path=main_path, setup=setup,
        result_bytes=settings.result_bytes, traceback_bytes=settings.traceback_bytes,
        # The most is a finalizer's run: its job's arguments, result and saved, and what it has saved itself.
        most_bytes=settings.payload_bytes + 3 * settings.result_bytes + 2 * settings.traceback_bytes + ROOM_BYTES,
    )  # fmt: skip


def _check_setup(setup: str) -> None:
    module, _, name = setup.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
    else:
        if callable(found):
            return
        why = f"it is {found!r:.80}, which cannot be called"
    raise ConfigError(f"child_setup: {setup!r} is no function for a child to call ({why}). Give it as module:function")


def without_secrets(environ: Mapping[str, str], url: str | None) -> dict[str, str]:
    """The environment for a child: nothing in it says where Redis is, or with which password one gets in."""
    password = urlsplit(url).password if url else None
    secrets = {each for each in (password, unquote(password or "")) if each}

    def secret(name: str, value: str) -> bool:
        return (
            name in SECRET_NAMES
            or (name.startswith("BUSQ_") and "PASSWORD" in name)
            or any(each in value for each in secrets)
        )

    return {name: value for name, value in environ.items() if not secret(name, value)}
