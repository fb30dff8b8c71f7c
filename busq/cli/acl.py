"""
`busq acl ROLE`: the rule that makes a Redis user for a role.

A password goes in through a file and comes out as its SHA-256, which is what Redis keeps: in clear it stands neither on
a command line nor in what is printed.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from cyclopts import Parameter

from busq.cli import exits
from busq.cli.place import HERE, Flag, Output, Place

if TYPE_CHECKING:
    from busq.config import Settings
    from busq.store.roles import Grants

RoleName = Literal["producer", "canceller", "worker", "watchdog", "reader", "admin"]

_USER = re.compile(r"[A-Za-z0-9_.@-]{1,128}\Z")


class AclUser(msgspec.Struct, frozen=True, kw_only=True):
    """A user of some roles; `line` is for an aclfile, `command` for redis-cli, `left_out` what the server lacks."""

    roles: list[str]
    user: str
    namespace: str
    rules: list[str]
    line: str
    command: str
    left_out: list[str]


def acl(
    role: Annotated[RoleName, Parameter(name="ROLE")],
    /,
    *more: Annotated[RoleName, Parameter(name="ROLE")],
    user: str | None = None,
    password_file: str | None = None,
    no_password: Flag = False,
    setuser: Flag = False,
    output: Output = "table",
    place: Place = HERE,
) -> None:
    """
    Print the ACL rule of a Redis user that can do the work of a role and nothing else.

    The line goes into the server's aclfile; with --setuser it is a command for redis-cli. Where a URL is given or set,
    that server is asked which commands it knows; else the rule is for Redis 7.0 and everything later.

    Parameters
    ----------
    role
        producer, canceller, worker, watchdog, reader, or admin: all that people do at the command line.
    more
        Further roles of the same user, such as producer and canceller for a web application.
    user
        The user's name; left out: busq-ROLE.
    password_file
        A file with the user's password; /dev/stdin asks for it there. Only its SHA-256 is printed.
    no_password
        Let the user in without any password.
    setuser
        Print a command for redis-cli instead of a line for an aclfile.
    """
    from busq.cli.output import print_json
    from busq.store import roles

    wanted = list(dict.fromkeys((role, *more)))
    name = f"busq-{'-'.join(wanted)}" if user is None else user
    secrets = _secrets(name, password_file, no_password=no_password)
    settings = place.settings_without_url()
    whole = roles.grants([roles.Role(each) for each in wanted], settings.namespace)
    left_out = _left_out(settings, whole)
    found = whole.without(left_out)
    line = roles.user_line(name, found, secrets)
    command = line.replace("user ", "ACL SETUSER ", 1)
    if not secrets:
        exits.tell(f"user {name} has no password and cannot log in as it is: give --password-file")
    if output == "json":
        rules = [*secrets, *found.rules()]
        print_json(
            AclUser(
                roles=list(wanted), user=name, namespace=settings.namespace, rules=rules, line=line, command=command,
                left_out=left_out,
            )
        )  # fmt: skip
    else:
        print(command if setuser else line)


def _left_out(settings: Settings, found: Grants) -> list[str]:
    """What the server lacks of all that a role needs; where none is known or tells, what Redis 7.0 lacks."""
    from busq.cli import loop
    from busq.store import roles

    lacking = loop.run(_not_there(settings, found)) if settings.url else None
    if lacking is not None:
        return lacking
    lacking = [each for each in roles.LATER_THAN_7_0 if each in found.commands]
    if lacking:
        exits.tell(f"no server was asked what it knows; left out, because Redis 7.0 lacks it: {', '.join(lacking)}")
    return lacking


async def _not_there(settings: Settings, found: Grants) -> list[str] | None:
    from busq.store import authority
    from busq.store.connection import Connections, reaching

    connections = Connections(settings)
    try:
        with reaching(connections.place):
            (_, server), *_ = await connections.servers()
            return await authority.unknown_commands(server, found)
    finally:
        await connections.close()


def _secrets(user: str, password_file: str | None, *, no_password: bool) -> list[str]:
    """The words of the rule that let the user in. Raise `UsageError`."""
    from busq.errors import UsageError

    if not _USER.match(user):
        raise UsageError(f"--user: {user!r} will not do; it takes 1 to 128 characters of A-Z a-z 0-9 _ . @ -")
    if no_password and password_file is not None:
        raise UsageError("--no-password and --password-file exclude each other")
    if no_password:
        return ["nopass"]
    if password_file is None:
        return []
    try:
        given = Path(password_file).read_bytes()
    except OSError as error:
        raise UsageError(f"--password-file: {password_file!r} cannot be read: {error.strerror or error}") from None
    password = given.removesuffix(b"\n").removesuffix(b"\r")
    if not password or b"\n" in password:
        raise UsageError(f"--password-file: {password_file!r} does not hold one line with a password")
    return [f"#{hashlib.sha256(password).hexdigest()}"]
