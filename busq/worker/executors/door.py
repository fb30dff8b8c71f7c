"""
The door of a child: which of the jobs that were sent to it may begin.

A job is sent as a frame, and may wait there behind others. It has a ticket at the door, too: the number of its run. The
child takes a ticket before it begins that job; the worker may take back all that are left. The kernel gives each ticket
to one of the two: so a job that was taken back never begins in this child, however busy the child is, and the worker
knows for certain which jobs have begun.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

# Always true: what lies in the socket is whole tickets, for a few hundred bytes are written at once or not at all. So
# neither of the two, who both read whole tickets, can be left with half of one.
TICKET = 4
_ALL = 1024 * TICKET


class Door:
    """The worker's side. `far_end` is passed on to the child and kept here as well, to take tickets back."""

    def __init__(self) -> None:
        self._near, self.far_end = socket.socketpair()
        self._near.setblocking(False)

    def let_in(self, runs: Iterable[int]) -> None:
        """These may begin, in this order."""
        self._near.send(b"".join([run.to_bytes(TICKET, "big") for run in runs]))

    def take_back(self) -> set[int]:
        """Those that have not begun, and never will."""
        try:
            # The child waits at the same end, so it must not be set to non-blocking: only this very call is.
            left = self.far_end.recv(_ALL, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return set()
        return {int.from_bytes(left[at : at + TICKET], "big") for at in range(0, len(left), TICKET)}

    def shut(self) -> None:
        """Nobody more will come."""
        self._near.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._near.close()
        self.far_end.close()
