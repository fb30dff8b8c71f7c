"""
Whether a server may carry a bus at all, judged from what it says of itself.

One judgement for everybody who starts something: a worker, a watchdog, `busq doctor`. It is drawn from INFO alone,
which every server answers; CONFIG is closed on managed ones. A server that evicts any key loses whole queues without
a word, and one that is too old cannot run the scripts: both are refused. Everything else is a warning at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec
from redis import exceptions as redis_errors

from busq.config import Settings
from busq.errors import BusUnavailable, UnfitServer
from busq.store.connection import Client, Connections, reaching

OLDEST_REDIS = (7, 0)
OLDEST_VALKEY = (8, 0)

# CVE-2025-49844: a script that an authenticated user sends can run code in the server. The first release of each
# branch that has the repair; a branch that is not here and is older than the newest of them never got one.
_REPAIRED_REDIS = {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2}
_REPAIRED_VALKEY = {(7, 2): 11, (8, 0): 6, (8, 1): 4}


class Grade(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at: how it stands, what was found, and what to do where that is not well."""

    check: str
    grade: Grade
    found: str
    advice: str = ""


class Server(msgspec.Struct, frozen=True):
    """Which server this is. Valkey calls itself Redis 7.2.4 in `redis_version`; its own version stands elsewhere."""

    name: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {'.'.join(map(str, self.version)) or 'of unknown version'}"


Info = Mapping[str, Any]


async def read_info(connections: Connections, server: Client | None = None) -> Info | None:
    """
    What INFO says, of one server where several hold the bus; None where this user may not ask.

    Raise `BusUnavailable`.
    """
    with reaching(connections.place):
        try:
            info: Info = await (connections.commands if server is None else server).info()
        except redis_errors.NoPermissionError:
            return None
        except redis_errors.ResponseError as error:
            if "unknown command" not in str(error).lower():
                raise
            return None
    return info


async def require_fit(settings: Settings) -> list[Finding]:
    """
    Refuse a server that must not carry a bus; answer with what is worth a warning.

    Raise `UnfitServer` that says what was found and what would do, `BusUnavailable` or `ConfigError`.
    """
    connections = Connections(settings)
    told: list[tuple[str, list[Finding]]] = []
    try:
        with reaching(connections.place):
            servers = await connections.servers()
        for place, server in servers:
            told.append((place, await _judged(connections, server)))
    finally:
        await connections.close()
    for place, findings in told:
        for finding in findings:
            if finding.grade is Grade.FAIL:
                raise UnfitServer(f"Redis at {place} must not carry a bus: {finding.found}. {finding.advice}")
    return [finding for finding in gathered(told) if finding.grade is Grade.WARN]


async def _judged(connections: Connections, server: Client) -> list[Finding]:
    """One server's findings; one of a cluster may be away, and the others are there all the same."""
    try:
        return judge(await read_info(connections, server), apart=connections.apart)
    except BusUnavailable as error:
        if not connections.apart:
            raise
        found = f"it does not answer, and was not looked at: {error}"
        return [Finding(check="server", grade=Grade.WARN, found=found, advice="`busq doctor` looks at it again.")]


def gathered(told: Sequence[tuple[str, Sequence[Finding]]]) -> list[Finding]:
    """Findings of several servers as one list: what is the same on all of them stands there once."""
    found: list[Finding] = []
    for check in dict.fromkeys(finding.check for _, findings in told for finding in findings):
        of_servers = [(place, finding) for place, findings in told for finding in findings if finding.check == check]
        if len({(each.grade, each.found) for _, each in of_servers}) == 1:
            found.append(of_servers[0][1])
        elif all(each.grade is Grade.OK for _, each in of_servers):
            place, first = of_servers[0]
            found.append(
                msgspec.structs.replace(first, found=f"well on {len(of_servers)} servers; {place}: {first.found}")
            )
        else:
            found += [msgspec.structs.replace(each, found=f"{place}: {each.found}") for place, each in of_servers]
    return found


def judge(info: Info | None, *, apart: bool = False) -> list[Finding]:
    """
    The checks that decide whether a server is refused: its version, its role and what it evicts.

    `apart`: we speak to it as to one of a cluster.
    """
    if not info:
        return [
            Finding(
                check="server",
                grade=Grade.WARN,
                found="it does not answer INFO, so version and eviction policy are unknown",
                advice="Grant this user +info, or make sure yourself: Redis 7.0 or later, maxmemory-policy noeviction.",
            )
        ]
    return [_version(server_of(info)), _role(info, apart=apart), _eviction(info)]


def server_of(info: Info) -> Server:
    if str(info.get("server_name", "")).lower() == "valkey" or "valkey_version" in info:
        return Server("Valkey", _numbers(info.get("valkey_version")))
    return Server("Redis", _numbers(info.get("redis_version")))


def known_holes(server: Server) -> Finding:
    """Whether a hole is known through which a script breaks out. INFO cannot show repairs of a distribution."""
    repaired = _REPAIRED_VALKEY if server.name == "Valkey" else _REPAIRED_REDIS
    major, minor, patch = (*server.version, 0, 0, 0)[:3]
    branch = (major, minor)
    if branch > max(repaired) or patch >= repaired.get(branch, patch + 1):
        return Finding(check="security", grade=Grade.OK, found=f"{server} has the repair of CVE-2025-49844")
    return Finding(
        check="security",
        grade=Grade.WARN,
        found=f"{server} as released has CVE-2025-49844: a user who may send scripts can run code in the server",
        advice="Update the server; a distribution's package may carry the repair already, which cannot be seen from "
        "here. Until then let in only users whom you trust.",
    )


def _version(server: Server) -> Finding:
    oldest = OLDEST_VALKEY if server.name == "Valkey" else OLDEST_REDIS
    if not server.version:
        return Finding(
            check="version",
            grade=Grade.WARN,
            found="the server does not say its version",
            advice="Make sure yourself: Redis 7.0 or later, or Valkey 8 or later.",
        )
    if server.version < oldest:
        return Finding(
            check="version",
            grade=Grade.FAIL,
            found=f"{server} is too old",
            advice="It takes Redis 7.0 or later, or Valkey 8 or later.",
        )
    return Finding(check="version", grade=Grade.OK, found=str(server))


def _role(info: Info, *, apart: bool) -> Finding:
    if info.get("role") in ("slave", "replica"):
        return Finding(
            check="role",
            grade=Grade.FAIL,
            found="this is a replica, which takes no writes",
            advice=f"Connect to its primary ({info.get('master_host')}:{info.get('master_port')}).",
        )
    if str(info.get("cluster_enabled", 0)) == "1":
        if apart:
            return Finding(check="role", grade=Grade.OK, found=f"{info.get('role', 'primary')}, in a cluster")
        return Finding(
            check="role",
            grade=Grade.FAIL,
            found="this is one node of a cluster, and the URL leads to it alone",
            advice="Write redis+cluster:// in place of redis://, and busq finds the others.",
        )
    return Finding(check="role", grade=Grade.OK, found=f"{info.get('role', 'primary')}, standalone")


def _eviction(info: Info) -> Finding:
    policy = str(info.get("maxmemory_policy", ""))
    limit = info.get("maxmemory", 0)
    bounded = f", maxmemory {limit} bytes" if limit else ", no maxmemory"
    if policy.startswith("allkeys-"):
        return Finding(
            check="eviction",
            grade=Grade.FAIL,
            found=f"maxmemory-policy is {policy}: under memory pressure whole queues would vanish without a word",
            advice="Set maxmemory-policy noeviction (`redis-cli CONFIG SET maxmemory-policy noeviction`, and in its "
            "configuration), or use another server.",
        )
    if policy.startswith("volatile-"):
        return Finding(
            check="eviction",
            grade=Grade.WARN,
            found=f"maxmemory-policy is {policy}{bounded}: records of ended jobs may go before their time",
            advice="Set maxmemory-policy noeviction. No live job is lost: live records have no expiry.",
        )
    if policy != "noeviction":
        return Finding(
            check="eviction",
            grade=Grade.WARN,
            found=f"maxmemory-policy is {policy or 'not told'}",
            advice="Make sure that it is noeviction.",
        )
    return Finding(check="eviction", grade=Grade.OK, found=f"noeviction{bounded}")


def _numbers(version: object) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", str(version or ""))
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def worst(findings: Sequence[Finding]) -> Grade:
    """The gravest grade among these."""
    grades = {finding.grade for finding in findings}
    return next((grade for grade in (Grade.FAIL, Grade.WARN) if grade in grades), Grade.OK)
