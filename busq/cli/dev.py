"""
`busq dev`: a server, a worker and a watchdog in one terminal, for a first try.

The server is a throw-away of our own, and the application runs against that one whatever URL it names itself; where
it names one, that is said. Worker and watchdog are `busq` commands in processes of their own, as anywhere else.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Annotated

from cyclopts import Parameter

MARGIN_S = 10.0  # for what a worker does after its own time to drain is over
WITHOUT_SERVER_S = 1.0  # worker and watchdog have nobody left to tell anything

SERVE = "from busq.cli.dev import serve; serve()"

Process = subprocess.Popen[bytes]


def dev(app: Annotated[str, Parameter(name="APP")], /) -> int:
    """
    Run an application with a server, a worker and a watchdog of its own.

    Nothing needs to be installed or running. Jobs come from a second terminal in which BUSQ_URL is set as told. Ctrl-C
    drains the worker and stops everything; a second one hurries. What was in the server is gone then.

    Parameters
    ----------
    app
        module:bus, found from the current directory too.
    """
    from busq.cli.children import start_busq
    from busq.cli.embedded import embedded_server
    from busq.cli.health import SETTINGS as OF_THE_PAGE
    from busq.config import Settings

    settings = Settings.load()
    with embedded_server() as server:
        _say(f"busq dev runs {app} on {server.what}; all that it holds is gone when this ends.")
        _say(f"In a second terminal:\n\n    export BUSQ_URL={server.url}\n")
        # A throw-away server may be older than what busq asks of one that keeps jobs.
        environ = {**os.environ, "BUSQ_URL": server.url, "BUSQ_ALLOW_UNFIT": "1"}
        for name in OF_THE_PAGE:  # two processes cannot share one port
            environ.pop(name, None)
        out, err = sys.stdout.fileno(), sys.stderr.fileno()
        worker = start_busq("dev", app, server.url, program=SERVE, environ=environ, stdout=out, stderr=err)
        watchdog = start_busq("watchdog", environ=environ, stdout=out, stderr=err)
        within_s = settings.shutdown_timeout_s + settings.cleanup_s + MARGIN_S
        return asyncio.run(_tend(server.process, worker, watchdog, within_s=within_s))


async def _tend(server: Process, worker: Process, watchdog: Process, *, within_s: float) -> int:
    """Wait until somebody asks for the end, or one of the three ends unasked. Return the exit code."""
    from busq.cli.children import end_all, wait_ended

    asked = asyncio.Event()
    stopping = asyncio.create_task(asked.wait())
    fallen = [asyncio.create_task(wait_ended(process)) for process in (worker, watchdog, server)]

    def ask() -> None:
        if not asked.is_set():
            _say("\nDraining: running jobs may end. Ctrl-C again hurries.")
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
        asked.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ask)
    try:
        await asyncio.wait({stopping, *fallen}, return_when=asyncio.FIRST_COMPLETED)
        if asked.is_set():
            # The watchdog last: cancels of jobs that ignore them need it until the worker has ended.
            # It cannot tell anybody what became of its jobs once the server is gone.
            await asyncio.wait({fallen[0], fallen[2]}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            if worker.poll() is None and server.poll() is not None:
                return _mourn(server)
            return 0
        if server.poll() is not None:
            return _mourn(server)
        return _blame("worker", worker) or _blame("watchdog", watchdog) or 1
    finally:
        stopping.cancel()
        for task in fallen:
            task.cancel()
        unheard = server.poll() is not None
        end_s = WITHOUT_SERVER_S if unheard else MARGIN_S if asked.is_set() else within_s
        await end_all([worker, watchdog], within_s=end_s)


def _mourn(server: Process) -> int:
    """Say that the server ended, which is the end of everything that it held. Return the exit code."""
    from busq.cli import exits
    from busq.cli.children import how_it_ended

    how = how_it_ended(server.returncode)
    exits.tell(f"the server ended unasked ({how}), and all that it held is gone; so busq dev ends too.")
    return exits.UNREACHABLE


def _blame(name: str, process: Process) -> int:
    """Say that this one ended unasked, if it did. Return the exit code: its own when it said why, else 1."""
    status = process.poll()
    if status is None:
        return 0
    if status in (2, 3):
        return status
    print(f"busq: the {name} ended unasked, with exit status {status}; so busq dev ends too.", file=sys.stderr)
    return 1


def _say(words: str) -> None:
    print(words, flush=True)


# In the worker's process ------------------------------------------------------------------------------------


def serve() -> None:
    """Run `busq worker APP --url URL`, after saying so when the application has a URL of its own."""
    from busq.cli import app, exits

    name, url = sys.argv[2:4]

    def work() -> object:
        _tell_overridden(name, url)
        return app.run(["worker", name, "--url", url])

    sys.exit(exits.run(work))


def _tell_overridden(name: str, url: str) -> None:
    from busq import redaction
    from busq.cli import application, exits

    own = application.load(name).settings.url  # its own in code, else BUSQ_URL, which is ours
    if own and own != url:
        redaction.guard(own)
        exits.tell(f"{name} names {own}; here it runs on {url} instead.")
