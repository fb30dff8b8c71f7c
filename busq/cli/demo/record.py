"""
What the story leaves behind: records and histories as the bus had them, and who is who in them.
"""

from __future__ import annotations

import msgspec

from busq.protocol.job import Event, Job

SPARE, AT_WORK, DEAF = "spare", "squeeze-0", "recount"  # the jids of the three that are cancelled


class Recorded(msgspec.Struct, frozen=True):
    """A job and its history, as the bus had them at the end."""

    job: Job
    events: list[Event]


class Record(msgspec.Struct, kw_only=True):
    """
    `special` are the jobs that something happened to, by jid; `held` the jids that a worker held when it was killed.

    `names` turns the names in histories into those of the demo. `trouble` is why the story broke off, "" if it did not.
    """

    packs: list[Job] = []
    special: dict[str, Recorded] = {}
    held: list[str] = []
    names: dict[str, str] = {}
    killed: str = ""
    was_suspect: bool = False
    trouble: str = ""
    exits: dict[str, int | None] = {}
