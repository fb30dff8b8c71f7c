"""
Networks that can be pulled: a process in a network namespace of its own, and one cable between it and the server.

What goes over a cable whose link is down is gone: nothing is reset, nothing refused, and no side is told. It takes root
and `ip` (Debian: iproute2). The addresses are private ones that lead nowhere but through the cable.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

MOST = 15
"""Addresses that a server listens on beside its own, at most."""

_CLONE_NEWNET = 0x40000000


class Impossible(Exception):
    """There are no such networks here: the message says why."""


class Cable:
    """Two ends: `near` is an address on our side, the other one stands in `namespace`."""

    def __init__(self, number: int) -> None:
        place = os.getpid() % 1000 * (MOST + 1) + number  # runs beside each other have cables of their own
        self.namespace = f"busq-chaos-{place}"
        self._end, far_end = f"bqc{place}", f"bqd{place}"
        net, host = f"10.{210 + place // 8000}.{place // 64 % 125}", place % 64 * 4
        self.near, far = f"{net}.{host + 1}", f"{net}.{host + 2}"
        try:
            _ip("netns", "add", self.namespace)
            _ip("link", "add", self._end, "type", "veth", "peer", "name", far_end, "netns", self.namespace)
            _ip("addr", "add", f"{self.near}/30", "dev", self._end)
            _ip("-n", self.namespace, "addr", "add", f"{far}/30", "dev", far_end)
            _ip("-n", self.namespace, "link", "set", far_end, "up")
            _ip("-n", self.namespace, "link", "set", "lo", "up")
            self.plug()
        except Impossible:
            self.close()
            raise

    def pull(self) -> None:
        _ip("link", "set", self._end, "down")

    def plug(self) -> None:
        _ip("link", "set", self._end, "up")

    def close(self) -> None:
        for words in (["link", "del", self._end], ["netns", "del", self.namespace]):
            subprocess.run([_program(), *words], check=False, capture_output=True)


def lay(count: int) -> list[Cable]:
    """So many cables. Raise `Impossible`, and leave none behind, where there can be none."""
    laid: list[Cable] = []
    try:
        laid.extend(map(Cable, range(count)))
    except Impossible:
        for cable in laid:
            cable.close()
        raise
    return laid


def enter(namespace: str) -> None:
    """Move this process into a namespace: its connections begin there from now on."""
    with open(f"/run/netns/{namespace}", "rb") as place:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(place.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"the namespace {namespace} cannot be entered")


def _ip(*words: str) -> None:
    done = subprocess.run([_program(), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Impossible(
            f"no network namespaces here: `ip {' '.join(words)}` says {done.stderr.strip()!r}; it takes root"
        )


def _program() -> str:
    found = shutil.which("ip")
    if found is None:
        raise Impossible("no `ip` here; install iproute2")
    return found
