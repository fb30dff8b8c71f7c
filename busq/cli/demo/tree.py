"""
The directory tree that the demo works on: which files, how large, what was passed over.

Links are not followed, and nothing is taken on trust: what cannot be read is counted and left out.
"""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import msgspec

from busq.errors import UsageError

MOST_FILES = 1_200
MOST_BYTES = 16 * 1024 * 1024
LARGEST_BYTES = 8 * 1024 * 1024
BATCHES = 300


class Tree(msgspec.Struct, frozen=True, kw_only=True):
    """
    Files of one directory tree by their names relative to `root`. `skipped` could not be read or are over 8 MiB;
    `cut` says that there are more than the demo takes.
    """

    root: str
    names: list[str]
    size: int
    skipped: int
    cut: bool

    def batches(self) -> list[list[str]]:
        """The names in about 300 batches, or one file in each where there are fewer."""
        each = -(-len(self.names) // BATCHES)
        return [self.names[i : i + each] for i in range(0, len(self.names), each)]


def read_tree(directory: Path | None) -> Tree:
    """
    Look at a directory tree; None is Python's own library. At most 1,200 files or 16 MiB are taken.

    Raise `UsageError` when it is none, or when there is nothing to be read in it.
    """
    root = Path(sysconfig.get_path("stdlib")) if directory is None else directory
    if not root.is_dir():
        raise UsageError(f"{root}: not a directory; `busq demo` takes one whose files it may read, or none at all")
    names: list[str] = []
    size, skipped, cut = 0, 0, False
    for name, length in _files(root):
        if length is None or length > LARGEST_BYTES:
            skipped += 1
            continue
        if len(names) >= MOST_FILES or size + length > MOST_BYTES:
            cut = True
            break
        names.append(name)
        size += length
    if not names:
        passed_over = f" ({skipped} passed over: unreadable, or over 8 MiB)" if skipped else ""
        raise UsageError(f"{root}: no file to work on{passed_over}; give a directory with some, or none at all")
    return Tree(root=str(root.resolve()), names=names, size=size, skipped=skipped, cut=cut)


def _files(root: Path) -> Iterator[tuple[str, int | None]]:
    """Every regular file with its size; None for one that cannot be read, and for a folder that cannot."""
    closed: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=closed.append, followlinks=False):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                facts = os.lstat(path)
            except OSError:
                yield path, None
                continue
            if not stat.S_ISREG(facts.st_mode):
                continue  # links, pipes, sockets
            relative = os.path.relpath(path, root)
            readable = os.access(path, os.R_OK) and _travels(relative)
            yield relative, facts.st_size if readable else None
        while closed:
            yield str(closed.pop().filename), None


def _travels(name: str) -> bool:
    """Whether a name is text: a payload cannot carry bytes that no encoding explains."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
