"""
The server of a run: redis-server with an append-only file that is never rewritten and tells every write in order.

It can be killed and started again on its port, frozen, and have its clock stepped, where a C compiler is there to make
the shim that stands between the server and its clock.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from busq.cli.embedded import HOST, free_port
from busq.cli.tied import end_process, tied_process
from faults.users import ADMIN, Users

# `everysec` keeps writes back, answered ones too, while the disk is busy with the last sync: SIGKILL would lose them.
# With `no` they are in the kernel's hands before they are answered, which outlives every fault but a power cut.
AOF = (
    "--appendonly", "yes", "--appendfsync", "no", "--aof-use-rdb-preamble", "no",
    "--auto-aof-rewrite-percentage", "0", "--aof-timestamp-enabled", "yes", "--save", "", "--bind", HOST,
    "--maxmemory-policy", "noeviction", "--busy-reply-threshold", "200",
)  # fmt: skip

START_S = 60.0  # with a long append-only file to be loaded

SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long *off;
static long o(void) {
  if (!off) {
    const char *p = getenv("SKEW_FILE");
    int fd = p ? open(p, O_RDONLY) : -1;
    if (fd < 0) return 0;
    off = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
  }
  return off == MAP_FAILED ? 0 : *off;
}
int gettimeofday(struct timeval *tv, void *tz) {
  int r = syscall(SYS_gettimeofday, tv, tz);
  if (tv) tv->tv_sec += o();
  return r;
}
time_t time(time_t *t) {
  struct timeval v;
  gettimeofday(&v, 0);
  if (t) *t = v.tv_sec;
  return v.tv_sec;
}
"""


class Server:
    """
    One server for one run; its data stay in `folder` after it, and the folder's name is the server's.

    `options` go to redis-server as they are; some may be added until it is started.
    """

    def __init__(self, executable: str, folder: Path, users: Users | None, options: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.name = folder.name
        self.starts = 0
        self.port = free_port()
        self._users = users
        self._skew = folder / "skew"
        self._skew.write_bytes(struct.pack("q", 0))
        self._shim = _built(folder)
        self._command = [executable, "--dir", str(folder), *AOF, "--port", str(self.port), *options]
        if users is not None:
            self._command += ["--aclfile", str(users.file)]
        self._log = (folder / "server.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def add_options(self, *options: str) -> None:
        """For its next start."""
        self._command += options

    @property
    def has_own_clock(self) -> bool:
        return self._shim is not None

    def admin(self, patience_s: float = 10) -> Redis:
        """A client that may do everything, for the nemesis and the drain."""
        retry = Retry(NoBackoff(), 0)
        login = "" if self._users is None else self._users.login(ADMIN)
        url = f"redis://{login}{HOST}:{self.port}/0"
        return Redis.from_url(url, socket_timeout=patience_s, socket_connect_timeout=patience_s / 5, retry=retry)

    async def start(self) -> None:
        """Start it, and wait until it serves. Raise `RuntimeError` when it does not."""
        env = dict(os.environ)
        if self._shim is not None:
            env |= {"LD_PRELOAD": str(self._shim), "SKEW_FILE": str(self._skew)}
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            process = tied_process(self._command, stdout=self._log, stderr=self._log, env=env)
            if await self._serves(process, end):
                self._process = process
                self.starts += 1
                return
            # While it was down its port may have become the near end of somebody's connection, for as long as that is.
            end_process(process)
            await asyncio.sleep(0.1)
        raise RuntimeError(f"redis-server does not come up; see {self.folder / 'server.log'}")

    async def _serves(self, process: subprocess.Popen[bytes], end: float) -> bool:
        """Whether it comes to answer: it, and no other server that sits on its port."""
        while process.poll() is None and time.monotonic() < end:
            with suppress(RedisError, OSError):
                async with self.admin() as admin:
                    if (await admin.info("server"))["process_id"] == process.pid:
                        return True
            await asyncio.sleep(0.01)
        return False

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            end_process(self._process)

    def freeze(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def step_clock(self, seconds: int) -> None:
        """Move its clock by so much, on top of what it was moved before."""
        (now,) = struct.unpack("q", self._skew.read_bytes())
        with self._skew.open("r+b") as file:
            file.write(struct.pack("q", now + seconds))

    def close(self) -> None:
        self.kill()
        self._log.close()


def _built(folder: Path) -> Path | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    source, built = folder / "skew.c", folder / "skew.so"
    source.write_text(SHIM)
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(source)], capture_output=True, check=False
    )
    return built if done.returncode == 0 else None
