"""
What is left when everything has ended (C15): nothing but what the table of keys names, with its expiry.

The dump, where the run has one, is what the server itself said at the end. If the judge's model does not hold the same
records, the judge has misread the log and the run is void.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from judge import schema as s
from judge.lives import Lives
from judge.model import Model
from judge.streams import Stream
from judge.verdict import Verdict

SHOWN = 5


def judge_residue(model: Model, lives: Lives, verdict: Verdict, position: int) -> None:
    """The server at the end of a drained run."""

    def left(key: bytes, words: str) -> None:
        verdict.wrong("C15", "", position, f"{key.decode('utf-8', 'replace')} {words}")

    for name, held in model.keys.items():
        key = model.names.apart(name)
        if key is None or (not held and not isinstance(held, Stream)):
            continue
        if not key.part:
            left(name, "is no key that the table names")
        elif key.part in s.EMPTY_AT_THE_END:
            left(name, f"still has {_some(held)}")
        elif key.part == "cancelled":
            forever = [member for member, score in held.items() if score == float("inf")]
            if forever:
                left(name, f"still has {_some(forever)} without an expiry")
        elif key.part == "rules" and any(field.isdigit() for field in held):
            _live_rules(name, held, model, left)
        elif key.part == "queue":
            _queue(name, held, left)
        elif key.part == "fallen" and name not in model.expiries:
            left(name, "has no expiry")
        elif key.part == "scope" and name not in model.expiries and held.get(b"state") != b"standing":
            left(name, f"has no expiry, and its rule is {held.get(b'state', b'nothing').decode()}")
    _roster(model, verdict)


def _live_rules(name: bytes, held: dict[bytes, bytes], model: Model, left: Any) -> None:
    for field, text in held.items():
        # A standing rule lives on until its time is over.
        if field.isdigit() and text.split(b" ", 3)[2] == b"0":
            left(name, f"still has the rule {field.decode()}, which is not settled")


def _queue(name: bytes, stream: Stream, left: Any) -> None:
    group = stream.groups.get(s.GROUP)
    if group is not None and group.pending:
        left(name, f"still has pending {_some(group.pending)}")
    jobs = [entry for entry, job in stream.entries.items() if job]
    # What nobody has read yet stays where nobody reads: a queue without a group has no worker.
    if jobs and group is not None:
        left(name, f"still has entries {_some(jobs)}")


def _roster(model: Model, verdict: Verdict) -> None:
    suspects = sum(
        len(held) for name, held in model.keys.items() if (k := model.names.apart(name)) and k.part == "suspects"
    )
    verdict.figures["suspects"] = verdict.figures.get("suspects", 0) + suspects


def suspects_of(model: Model, history: list[bytes]) -> set[tuple[str, int]]:
    """Attempts that were ever given up while their code may have run on, as (jid, attempt)."""
    found = set()
    for member in history:
        parts = member.split(b"\t")
        if len(parts) >= 2 and parts[1].isdigit():
            found.add((parts[0].decode("utf-8", "replace"), int(parts[1])))
    return found


def compare_with_dump(path: Path, models: list[Model], verdict: Verdict) -> None:
    """Records as the server had them at the end, beside the model's; those that expire may be on one side only."""
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        verdict.void.append(f"the dump cannot be read: {error}")
        return
    dumped = told.get("keys")
    if not isinstance(dumped, dict):
        verdict.remarks.append("the dump has no keys to compare the judge's model with")
        return
    records = {
        name.decode("latin-1"): model.record(name)
        for model in models
        for name in model.keys
        if (key := model.names.apart(name)) and key.part == "job"
    }
    lasting = {name.decode("latin-1") for model in models for name in model.keys if name not in model.expiries}
    apart = models[0].names.apart
    theirs = {text for text in dumped if (key := apart(text.encode("latin-1"))) and key.part == "job"}
    different = sorted((lasting & set(records)) - theirs | theirs - set(records))
    for text in theirs & set(records):
        value = dumped[text].get("value")
        record = {name.decode("latin-1"): field.decode("latin-1") for name, field in records[text].items()}
        if isinstance(value, dict) and value != record:
            different.append(text)
    if different:
        verdict.void.append(f"the model is not what the server was in the end: {_some(different)}")


def _some(members: Any) -> str:
    shown = [
        each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each) for each in list(members)[:SHOWN]
    ]
    more = len(members) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
