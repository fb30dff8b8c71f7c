"""
Finds the Lua scripts, checks their headers and runs them.

A script is written with names only: its header lists KEYS and ARGV once, and the loader makes the lines that bind
those names from it. A list ends in `name...`; inside the script that name is the position at which the rest begins.
`Uses` names files of `lua/lib` that are put in front, each once, and before it what it uses itself: that stands in its
first line. So no position is written twice, and a header that does not
fit its body does not load.

On a cluster a slot may be moved from node to node, key by key, while scripts run. A script that meets a key which has
left is stopped in its middle, with half of its work done. So there each call is fenced: it names, before its own keys,
one that never exists (`ShardKeys.whole`). While the slot is on the move the server refuses such a call before it
begins (TRYAGAIN), and it is sent again until the slot has arrived.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import msgspec
from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from busq.errors import BusUnavailable
from busq.protocol.trouble import Trouble
from busq.store.connection import Client

Arg = bytes | str | int | float

_HEADER = re.compile(r"\A--\[\[\n(?P<header>.*?)\n\]\]\n", re.DOTALL)
_LIBRARY_USES = "-- Uses "
_FIELDS = ("Flags", "KEYS", "ARGV", "Uses")

LOADS = 5  # times a script is loaded for one call: somebody else may flush the cache in between
BROUGHT_WITHIN_S = 5.0  # by a watchdog, for who may not load scripts itself; it looks for them on every beat
LOOKS_S = (0.02, 0.5)  # between tries meanwhile: the first and the longest pause


class BadScript(Exception):
    """A script's header and body do not fit; a mistake in busq itself."""


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """One transition. `keys` and `argv` are the names of its header, for the checks and for people."""

    name: str
    source: str
    sha: str
    keys: tuple[str, ...]
    argv: tuple[str, ...]
    flags: str = ""
    """What its first line says; "" where it has none."""

    @property
    def writes(self) -> bool:
        """Whether it may change anything; True where it has no first line that says so."""
        return self.flags != "no-writes"

    @property
    def command(self) -> str:
        """How it is sent: one that writes nothing may be run by who may only read."""
        return "EVALSHA" if self.writes else "EVALSHA_RO"

    async def run(self, redis: Client, keys: Sequence[bytes], argv: Sequence[Arg]) -> Any:
        """
        Run it in one round trip; two when the server has lost its script cache.

        Sent alone on purpose: inside a MULTI a missing script would leave the other half of the transaction done.
        Whose Redis user may not load scripts waits for a watchdog to do it. Raise `BusUnavailable` when none does.
        """

        async def send() -> Any:
            return await redis.execute_command(self.command, self.sha, len(keys), *keys, *argv)

        return await self._with_the_script_there(redis, send)

    async def run_with(
        self, redis: Client, keys: Sequence[bytes], argv: Sequence[Arg], commands: Sequence[Sequence[Arg]]
    ) -> list[Any]:
        """
        As `run`, with these commands after it, all on one connection and in one go. Their errors are among the
        answers, its own is raised. When the connection breaks all is sent again, the script too.
        """

        async def send() -> list[Any]:
            pipe = redis.pipeline(transaction=False)
            for words in ((self.command, self.sha, len(keys), *keys, *argv), *commands):
                pipe.execute_command(*words)
            answers: list[Any] = await pipe.execute(raise_on_error=False)
            if isinstance(answers[0], Exception):
                raise answers[0]
            return answers

        answers: list[Any] = await self._with_the_script_there(redis, send)
        return answers

    async def _with_the_script_there(self, redis: Client, send: Callable[[], Awaitable[Any]]) -> Any:
        for _ in range(LOADS):
            try:
                return await send()
            except NoScriptError:
                try:
                    await redis.execute_command("SCRIPT LOAD", self.source)
                except NoPermissionError:
                    return await self._once_brought(send)
        return await send()

    async def _once_brought(self, send: Callable[[], Awaitable[Any]]) -> Any:
        pause, waited = LOOKS_S[0], 0.0
        while True:
            await asyncio.sleep(pause)
            try:
                return await send()
            except NoScriptError:
                waited += pause
                if waited >= BROUGHT_WITHIN_S:
                    raise BusUnavailable(
                        f"the server has not got the script {self.name!r} of this busq, and this user may not load it: "
                        "start a watchdog of this very version (`busq watchdog`), which does",
                        Trouble.REFUSED,
                    ) from None
            pause = min(LOOKS_S[1], pause * 2)


@cache
def load(name: str, *, flags_line: bool = True, fenced: bool = False) -> Script:
    """
    The script of this verb.

    `flags_line` puts `#!lua` in front, which servers before 7.0 and fakeredis do not take. `fenced` leaves the first
    key to the fence.
    Raise `BadScript` when the header does not fit the body.
    """
    folder = resources.files(__package__) / "lua"
    text = (folder / f"{name}.lua").read_text()
    fields, body = _split(name, text)
    keys, argv = _names(fields["KEYS"]), _names(fields["ARGV"])
    parts = [_bind("KEYS", keys, first=2 if fenced else 1) + _bind("ARGV", argv)]
    parts += _libraries(folder / "lib", _names(fields["Uses"])).values()
    parts.append(body)
    source = "\n".join(parts)
    _check_used(name, keys + argv, source, parts[0])
    if flags_line:
        flags = fields["Flags"]
        source = ("#!lua\n" if flags == "none" else f"#!lua flags={flags}\n") + source
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(
        name=str(name), source=source, sha=sha, keys=keys, argv=argv, flags=fields["Flags"] if flags_line else ""
    )


def names() -> list[str]:
    """Every script there is."""
    folder = resources.files(__package__) / "lua"
    return sorted(entry.name.removesuffix(".lua") for entry in folder.iterdir() if entry.name.endswith(".lua"))


async def load_missing(redis: Client, *, flags_line: bool = True, fenced: bool = False) -> list[str]:
    """Load every script that the server has not got. Answers with the names of those; raises redis-py's errors."""
    all_scripts = [load(name, flags_line=flags_line, fenced=fenced) for name in names()]
    there = await redis.execute_command("SCRIPT EXISTS", *[script.sha for script in all_scripts])
    missing = [script for script, known in zip(all_scripts, there, strict=True) if not known]
    for script in missing:
        await redis.execute_command("SCRIPT LOAD", script.source)
    return [script.name for script in missing]


def is_too_old(error: ResponseError) -> bool:
    """Whether this is how a server answers that knows neither flags lines nor EVALSHA_RO: one before 7.0, fakeredis."""
    words = str(error).lower()
    return "near '#'" in words or ("unknown command" in words and "evalsha_ro" in words)


def _libraries(folder: Traversable, wanted: Sequence[str]) -> dict[str, str]:
    """The text of each library, in an order in which every one stands behind those that it uses."""
    found: dict[str, str] = {}
    for name in wanted:
        text = (folder / f"{name}.lua").read_text()
        first = text.partition("\n")[0]
        if first.startswith(_LIBRARY_USES):
            found = _libraries(folder, _names(first.removeprefix(_LIBRARY_USES))) | found
        found.setdefault(name, text)
    return found


def _split(name: str, text: str) -> tuple[dict[str, str], str]:
    match = _HEADER.match(text)
    if match is None:
        raise BadScript(f"{name}.lua does not open with a header comment")
    fields: dict[str, str] = {}
    current = ""
    for line in match["header"].splitlines():
        words = line.split(maxsplit=1)
        if current and fields[current].endswith(","):
            fields[current] += " " + line.strip()
        elif words and words[0] in _FIELDS and line.startswith("  " + words[0]):
            current = words[0]
            fields[current] = words[1].strip()
        else:
            current = ""
    missing = set(_FIELDS) - fields.keys()
    if missing:
        raise BadScript(f"{name}.lua: the header lacks {', '.join(sorted(missing))}")
    return fields, text[match.end() :]


def _names(value: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in value.split(",") if part.strip())
    for i, name in enumerate(found):
        if not re.fullmatch(r"[a-z_]+(\.\.\.)?", name) or (name.endswith("...") and i != len(found) - 1):
            raise BadScript(f"{name!r} is no name for a header, or a list that is not the last")
    return found


def _bind(table: str, listed: tuple[str, ...], first: int = 1) -> str:
    single = [name for name in listed if not name.endswith("...")]
    lines = ""
    if single:
        lines += f"local {', '.join(single)} = {', '.join(f'{table}[{first + i}]' for i in range(len(single)))}\n"
    if len(single) < len(listed):
        lines += f"local {listed[-1][:-3]} = {first + len(single)}\n"
    return lines


def _check_used(name: str, listed: tuple[str, ...], source: str, bindings: str) -> None:
    body = source.replace(bindings, "", 1)
    for each in listed:
        if not re.search(rf"\b{each.removesuffix('...')}\b", body):
            raise BadScript(f"{name}.lua names {each!r} in its header and does not use it")
