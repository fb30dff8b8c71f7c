"""
`busq demo`: a story on real input in half a minute, which shows that busq does what it promises.

    tree.py      the files it works on            scene.py     what the audience sees
    app.py       the handlers                     view.py      how that is drawn
    cast.py      workers and watchdog             record.py    what is left of it
    story.py     what is done to them             verdict.py   whether the promises were kept

The workers import `app.py` through this package, so nothing heavy is imported here.
"""

from __future__ import annotations

from pathlib import Path

LIMIT_S = 90.0


def demo(directory: Path | None = None, /) -> int:
    """
    Watch jobs start, be cancelled, ignore a cancel, be finalized, and survive the death of their worker.

    Compresses and hashes the files of a directory tree in two worker processes, on a server of its own that is gone
    afterwards; about half a minute. Exits 0 when every promise was kept, 1 when one was not.

    Parameters
    ----------
    directory
        The tree to work on, at most 1,200 files or 16 MiB of it; Python's own library when left out.
    """
    return 0 if play(directory) else 1


def play(directory: Path | None, *, watchdog: bool = True, limit_s: float = LIMIT_S) -> bool:
    """
    Play the story and print it. Return whether all promises were kept; `watchdog=False` shows that this can fail.

    Raise `UsageError` for a directory without files, `BusUnavailable` when no server can be had, `KeyboardInterrupt`
    when interrupted; nothing is left running then either.
    """
    from rich.console import Console

    from busq.cli.children import run
    from busq.cli.demo import view
    from busq.cli.demo.cast import Cast
    from busq.cli.demo.scene import Scene
    from busq.cli.demo.story import Story
    from busq.cli.demo.tree import read_tree
    from busq.cli.demo.verdict import judge
    from busq.cli.embedded import embedded_server

    console = Console(highlight=False)
    tree = read_tree(directory)
    with embedded_server() as server:
        scene = Scene(tree, server.what)
        console.print(view.opening(scene, server.url))
        cast = Cast(server.url, watchdog=watchdog)
        try:
            with view.shown(scene, console):
                record = run(Story(tree, scene, cast, server.url, limit_s=limit_s).play())
        finally:
            cast.close()
    judgements = judge(record, scene.batches)
    for part in (view.what_happened(record), view.totals(record, scene), view.verdicts(judgements)):
        console.print()
        console.print(part)
    return all(each.kept for each in judgements)
