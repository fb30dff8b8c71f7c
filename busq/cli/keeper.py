"""
Keeping one worker process alive: started, watched over the line, ended, started again.

    starting ──> running ──> ended ──> resting ──> starting ...
                    │
                    └─> ending: asked to, or replaced because it does not answer or says that it is past help

What ends is started again, whatever it ended with: after half a second, then after twice as long each time, up to half
a minute. A life of a minute begins that anew. A process is replaced

    after three noes in a row    when it says itself that only a new process can mend it
    after 30 s of silence        when its loop, or all of it, does not answer: a handler may block it for a while, and
                                 to end it would lose what else runs in it

and gets the time to drain that its own settings give it; but one that stays mute altogether, longer than its leases
last, is killed: others have its jobs by then, and it hears no signal either.

While a process has not answered for the first time it is not judged: how long an application takes to load is its own
affair, and /readyz says that it has not started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Literal

import msgspec

from busq import events, tasks
from busq.cli import line
from busq.cli.children import how_it_ended, start_busq, wait_ended
from busq.cli.worker import Work

PAUSE_S = (0.5, 30.0)  # before a process is started again: the first and the longest
GOOD_LIFE_S = 60.0
GIVEN_UP_AFTER = 5  # bad lives in a row; it is started again all the same
ASK_EVERY_S = 1.0
ASK_FIRST_EVERY_S = 0.1  # until the first has started, for the others wait for it
LOOK_S = 2.0  # the most that counts as silence from one look to the next: we may have been stopped ourselves
FIGURES_S = 2.0  # a scrape waits for a worker's figures
SLOW_S = 3.0  # without an answer: then it is said not to be ready
SILENT_S = 30.0
NOES = 3
MARGIN_S = 10.0  # beyond the time that a worker takes to drain by its own settings
COULD_NOT_START = 1
NOTHING_TO_MEND = 3  # the exit code for "Redis is not reachable": a new process would fare no better

log = events.logger("busq.cli")

State = Literal["starting", "running", "ending", "resting", "ended"]


class Told(msgspec.Struct, frozen=True):
    """As much of a worker's health as its keeper acts on."""

    name: str
    started: bool
    drains_within_s: float
    lease_s: float
    live: dict[str, str]
    ready: dict[str, str]


class ProcessHealth(msgspec.Struct, frozen=True, kw_only=True):
    """One kept process. `health` is what it said of itself, `heard_s_ago`; `last_end` how its last life ended."""

    number: int
    state: State
    pid: int | None
    lives: int
    bad_lives_in_a_row: int
    last_end: str
    heard_s_ago: float | None
    health: msgspec.Raw | None


class Keeper:
    """
    `drains_within_s` is taken until the worker has told its own. `leads`: its first process is the check whether this
    work can be done at all, and is not started again when it ended before it had started.
    """

    def __init__(self, number: int, work: Work, *, drains_within_s: float, leads: bool = False) -> None:
        self.started = asyncio.Event()
        self.pod_emptied = asyncio.Event()
        """Set when its worker was asked, through the bus, that all workers of this host shall drain."""
        self.first_end: int | None = None
        """The exit status of the first life, if this one leads and that ended before it had started."""
        self.bad_lives = 0
        self.forced = False
        """Whether a process had to be killed, or fell, while it should drain."""
        self.number = number
        self._leads = leads
        self._work = work
        self._drains_within_s = drains_within_s
        self._stopping = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._state: State = "starting"
        self._lives = 0
        self._last_end = ""
        self._kill: asyncio.TimerHandle | None = None
        self._line: asyncio.StreamWriter | None = None
        self._figures: asyncio.Future[str] | None = None  # somebody waits for them
        self._hurry = asyncio.Event()
        self._forget()

    def _forget(self) -> None:
        """What is known of the process that runs now: nothing yet."""
        self._told: Told | None = None
        self._health: msgspec.Raw | None = None
        self._heard_at: float | None = None
        self._looked_at = time.monotonic()
        self._silent_s = 0.0
        self._mute_from_s = 0.0  # of that silence: from where on not even a late answer has come
        self._noes = 0
        self._trouble = ""
        self._killed = False

    # Life after life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep it alive until `stop`; returns when the last process has ended, or with `first_end`."""
        pause_s = PAUSE_S[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                status = await self._live()
            except OSError as error:  # no room for another process, most likely; there may be some in a while
                status = COULD_NOT_START
                self._last_end = f"could not be started: {error}"
                events.tell(log, events.PROCESS_ENDED, number=self.number, pid=None, process="", how=self._last_end)
            if self._stopping.is_set():
                break
            if self._failed_check:
                self.first_end = status
                break
            if time.monotonic() - began >= GOOD_LIFE_S:
                pause_s, self.bad_lives = PAUSE_S[0], 0
            if status != NOTHING_TO_MEND:
                self.bad_lives += 1
            self._state = "resting"
            await self._rest(pause_s * random.uniform(0.8, 1.0))
            pause_s = min(PAUSE_S[1], pause_s * 2)
        self._state = "ended"

    @property
    def _failed_check(self) -> bool:
        """Whether the life that was the check has ended by itself, before it had started."""
        return self._leads and self._lives == 1 and not self.started.is_set() and not self._stopping.is_set()

    async def _live(self) -> int:
        """One process, from its start to its end. Answers with its exit status."""
        self._lives += 1
        self._forget()
        self._state = "starting"
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = process = self._start(theirs)
        # Not on its command line, which everybody on the machine can read: there may be a password in it.
        ours.sendall(msgspec.json.encode(self._work) + b"\n")
        events.tell(log, events.PROCESS_STARTED, number=self.number, pid=process.pid)
        watching = asyncio.create_task(self._watch(ours))
        try:
            status = await wait_ended(process)
        finally:
            await tasks.end(watching)
            ours.close()
            if self._kill is not None:
                self._kill.cancel()
                self._kill = None
        if status == line.POD_EMPTIED:
            self.pod_emptied.set()
        self._tell_end(process.pid, status)
        self._process = None
        return status

    def _start(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        return start_busq(
            str(theirs.fileno()),
            environ=os.environ,
            stdout=sys.stdout.fileno(),
            stderr=sys.stderr.fileno(),
            program=line.SERVE,
            pass_fds=[theirs.fileno()],
        )

    def _tell_end(self, pid: int, status: int) -> None:
        self._last_end = how_it_ended(status)
        if status == -signal.SIGKILL and not self._killed:
            self._last_end += " of somebody else: out of memory?"
        # Before it has its own handler for it, SIGTERM ends it: then it had nothing to drain.
        asked = status == line.POD_EMPTIED or (self._stopping.is_set() and status in (0, -signal.SIGTERM))
        self.forced |= self._stopping.is_set() and not asked
        name = self._told.name if self._told is not None else ""
        level = logging.INFO if asked else None
        if self._failed_check:
            level = logging.DEBUG  # it has said why itself, and its exit code becomes that of the whole
        events.tell(
            log, events.PROCESS_ENDED, level=level, number=self.number, pid=pid, process=name, how=self._last_end
        )

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    # Watching ----------------------------------------------------------------------------------------------

    async def _watch(self, ours: socket.socket) -> None:
        """Ask, and judge what comes back, until the line breaks."""
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=line.MOST_BYTES)
        self._line = writer
        try:
            while True:
                self._hurry.clear()
                writer.write(line.ASK if self._figures is None else line.ASK_MEASURED)
                words = b""
                while not words:
                    try:
                        async with asyncio.timeout(ASK_EVERY_S):
                            words = await reader.readline()
                    except TimeoutError:
                        self._hear_nothing("has not answered")
                        self._end_mute()
                    else:
                        if not words:
                            return  # its process is ending, or has given up the line; that is told elsewhere
                self._hear(msgspec.json.decode(words, type=line.Answer))
                with suppress(TimeoutError):
                    async with asyncio.timeout(ASK_EVERY_S if self.started.is_set() else ASK_FIRST_EVERY_S):
                        await self._hurry.wait()
        except OSError:
            return
        finally:
            self._line = None
            writer.close()

    def _hear_nothing(self, words: str) -> None:
        now = time.monotonic()
        self._silent_s += min(now - self._looked_at, LOOK_S)
        self._looked_at = now
        words = f"{words} for {self._silent_s:.0f} s"
        if self._told is None:
            return
        if self._silent_s >= SLOW_S:
            self._trouble = words
        if self._silent_s >= SILENT_S:
            self._replace(words)

    def _end_mute(self) -> None:
        """Kill a process in which not even the thread on the line has answered for so long that its leases are over."""
        if self._told is None or self._killed or self._state != "ending":
            return
        mute_s = self._silent_s - self._mute_from_s
        if mute_s >= max(SILENT_S, self._told.lease_s) + MARGIN_S:
            self.kill(f"has not answered for {mute_s:.0f} s")

    def _hear(self, answer: line.Answer) -> None:
        if not answer.late:
            self._looked_at, self._silent_s = time.monotonic(), 0.0
            self._mute_from_s = 0.0
            told = self._told = msgspec.json.decode(answer.health, type=Told)
            self._health, self._heard_at = answer.health, time.monotonic()
            self._drains_within_s = told.drains_within_s
            if told.started and self._state == "starting":
                self._state = "running"
                self.started.set()
            no = "; ".join(f"{name}: {words}" for name, words in told.live.items() if words)
            self._trouble = "; ".join(f"{name}: {words}" for name, words in told.ready.items() if words)
        else:
            no = answer.lifeless
            self._hear_nothing("its loop has not answered")
            self._mute_from_s = self._silent_s
        if answer.figures and self._figures is not None:
            self._figures.set_result(answer.figures)
            self._figures = None
        if answer.empties_pod:
            self.pod_emptied.set()
        self._noes = self._noes + 1 if no else 0
        if self._noes >= NOES:
            self._replace(no)

    def _replace(self, why: str) -> None:
        if self._state != "ending":
            events.tell(log, events.PROCESS_UNHEALTHY, number=self.number, pid=self._pid, why=why)
            self._ask_to_end()

    # Ending ------------------------------------------------------------------------------------------------

    async def figures(self) -> str:
        """What its worker counts, as a page for Prometheus; "" when that does not answer soon."""
        if self._figures is None:
            self._figures = asyncio.get_running_loop().create_future()
            self._hurry.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(FIGURES_S):
                return await asyncio.shield(self._figures)
        return ""

    def stop(self) -> None:
        """Drain and end; called again: hurry. What has not ended in its time is killed."""
        self._stopping.set()
        self._ask_to_end()

    def drain(self) -> None:
        """As `stop`, but by way of the line, so that a `stop` that follows is the first of its kind and no hurry."""
        self._stopping.set()
        if self._line is None:  # not yet born or already ended
            self._ask_to_end()
            return
        self._line.write(line.DRAIN)
        self._state = "ending"
        self._kill_in_time()

    def _ask_to_end(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        self._state = "ending"
        process.send_signal(signal.SIGTERM)
        self._kill_in_time()

    def _kill_in_time(self) -> None:
        if self._kill is None:
            within_s = self._drains_within_s + MARGIN_S
            self._kill = asyncio.get_running_loop().call_later(
                within_s, self.kill, f"did not end within {within_s:g} s"
            )

    def kill(self, why: str) -> None:
        """End the process at once, with the group that it leads; not one that has been collected."""
        process = self._process
        if process is not None and process.poll() is None:
            self._killed = True
            events.tell(log, events.PROCESS_KILLED, number=self.number, pid=process.pid, why=why)
            os.killpg(process.pid, signal.SIGKILL)

    # Looking -----------------------------------------------------------------------------------------------

    @property
    def given_up(self) -> bool:
        """Whether it has ended badly again and again; it is started all the same."""
        return self.bad_lives >= GIVEN_UP_AFTER

    @property
    def trouble(self) -> str:
        """What keeps this process from taking jobs, in words; "" when nothing does."""
        if self._state == "running":
            return self._trouble
        was = self._state in ("starting", "resting") and self._last_end  # else that was the life before this one
        return f"{self._state} after {was}" if was else self._state

    @property
    def health(self) -> ProcessHealth:
        return ProcessHealth(
            number=self.number,
            state=self._state,
            pid=self._pid,
            lives=self._lives,
            bad_lives_in_a_row=self.bad_lives,
            last_end=self._last_end,
            heard_s_ago=None if self._heard_at is None else round(time.monotonic() - self._heard_at, 1),
            health=self._health,
        )

    @property
    def _pid(self) -> int | None:
        return self._process.pid if self._process is not None else None
