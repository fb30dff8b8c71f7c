"""
The commands by name, each in a module that is imported when it is called.

One line of help for each stands here as well as in its module's docstring, so that `busq --help` imports none of
them. Adding a command means adding a line to COMMANDS.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Group

from busq.cli import exits

TRY_IT = Group("Try it out", sort_key=1)
RUN_IT = Group("Run", sort_key=2)
USE_IT = Group("Enqueue and cancel", sort_key=3)
LOOK_AT_IT = Group("Look", sort_key=4)

COMMANDS: tuple[tuple[str, str, Group, str], ...] = (
    ("dev", "busq.cli.dev:dev", TRY_IT, "Server, worker and watchdog in one terminal, for a first try."),
    (
        "demo",
        "busq.cli.demo:demo",
        TRY_IT,
        "Half a minute on real input: start, cancel, ignore a cancel, be finalized.",
    ),
    ("worker", "busq.cli.worker:worker", RUN_IT, "Run the jobs of an application."),
    ("watchdog", "busq.cli.watchdog:watchdog", RUN_IT, "Finalize overdue cancels, look after jobs of dead workers."),
    ("drain", "busq.cli.drain:drain", RUN_IT, "Have workers take no more jobs, let those that run end, and leave."),
    ("doctor", "busq.cli.doctor:doctor", RUN_IT, "Check the server and the bus on it."),
    ("acl", "busq.cli.acl:acl", RUN_IT, "The rule of a Redis user for a role."),
    ("enqueue", "busq.cli.enqueue:enqueue", USE_IT, "Put a job on its queue."),
    ("cancel", "busq.cli.cancel:cancel", USE_IT, "Ask jobs to stop."),
    ("get", "busq.cli.look:get", LOOK_AT_IT, "One job: its record as it is now."),
    ("list", "busq.cli.look:jobs", LOOK_AT_IT, "Jobs, live ones first."),
    ("history", "busq.cli.look:history", LOOK_AT_IT, "What happened to one job, oldest first."),
    ("stats", "busq.cli.look:stats", LOOK_AT_IT, "The bus in numbers."),
    ("workers", "busq.cli.look:workers", LOOK_AT_IT, "Every worker and watchdog."),
    ("suspects", "busq.cli.look:suspects", LOOK_AT_IT, "Abandoned attempts whose code may still run."),
    ("rules", "busq.cli.rules:rules", LOOK_AT_IT, "Live rules of cancels by filter; rules revoke ends one."),
    ("dead", "busq.cli.dead:dead", LOOK_AT_IT, "Dead letters: list, retry, purge."),
    ("top", "busq.cli.top:top", LOOK_AT_IT, "Watch the bus live."),
)

STDIN = "/dev/stdin"  # what `-` becomes: a word that the parser does not take for an option, and that is no jid
FOR_EVER = "inf"

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\Z|inf\Z", re.IGNORECASE)


def run(tokens: Sequence[str]) -> object:
    """Parse a command line and carry it out. Answers with an exit code, or None when it is done."""
    try:
        return make_app()(prepared(tokens))
    except CycloptsError as error:
        chain = " ".join(["busq", *(error.command_chain or ())])
        exits.tell(f"{error} See `{chain} --help`.")
        return exits.USAGE


def make_app() -> App:
    from busq import __version__

    app = App(
        name="busq",
        help="A job bus on Redis Streams whose cancel is durable, fast, provable and honest.",
        help_epilogue="Exit codes: 0 done · 1 the answer is no · 2 wrong usage · 3 Redis not reachable or unfit.",
        version=__version__,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        print_error=False,
        exit_on_error=False,
    )
    app["--help"].group = app["--version"].group = Group("Options", sort_key=9)
    for name, where, group, help in COMMANDS:
        app.command(where, name=name, group=group, help=help)
    return app


def prepared(tokens: Sequence[str]) -> list[str]:
    """
    The command line with two habits spelled out that the parser does not know.

    `--wait` with no number behind it means without end, and `-` alone means stdin.
    """
    prepared: list[str] = []
    for place, word in enumerate(tokens):
        if word == "--":
            return [*prepared, *tokens[place:]]
        after = tokens[place + 1] if place + 1 < len(tokens) else ""
        is_value = bool(prepared) and prepared[-1].startswith("--") and "=" not in prepared[-1]
        if word == "--wait" and not _NUMBER.match(after):
            word = f"--wait={FOR_EVER}"
        elif word == "-" and not is_value:
            word = STDIN
        prepared.append(word)
    return prepared
