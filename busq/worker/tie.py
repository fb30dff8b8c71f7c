"""
A tie between this process and a process group that must not outlive it: the kernel's own, and nobody else's code.

    our end of a pipe closes, however we ended ──> the kernel sends SIGKILL to the whole group

The group holds the reading end, and that end is set to announce news by SIGKILL to the group (F_SETSIG, F_SETOWN,
O_ASYNC). Nothing is ever written, so the only news is that we are gone. No line of the group's own code has to run
for it, so a call that holds the interpreter lock does not stand in the way; and the kernel remembers the group itself,
not its number, so that a number used again cannot be hit. Linux only: elsewhere a tie holds nothing.
"""

from __future__ import annotations

import os
import signal
import sys

F_SETSIG = 10  # fcntl.F_SETSIG on Linux; not every build of Python names it


class Tie:
    """Made before the group is; its `far_end` is passed on to the group's first process."""

    def __init__(self) -> None:
        self.far_end, self._near_end = os.pipe()

    def hold(self, group: int) -> None:
        """Tie this group to us. Its first process must not have been collected yet."""
        if sys.platform == "linux":
            import fcntl  # not everywhere, and busq can be imported everywhere

            fcntl.fcntl(self.far_end, fcntl.F_SETOWN, -group)
            fcntl.fcntl(self.far_end, F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(self.far_end, fcntl.F_SETFL, fcntl.fcntl(self.far_end, fcntl.F_GETFL) | os.O_ASYNC)
        os.close(self.far_end)  # what the group holds of it goes on
        self.far_end = -1

    def cut(self) -> None:
        """Let go: whoever still holds the other end is ended with its group. Safe to repeat."""
        for end in (self.far_end, self._near_end):
            if end != -1:
                os.close(end)
        self.far_end = self._near_end = -1
