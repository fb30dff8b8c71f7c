"""
`busq doctor`: is this server fit for a bus, and is the bus on it well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from busq.cli import exits
from busq.cli.place import HERE, Output, Place

if TYPE_CHECKING:
    from busq.store.fitness import Finding


def doctor(*, output: Output = "table", place: Place = HERE) -> int:
    """
    Check the server and the bus on it, and say what to do.

    Server: reach, version, eviction, known holes, persistence, replication, ACL, clock, pub/sub round trip. Bus: its
    version and shards, overdue cancels, workers, watchdogs. Exits 3 when anything fails.
    """
    from busq.cli import loop
    from busq.cli.output import print_json
    from busq.store import checkup, fitness

    findings = loop.run(checkup.look_over(place.settings()))
    if output == "json":
        print_json(findings)
    else:
        _print(findings)
    return exits.UNREACHABLE if fitness.worst(findings) is fitness.Grade.FAIL else exits.DONE


def _print(findings: list[Finding]) -> None:
    from busq.cli.output import Column, print_table

    rows: list[tuple[object, ...]] = []
    for finding in findings:
        rows.append((finding.grade, finding.check, finding.found))
        if finding.advice:
            rows.append(("", "", f"→ {finding.advice}"))
    print_table([Column("", kept=True, coloured=True), Column("CHECK", kept=True), Column("FOUND")], rows, empty="")
