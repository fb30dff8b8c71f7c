"""
One run, judged: the log of each server is played, the histories are laid beside it, and every check has its say.

    run folder
      server*/appendonlydir/   the servers' logs; several servers are judged each by itself
      history/*.jsonl          what clients, handlers and the nemesis wrote down
      run.json                 run, seed, namespace, shards, settings, expect_drained; further, all optional: dump,
                               keep_kinds (kinds whose handlers turn a late cancel round), expect_faults (name: count),
                               expect_moves ("queued -> running"), slack_s (what a busy machine may add to a bound),
                               hears (kinds whose handlers hear a cancel at once, and within_s of its acceptance)

The server is to run with `appendonly yes`, `appendfsync no` or `always`, `aof-use-rdb-preamble no`,
`auto-aof-rewrite-percentage 0` and `aof-timestamp-enabled yes`. With `everysec` Redis puts a write off while an fsync
is on, answers all the same, and a SIGKILL loses what was answered: the log is not the truth any more then.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

from judge.aof import Command, Log
from judge.bounds import Clock, judge_bounds
from judge.clients import Jobs, judge_clients
from judge.conservation import Conservation
from judge.faults import Faults
from judge.handlers import judge_handlers
from judge.history import read_history
from judge.lives import Life, Lives
from judge.model import Model
from judge.residue import compare_with_dump, judge_residue, suspects_of
from judge.rules import Rules
from judge.schema import Keys
from judge.verdict import Unusable, Verdict

SLACK_S = 1.0


class Played:
    """One server, played to its end."""

    def __init__(self, folder: Path, told: dict[str, Any], verdict: Verdict) -> None:
        keys = Keys(told.get("namespace", "busq"))
        self.log = Log(folder)
        self.clock = Clock()
        self.lives = Lives(keys, verdict, frozenset(told.get("keep_kinds", ())), self.log.name)
        self.model = Model(keys, self.lives)
        self.lives.model = self.model
        self.lives.rules = Rules()
        self.suspects: list[bytes] = []
        self.transactions = 0
        self.end = 0

    def play(self, told: dict[str, Any], verdict: Verdict) -> None:
        first = len(verdict.violations)
        conservation = Conservation(self.model, self.lives)
        lives, model, apply, judge = self.lives, self.model, self.model.apply, conservation.judge
        stamp = 0
        for position, at, commands, whole, base in self.log.transactions():
            lives.position = position
            if lives.base and not base:
                lives.end_transaction()  # a state has been loaded; what was written of it is no step of anybody
            lives.base = base
            if at != stamp:
                self.clock.stamped(position, at)
                stamp = at
            model.alone = not whole and not base
            for command in commands:
                if command[0] == b"ZADD":
                    self._added(command)
                apply(command)
            self.transactions += 1
            if not base and lives.changed:
                judge()
        self.end = lives.position
        if self.log.cut:
            verdict.remarks.append(f"{self.log.name}: the last {self.log.cut} bytes are half a write, and were cut off")
        if told.get("expect_drained"):
            judge_residue(model, lives, verdict, self.end)
        self.place(verdict, first)

    def place(self, verdict: Verdict, first: int = 0, jids: Container[str] | None = None) -> None:
        """Say where the violations that have a position stand, from the `first` of them on; of these jobs only."""
        for number in range(first, len(verdict.violations)):
            each = verdict.violations[number]
            if each.position is not None and not each.place and (jids is None or each.jid in jids):
                verdict.violations[number] = replace(each, place=f"{self.log.name}/{self.log.place(each.position)}")

    def _added(self, command: Command) -> None:
        if command[1].endswith(b":suspects"):
            self.suspects += command[3::2]
        elif command[1].endswith(b":workers"):
            self.clock.leased(self.lives.position, command)


def judge_run(folder: Path) -> Verdict:
    """The verdict over one run. Raise `Unusable` when there is nothing to judge."""
    verdict = Verdict()
    told = _told(folder)
    servers = sorted(path.parent for path in folder.glob("server*/appendonlydir/*.manifest"))
    if not servers:
        raise Unusable(f"{folder} has no server*/appendonlydir with a manifest: there is nothing to judge")
    history = read_history(folder / "history")
    played = [Played(path, told, verdict) for path in servers]
    faults = Faults(history, [each.log.name for each in played])
    for each in played:
        each.play(told, verdict)
    lives: list[Life] = [life for each in played for life in each.lives.all]
    if not lives:
        verdict.void.append("no job is in the log: nothing was shown")
    epochs = sum(len(each.lives.epochs) for each in played)
    jobs = Jobs(lives)
    drained = bool(told.get("expect_drained"))
    judge_clients(jobs, history, verdict, drained=drained, lost_epochs=epochs > 0)
    suspects = {found for each in played for found in suspects_of(each.model, each.suspects)}
    judge_handlers(jobs, history, faults, verdict, suspects=suspects, hears=told.get("hears", {}))
    interval = float(told.get("settings", {}).get("watchdog_interval_s", 0.5))
    slack = float(told.get("slack_s", SLACK_S))
    verdict.figures["bounds"] = [
        judge_bounds(
            each.lives.all, each.clock, faults, verdict, server=each.log.name, interval_s=interval, slack_s=slack
        )
        for each in played
    ]
    if told.get("dump"):
        compare_with_dump(folder / told["dump"], [each.model for each in played], verdict)
    for each in played:
        each.place(verdict, jids={life.jid for life in each.lives.all})
    _coverage(played, faults, history.torn, verdict)
    _wanted(told, verdict)
    return verdict


def _told(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Unusable(f"{path} cannot be read: {error}") from None
    if not isinstance(told, dict):
        raise Unusable(f"{path} holds no object")
    return told


def _coverage(played: list[Played], faults: Faults, torn: int, verdict: Verdict) -> None:
    """What the run has shown at all (C18, C19)."""
    commands: Counter[str] = Counter()
    found: dict[str, Counter[str]] = {name: Counter() for name in ("moves", "ended", "causes", "lines")}
    for each in played:
        commands.update(each.model.commands)
        for name, seen in zip(
            found, (each.lives.moves, each.lives.endings, each.lives.causes, each.lives.lines), strict=True
        ):
            found[name].update(seen)
    verdict.figures |= {
        "faults": dict(faults.counts),
        **{name: dict(seen) for name, seen in found.items()},
        "commands": dict(commands),
        "log": {
            "commands": sum(commands.values()),
            "transactions": sum(each.transactions for each in played),
            "of_others": sum(each.model.foreign for each in played),
        },
        "epochs": [len(each.lives.epochs) + 1 for each in played],
        "attempts": sum(len(life.attempts) for each in played for life in each.lives.all),
        "rules": sum(len(each.lives.rules) for each in played),
        "rules_not_judged": sum(each.lives.rules.not_judged for each in played),
        "torn_lines": torn,
    }


def _wanted(told: dict[str, Any], verdict: Verdict) -> None:
    """A run that does not show what it was made for is void (C19)."""
    for fault, count in told.get("expect_faults", {}).items():
        seen = verdict.figures["faults"].get(fault, 0)
        if seen < count:
            verdict.void.append(f"the fault {fault} was wanted {count} times, and came {seen} times")
    for move in told.get("expect_moves", ()):
        if not verdict.figures["moves"].get(move):
            verdict.void.append(f"no job moved {move}")
