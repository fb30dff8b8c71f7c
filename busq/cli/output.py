"""
What commands print: tables for people, one JSON document for programs.

Nothing that came from a job reaches the terminal as it is: tables spell out what is not printable, and so does JSON,
in its own way. Tables are cut to a terminal's width; in a pipe every line is as long as it needs to be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from busq.cli.safe import safe, safe_json, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

IN_A_PIPE = 100_000  # columns: no cutting, no wrapping
WIDEST_KEPT = 48
NARROW = 100  # columns: below, a table leaves out what can be looked up elsewhere

COLOURS = {
    "running": "cyan",
    "cancelling": "yellow",
    "cancelled": "magenta",
    "succeeded": "green",
    "failed": "red",
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
    "skip": "dim",
    "not_found": "red",
    "already_finished": "red",
    "abandoned": "yellow",
}


class Column(NamedTuple):
    """
    `kept`: never cut, for what people copy. The other columns give way on a narrow terminal: `cut` ones end in an
    ellipsis, `wide` ones are left out, the others go on in the next line.
    """

    title: str
    kept: bool = False
    right: bool = False
    coloured: bool = False
    cut: bool = False
    wide: bool = False


# JSON ----------------------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """Print one document: fields as in Python, moments in ISO 8601, bytes in base64."""
    sys.stdout.write(json_document(value) + "\n")


def json_document(value: Any) -> str:
    try:
        data = msgspec.json.encode(value, enc_hook=str)
    except (TypeError, ValueError, OverflowError, RecursionError):
        data = msgspec.json.encode(_plain(value), enc_hook=str)
    return msgspec.json.format(safe_json(data), indent=2)


def _plain(value: Any, depth: int = 0) -> Any:
    """The long way, for what MessagePack can hold and JSON cannot: keys that are no text, whole numbers of any size."""
    if depth > 100:
        return safe(f"{value!r:.200}")
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name), depth + 1) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): _plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each, depth + 1) for each in value]
    try:
        msgspec.json.encode(value, enc_hook=str)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return safe(repr(value))
    return value


# Tables --------------------------------------------------------------------------------------------------


def console() -> Console:
    """Stdout for people: colours on a terminal only, and not where NO_COLOR asks for none."""
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            raise  # called while the error is handled; `exits` knows what it means

    on_terminal = sys.stdout.isatty()
    return Quiet(
        force_terminal=on_terminal,
        width=None if on_terminal else IN_A_PIPE,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
    )


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows, or `empty` on stderr when there are none."""
    rows = list(rows)
    if not rows:
        print(empty, file=sys.stderr)
        return
    show(console(), table(columns, rows))


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> Any:
    from rich.table import Table

    if console().width < NARROW:
        shown = [place for place, column in enumerate(columns) if not column.wide]
        rows = [[row[place] for place in shown] for row in rows]
        columns = [columns[place] for place in shown]
    cells = [[_cell(value, column) for value, column in zip(row, columns, strict=True)] for row in rows]
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, column in enumerate(columns):
        widest = max([len(column.title), *(row[place].cell_len for row in cells)])
        made.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=column.kept or column.cut,
            overflow="ellipsis" if column.cut else "fold",
            min_width=min(widest, WIDEST_KEPT if column.kept else 12) if column.kept or column.cut else None,
        )
    for row in cells:
        made.add_row(*row)
    return made


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values below each other, without those that have none."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(no_wrap=True, style="bold")
    made.add_column(overflow="fold")
    for name, value in facts:
        if value not in (None, "", [], {}):
            made.add_row(name, _cell(value, Column(name, coloured=name in ("state", "ended"))))
    show(console(), made)


def show(out: Console, renderable: Any) -> None:
    """Print anything that rich can draw."""
    if out.is_terminal:
        out.print(renderable)
        return
    # Rich fills lines with spaces up to the table's width; in a pipe these are in the way.
    with out.capture() as captured:
        out.print(renderable)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def _cell(value: object, column: Column) -> Text:
    from rich.text import Text

    words = "" if value is None else shown(value)
    return Text(words, style=COLOURS.get(words, "") if column.coloured else "")


# Words for numbers ---------------------------------------------------------------------------------------


def duration(seconds: float | None) -> str:
    """A length of time as people say it: 0.012 s, 3.2 s, 4m 10s, 2h 5m, 3d 4h; "" for none."""
    if seconds is None:
        return ""
    if abs(seconds) < 1:
        return f"{seconds:.3f} s"
    if abs(seconds) < 60:
        return f"{seconds:.1f} s"
    for step, one, other, unit in (
        (3600, 60, 1, "m s"),
        (86_400, 3600, 60, "h m"),
        (float("inf"), 86_400, 3600, "d h"),
    ):
        if abs(seconds) < step:
            major, minor = unit.split()
            return f"{int(seconds // one)}{major} {int(seconds % one // other)}{minor}"
    return f"{seconds} s"


def moment(at: datetime | None) -> str:
    """A moment in UTC, to the millisecond."""
    return "" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " UTC"


def since(at: datetime | None, now: datetime) -> str:
    """How long ago, to the greatest unit: 3.2 s, 4m, 2h, 3d; "" for never."""
    if at is None:
        return ""
    words = duration(max(0.0, (now - at).total_seconds()))
    return words if words.endswith(" s") else words.partition(" ")[0]
