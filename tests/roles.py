"""
Redis users for tests: one for each role, as `busq acl` makes them, and `default` switched off.

`tester` may do everything and stands for whoever runs the server; `client` is what a web application has: it produces,
cancels and reads. `as_role` turns a tester's URL into that of a role, and leaves the URL of a server without users as
it is: so the same bench serves both.
"""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from busq.config import Settings
from busq.store import roles
from busq.store.roles import Role
from busq.store.store import Store

TESTER = "tester"

DEFAULT_OFF = "user default off ~* &* +@all"
"""Nobody can log in as `default`, and yet it keeps its rights: the server loads its append-only file as this user."""

CLIENT = (Role.PRODUCER, Role.CANCELLER, Role.READER)
USERS: dict[str, tuple[Role, ...]] = {"client": CLIENT, **{str(role): (role,) for role in Role}}


def password_of(user: str) -> str:
    return f"the-password-of-{user}"


def acl_lines(namespace: str = "busq", *, lacking: tuple[str, ...] = ()) -> list[str]:
    """An aclfile: every role's user on this bus, the tester, and no `default`. `lacking`: commands the server lacks."""
    lines = [DEFAULT_OFF, f"user {TESTER} on {_hashed(TESTER)} ~* &* +@all"]
    for user, played in USERS.items():
        found = roles.grants(played, namespace).without(lacking)
        lines.append(roles.user_line(user, found, [_hashed(user)]))
    return lines


def url_of(user: str, place: str, *, scheme: str = "redis") -> str:
    """The URL of a user at a place such as 127.0.0.1:6379/0."""
    return f"{scheme}://{user}:{password_of(user)}@{place}"


def as_role(url: str, user: str) -> str:
    """The same place for another user, where the URL is a tester's; else the URL as it is."""
    parts = urlsplit(url)
    if parts.username != TESTER:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, f"{user}:{password_of(user)}@{host}", parts.path, parts.query, ""))


def as_tester(url: str) -> str:
    """The tester's URL for the place that a user's URL leads to; else the URL as it is."""
    parts = urlsplit(url)
    if parts.username not in USERS:
        return url
    return url_of(TESTER, f"{parts.netloc.rpartition('@')[2]}{parts.path}", scheme=parts.scheme)


def elsewhere(url: str, place: str, *, scheme: str = "redis") -> str:
    """The same login at another place: at a proxy in front of the server, at all nodes, at those who name it."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return f"{scheme}://{login}{at}{place}"


async def deploy(url: str, **settings: Any) -> None:
    """What a watchdog does when it starts: make the bus and load the scripts. For a server with users only."""
    if as_role(url, "watchdog") == url:
        return
    store = Store(Settings.load(url=as_role(url, "watchdog"), **settings), by="deployer")
    try:
        await store.open()
        await store.keep_able()
    finally:
        await store.close()


def _hashed(user: str) -> str:
    return "#" + hashlib.sha256(password_of(user).encode()).hexdigest()
