"""
A process that behaves towards its keeper as a worker might, well or badly. `Work.app` says how.

It answers the first question as a worker that has started, `fails` excepted, and then:

    works        goes on answering so; SIGTERM ends it with 0
    works for long   the same, and says that it takes long to drain
    works on leases  the same, and says that its leases last long
    ends N       ends with this exit code
    fails N      ended with it before any answer
    no           says that only a new process can mend it
    late, lifeless   says that its loop does not answer, or that it is past help
    silent       answers no more
    deaf         works, and ignores SIGTERM

It imports nothing of ours, so that it starts quickly.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any


def healthy(**more: Any) -> dict[str, Any]:
    told = {"name": f"stand-in-{os.getpid()}", "started": True, "drains_within_s": 0.1, "lease_s": 0.1}
    return {"health": {**told, "live": {}, "ready": {}, **more}}


def serve() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    line = socket.socket(fileno=int(sys.argv[1]))
    with line.makefile("rb", buffering=0) as words:
        how, _, code = json.loads(words.readline())["app"].partition(" ")
    if how == "fails":
        os._exit(int(code))
    if how == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answers = {
        "no": healthy(live={"loop": "it was given up"}),
        "late": {"late": True},
        "lifeless": {"late": True, "lifeless": "it was given up"},
    }
    facts = {"for long": {"drains_within_s": 600.0}, "on leases": {"lease_s": 600.0}}
    now = answers["works"] = healthy(**facts.get(code, {}))
    while line.recv(1):
        line.sendall(json.dumps(now).encode() + b"\n")
        now = answers.get(how, now)
        if how == "ends":
            os._exit(int(code))
        if how == "silent":
            signal.pause()
