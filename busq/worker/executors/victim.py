"""
Whom a signal is meant for.

Right victim: a child is signalled only while it is certain that its number still means this very process. It leads
a process group of the same number, and neither can be used again before we have collected it: so the group gets its
signals before that and never after. Where the system has pidfds, the kernel is asked through one whether the child is
still uncollected; elsewhere its start time is compared.
"""

from __future__ import annotations

import os


class Victim:
    """A process that may be signalled: its number, and what tells it from a later one with the same number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.started = start_time(pid)
        self.pidfd = _pidfd(pid)

    def is_ours(self) -> bool:
        """Whether the number still means this process, alive or ended and not collected."""
        if self.pidfd == -1:
            return self.started is not None and start_time(self.pid) == self.started
        try:
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError:
            return False  # collected already, by whomever
        return True

    def signal_group(self, number: int) -> bool:
        """Send a signal to the group that this process leads; False when that was not done."""
        if not self.is_ours():
            return False
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def close(self) -> None:
        if self.pidfd != -1:
            os.close(self.pidfd)
            self.pidfd = -1
        self.started = None


def _pidfd(pid: int) -> int:
    """A pidfd that the kernel answers questions about, or -1: it may be too old, or a sandbox may forbid it."""
    if not hasattr(os, "pidfd_open"):
        return -1
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return -1
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        os.close(pidfd)
        return -1
    return pidfd


def start_time(pid: int) -> str | None:
    """When this process started, in the kernel's own ticks; None when there is none, or the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return None
