"""
Attempts as the log shows them: who may begin one, and who may take it away.

A start mints the next number and a new token, and its entry is pending for its owner (C8). Nothing starts that was
asked to stop, by itself, by a job above it or by a rule (C9). An attempt leaves its owner's hands by the owner's own
word, by its cancel's deadline, or when the owner's lease is over (C13).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from judge import schema as s
from judge.contract import CANCELLED, CANCELLING, FAILED, QUEUED, RUNNING, TERMINAL
from judge.schema import Line

if TYPE_CHECKING:
    from judge.lives import Life, Lives

DEEPEST = 100


class Attempt:
    __slots__ = ("began", "began_ms", "ended", "ended_by", "number", "owner", "taken", "token")

    def __init__(self, number: int, token: bytes, owner: bytes, began: int, began_ms: int) -> None:
        self.number = number
        self.token = token
        self.owner = owner
        self.began = began
        self.began_ms = began_ms
        self.ended: int | None = None
        self.ended_by = b""
        self.taken = False  # from its owner, by somebody else


def judge_start(
    lives: Lives, life: Life, before: dict[bytes, bytes], fields: dict[bytes, bytes], line: Line | None
) -> None:
    number, token = int(fields.get(s.ATTEMPT, b"0")), fields.get(s.TOKEN, b"")
    last = life.attempts[-1].number if life.attempts else int(before.get(s.ATTEMPT, b"0"))
    if number != last + 1:
        lives.wrong("C8", life, f"attempt {number} started after attempt {last}")
    if not token or any(each.token == token for each in life.attempts):
        lives.wrong("C8", life, f"attempt {number} has the token of an older one")
    owner = fields.get(s.OWNER, b"")
    life.attempts.append(Attempt(number, token, owner, lives.position, line.at if line else 0))
    if life.requested is None:
        _judge_above(lives, life, before)
        if lives.rules is not None:
            lives.rules.judge_start(lives, life, before)


def _judge_above(lives: Lives, life: Life, record: dict[bytes, bytes]) -> None:
    """A job below one that is being cancelled does not start, unless it is let go on."""
    own, above = record, record.get(s.PARENT)
    for _ in range(DEEPEST):
        if above is None or s.POLICY in own or record.get(s.KIND, b"").endswith(s.HOOK_KIND):
            return
        key = lives.names.job(life.shard, above)
        parent = lives.by_key.get(key)
        if parent is None or number_of(parent.record, s.ADMISSION) > number_of(own, s.ADMISSION):
            return
        if parent.state in (CANCELLING, CANCELLED):
            lives.wrong("C9", life, f"started below {parent.jid}, whose cancel was accepted at {parent.requested}")
            return
        own, above = parent.record, parent.record.get(s.PARENT)


def judge_admission_below(lives: Lives, life: Life, above: bytes) -> None:
    """Only a live job that nobody has asked to stop gains children."""
    parent = lives.by_key.get(lives.names.job(life.shard, above))
    if parent is None or parent.state in TERMINAL or parent.state == CANCELLING:
        state = "gone" if parent is None else (parent.state or b"").decode()
        lives.wrong("C9", life, f"admitted below {above.decode('utf-8', 'replace')}, which is {state}")


def judge_end(
    lives: Lives,
    life: Life,
    was: bytes | None,
    before: dict[bytes, bytes],
    fields: dict[bytes, bytes],
    line: Line | None,
) -> None:
    """The state is left in which an attempt was running: by whom, and might they?"""
    if was not in (RUNNING, CANCELLING) or life.state == CANCELLING or not life.attempts:
        return
    attempt = life.attempts[-1]
    if attempt.ended is not None:
        return
    attempt.ended = lives.position
    attempt.ended_by = line.by if line else b""
    if was == CANCELLING and s.PARKED in before:
        return  # its own attempt ended long ago
    if line is None or line.by == attempt.owner:
        return
    attempt.taken = True
    late = was == CANCELLING and line.at >= number_of(before, s.DEADLINE)
    if life.state in (QUEUED, RUNNING, FAILED, CANCELLED) and not late:
        lease = lives.model.score(lives.names.alone(life.shard, "workers"), attempt.owner)
        if lease is not None and lease > line.at:
            lives.wrong(
                "C13",
                life,
                f"attempt {attempt.number} was taken from {attempt.owner.decode()} by {line.by.decode()}, "
                f"{lease - line.at:.0f} ms before its lease was over",
            )


def number_of(record: dict[bytes, bytes], field: bytes) -> float:
    try:
        return float(record.get(field, b"0"))
    except ValueError:
        return 0.0
