"""
In what ways a server may not serve us, by name.

A server that is away, one that is there and says no, and one that no longer is who it was are different things to the
person who has to mend it, and the same thing to us: nothing was changed, and the call is sent again later. So each has
a name and advice, and everybody treats them alike.
"""

from __future__ import annotations

from enum import StrEnum


class Trouble(StrEnum):
    """Why Redis does not serve. The values stand in logs, on health pages and in `BusUnavailable.trouble`."""

    UNREACHABLE = "unreachable"
    LOADING = "loading"
    READ_ONLY = "read_only"
    CUT_OFF = "cut_off"
    OUT_OF_MEMORY = "out_of_memory"
    DISK = "disk"
    FEW_REPLICAS = "few_replicas"
    BUSY = "busy"
    CLUSTER_DOWN = "cluster_down"
    CROWDED = "crowded"
    LOGIN = "login"
    TLS = "tls"
    FORBIDDEN = "forbidden"
    UNFIT = "unfit"
    REFUSED = "refused"

    @property
    def words(self) -> str:
        """What it says of the server, to be read after its place: `Redis at … is still loading its data`."""
        return _WORDS[self][0]

    @property
    def advice(self) -> str:
        """What would do, as a sentence."""
        return _WORDS[self][1]


_WORDS = {
    Trouble.UNREACHABLE: ("is not reachable", "Check that it runs, and the way to it."),
    Trouble.LOADING: ("is still loading its data", "Try again in a moment."),
    Trouble.READ_ONLY: (
        "is a replica and takes no writes",
        "Use the address of the primary; after a failover the new one is found by reconnecting.",
    ),
    Trouble.CUT_OFF: ("is a replica without its primary", "Use the address of the primary."),
    Trouble.OUT_OF_MEMORY: (
        "is out of memory",
        "Raise maxmemory or let jobs end; nothing new is admitted or started meanwhile, and cancels go on.",
    ),
    Trouble.DISK: ("cannot write to its disk", "Make room on the disk it saves to, and look at its log."),
    Trouble.FEW_REPLICAS: (
        "has not enough replicas to take writes",
        "Bring its replicas back, or lower min-replicas-to-write.",
    ),
    Trouble.BUSY: ("is held up by a script that does not end", "SCRIPT KILL ends it; find out whose it is."),
    Trouble.CLUSTER_DOWN: ("belongs to a cluster that is down", "Some of its slots have no node; bring that back."),
    Trouble.CROWDED: ("has no connection left for us", "Raise maxclients, or close connections."),
    Trouble.LOGIN: ("refused the login", "Check user and password."),
    Trouble.TLS: ("cannot be spoken to by TLS", "Trying again does not mend that."),
    Trouble.FORBIDDEN: ("refused a command", "Check the ACL of this user."),
    Trouble.UNFIT: ("must not carry a bus", "`busq doctor` says more."),
    Trouble.REFUSED: ("cannot serve now", "Try again in a moment."),
}

# The first word of an error, which says what sort it is.
_CODES = {
    "LOADING": Trouble.LOADING,
    "READONLY": Trouble.READ_ONLY,
    "MASTERDOWN": Trouble.CUT_OFF,
    "OOM": Trouble.OUT_OF_MEMORY,
    "MISCONF": Trouble.DISK,
    "NOREPLICAS": Trouble.FEW_REPLICAS,
    "BUSY": Trouble.BUSY,
    "CLUSTERDOWN": Trouble.CLUSTER_DOWN,
    "NOAUTH": Trouble.LOGIN,
    "WRONGPASS": Trouble.LOGIN,
    "NOPERM": Trouble.FORBIDDEN,
    "TRYAGAIN": Trouble.REFUSED,
    "NOSCRIPT": Trouble.REFUSED,
}
# Errors of the sort ERR that are told apart by what they say. For the second one Redis 7.0 has no word, and Redis 7.2
# says it in other words.
_SAYINGS = {
    "max number of clients": Trouble.CROWDED,
    "The user executing the script can't": Trouble.FORBIDDEN,
    "ACL failure in script": Trouble.FORBIDDEN,
}


def trouble_of(code: str, text: str) -> Trouble | None:
    """
    The trouble that an error speaks of, None for one that is none: then the call itself will not do.

    `code` is the error's first word, `text` what it says with or without that.
    """
    for saying, trouble in _SAYINGS.items():
        if saying in text:
            return trouble
    return _CODES.get(code)
