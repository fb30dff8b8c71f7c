"""
The demo's processes: two workers and a watchdog, each a real `busq` command of its own.

Their clocks are set faster than the defaults so that the story fits into half a minute. What they log is kept in
files that have no name, so nothing of it can stay behind, and is shown only when one of them ends unasked.
"""

from __future__ import annotations

import os
import signal
import tempfile
from typing import IO

from busq.cli.children import end_all, start_busq

APP = "busq.cli.demo.app:bus"
SETTINGS = {
    "beat_s": 0.5,
    "lease_s": 3.0,
    "grace_s": 1.0,
    "force_s": 0.5,
    "watchdog_interval_s": 0.25,
    "shutdown_timeout_s": 3.0,
    "cleanup_s": 1.0,
}
THREADS = 3  # in each worker
END_S = 10.0
LAST_LINES = 5


class Actor:
    """One process, by the name that the demo calls it. `worker` is the name that it writes into histories."""

    def __init__(self, name: str, arguments: list[str], url: str) -> None:
        self.name = name
        self.told = ""
        self.killed = False
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.process = start_busq(*arguments, environ=_environ(url), stdout=self._log, stderr=self._log)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ended(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.process.poll()

    def freeze(self) -> None:
        """Stop it where it stands, so that what it holds can be looked at without a race."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: no handler, no farewell."""
        self.killed = True
        self.process.kill()
        self.process.wait()

    def last_words(self) -> str:
        """The end of its log."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-LAST_LINES:]) or "it said nothing"

    def close(self) -> None:
        self._log.close()


class Cast:
    """Everybody who plays; `watchdog=False` leaves one out, which the demo must then notice."""

    def __init__(self, url: str, *, watchdog: bool = True) -> None:
        self._url = url
        self._with_watchdog = watchdog
        self.actors: list[Actor] = []

    def start(self) -> None:
        """Start them all; in the main thread."""
        for number in (1, 2):
            self._start(f"worker {number}", "worker", APP, "--concurrency", str(THREADS))
        if self._with_watchdog:
            self._start("watchdog", "watchdog")

    def _start(self, name: str, *arguments: str) -> None:
        self.actors.append(Actor(name, list(arguments), self._url))

    @property
    def workers(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.name != "watchdog"]

    def fallen(self) -> Actor | None:
        """One who ended without being killed by us; None as long as there is none."""
        return next((each for each in self.actors if each.ended is not None and not each.killed), None)

    async def stop(self) -> None:
        """Ask all to drain and end, and collect them."""
        await end_all([actor.process for actor in self.actors], within_s=END_S)

    def close(self) -> None:
        """Whatever happened: nobody runs any more, and no log is left."""
        for actor in self.actors:
            if actor.ended is None:
                actor.kill()
            actor.close()


def _environ(url: str) -> dict[str, str]:
    """Our environment without the user's busq settings: the story needs its own."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("BUSQ_")}
    own = {f"BUSQ_{name.upper()}": str(value) for name, value in SETTINGS.items()}
    # A throw-away server may be older than what busq asks of one that keeps jobs.
    return {**plain, **own, "BUSQ_URL": url, "BUSQ_ALLOW_UNFIT": "1"}
