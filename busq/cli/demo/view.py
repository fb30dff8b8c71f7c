"""
How the demo looks: a live picture on a terminal, plain lines anywhere else, and the tables at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from busq.cli.demo.app import Packed, tree_digest
from busq.cli.demo.record import AT_WORK, DEAF, SPARE, Record
from busq.cli.demo.scene import Line, Player, Scene
from busq.cli.demo.verdict import Judgement
from busq.cli.safe import safe
from busq.client.handle import value_of
from busq.protocol.job import Event
from busq.protocol.states import State

FRAMES_PER_S = 8
FIXED_LINES = 15  # above and around the lines of the story
MOST_LINES = 16


@contextmanager
def shown(scene: Scene, console: Console) -> Iterator[None]:
    """Show the scene as long as the context lasts."""
    if not console.is_terminal:
        scene.heard = lambda line: console.print(_line(line), soft_wrap=True)
        yield
        return
    with Live(Picture(scene), console=console, refresh_per_second=FRAMES_PER_S, transient=True):
        yield
    for line in scene.lines:
        console.print(_line(line))


class Picture:
    """The live picture: progress, processes, and as much of the story as the terminal has room for."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scene = self._scene
        room = min(MOST_LINES, max(3, console.height - FIXED_LINES))
        lines = [_line(line, cut=True) for line in scene.lines[-room:]]
        yield Panel(
            Group(_progress(scene), Text(), _players(scene.players)),
            title=f"[b]busq demo[/] · {scene.server}",
            title_align="left",
            subtitle=f"{scene.clock:.0f} s",
            subtitle_align="right",
            border_style="blue",
        )
        yield Panel(Group(*lines), title="what happens", title_align="left", border_style="blue", height=room + 2)
        yield Text()  # here a terminal echoes ^C; behind the frame it would push the picture up by a line


def _progress(scene: Scene) -> RenderableType:
    bar = Table.grid(expand=True, padding=(0, 1))
    bar.add_column(ratio=1)
    bar.add_column(justify="right", no_wrap=True)
    bar.add_row(ProgressBar(total=scene.batches, completed=scene.done), f"{scene.done} of {scene.batches} batches")
    rate = "" if scene.rate is None else f" at {_megabytes(scene.rate)}/s"
    sizes = f"{scene.files} files, {_megabytes(scene.bytes_in)} to {_megabytes(scene.bytes_out)}{rate}"
    work = Table.grid(expand=True, padding=(0, 1))
    work.add_column(ratio=1, no_wrap=True)
    work.add_column(justify="right", no_wrap=True)
    work.add_row(Text(safe(scene.tree.root), style="dim", overflow="ellipsis"), sizes)
    return Group(bar, work)


def _players(players: list[Player]) -> RenderableType:
    table = Table.grid(expand=True, padding=(0, 2))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(ratio=1, no_wrap=True)
    for player in players:
        doing = "looks after all of them" if player.running is None else f"{player.running} running"
        suspects = f", {player.suspects} will not stop" if player.suspects else ""
        state = (
            Text(player.note, style="bold red") if player.note == "killed" else Text(player.note or doing + suspects)
        )
        dot = Text("●", style={"killed": "red", "starting": "yellow"}.get(player.note, "green"))
        table.add_row(dot, player.name, f"[dim]pid {player.pid}[/]", state)
    for _ in range(3 - len(players)):
        table.add_row("")
    return table


def _line(line: Line, *, cut: bool = False) -> Text:
    text = Text.assemble((f"{line.at:5.1f} s  ", "dim"), Text.from_markup(line.text, style=line.style))
    if cut:
        text.no_wrap, text.overflow = True, "ellipsis"
    return text


# At the end -------------------------------------------------------------------------------------------------


def opening(scene: Scene, url: str) -> RenderableType:
    """What is played, and on what."""
    tree = scene.tree
    cut = f", the first {_megabytes(tree.size)} of more" if tree.cut else f", {_megabytes(tree.size)}"
    passed_over = f", {tree.skipped} passed over" if tree.skipped else ""
    table = Table.grid(padding=(0, 2))
    table.add_row("[b]server[/]", f"{scene.server}, for this demo only")
    table.add_row("[b]input[/]", Text(f"{safe(tree.root)}: {len(tree.names)} files{cut}{passed_over}"))
    table.add_row("[b]look[/]", f"in a second terminal: export BUSQ_URL={url}")
    return table


def what_happened(record: Record) -> RenderableType:
    """What happened when, to each job that something happened to: from the recorded histories."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="What happened when, from the recorded histories")
    table.title_style, table.title_justify = "bold", "left"
    table.add_column("job", no_wrap=True)
    table.add_column("event", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("try", justify="right")
    table.add_column("by", no_wrap=True)
    table.add_column("facts", overflow="ellipsis", no_wrap=True)
    for jid in [SPARE, AT_WORK, DEAF, *record.held[:2]]:
        events = record.special[jid].events if jid in record.special else []
        for event in events:
            first = event is events[0]
            table.add_row(
                jid if first else "",
                event.name,
                _since(events[0], event),
                str(event.attempt or "–"),
                record.names.get(event.by, "demo"),
                _facts(event, record),
                end_section=event is events[-1],
            )
    return table


def _since(first: Event, event: Event) -> str:
    if first.at is None or event.at is None:
        return ""
    return f"{(event.at - first.at).total_seconds():.3f} s"


def _facts(event: Event, record: Record) -> Text:
    words = safe(event.facts.replace("\t", " "))
    for name, called in record.names.items():
        words = words.replace(name, called)
    return Text(words, overflow="ellipsis")


def totals(record: Record, scene: Scene) -> RenderableType:
    """How much work was done, added up from the jobs' results."""
    packed: list[Packed] = [value_of(job, Packed) for job in record.packs if job.state is State.SUCCEEDED]
    bytes_in, bytes_out = sum(each.bytes_in for each in packed), sum(each.bytes_out for each in packed)
    vanished = sum(each.vanished for each in packed)
    table = Table.grid(padding=(0, 2))
    share = f" ({100 * bytes_out / bytes_in:.0f} %)" if bytes_in else ""
    rate = "" if scene.rate is None else f" at {_megabytes(scene.rate)}/s"
    passed_over = scene.tree.skipped + vanished
    left_out = f", {passed_over} passed over (unreadable, or over 8 MiB)" if passed_over else ""
    table.add_row("files", f"{sum(len(each.digests) for each in packed)}{left_out}")
    table.add_row("bytes", f"{_megabytes(bytes_in)} to {_megabytes(bytes_out)}{share}{rate}")
    table.add_row("digest", Text(tree_digest(packed), overflow="fold"))
    return table


def verdicts(judgements: list[Judgement]) -> RenderableType:
    """A line for each promise: whether it was kept, and what was found; then all of them in one line."""
    table = Table.grid(padding=(0, 1))
    for each in judgements:
        mark = Text("kept  ", style="bold green") if each.kept else Text("BROKEN", style="bold red")
        table.add_row(mark, Group(Text(each.promise, style="bold"), Text(safe(each.found), style="dim")))
    broken = [each.promise for each in judgements if not each.kept]
    if broken:
        last = Text(f"{len(broken)} of {len(judgements)} promises did not come true: {'; '.join(broken)}.", style="red")
    else:
        last = Text(f"All {len(judgements)} promises were kept. Nothing is left running, nothing is left on disk.")
    return Group(table, Text(), last)


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
