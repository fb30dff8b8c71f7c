"""
Histories for the judge, written by hand: what a server logs when a bus does its work, and what processes write down.

A `Story` writes the log of one small bus as the scripts would: each method is one transaction. `say` writes whatever
a test wants instead. Nothing of busq runs here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NOW = 1_800_000_000_000
PREFIX = "busq:{0}:"


class Story:
    """`server` is one of several in the same folder."""

    def __init__(self, folder: Path, server: str = "server") -> None:
        self.folder = folder
        self.server = server
        self.now = NOW
        self.told: dict[str, Any] = {
            "run": "t", "seed": 1, "namespace": "busq", "shards": 1, "expect_drained": True,
            "settings": {"watchdog_interval_s": 0.5}, "slack_s": 0.5,
        }  # fmt: skip
        self.lines: list[dict[str, Any]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self._log = b""
        self._entries = 0
        self.say(["XGROUP", "CREATE", PREFIX + "queue:q", "busq", "0", "MKSTREAM"])

    # The log ---------------------------------------------------------------------------------------------

    def raw(self, data: bytes) -> None:
        self._log += data

    def say(self, *commands: list[Any]) -> None:
        """One transaction; a lone command when there is only one."""
        if len(commands) > 1:
            commands = (["MULTI"], *commands, ["EXEC"])
        for command in commands:
            self._log += b"*%d\r\n" % len(command)
            for each in command:
                data = each if isinstance(each, bytes) else str(each).encode()
                self._log += b"$%d\r\n%b\r\n" % (len(data), data)

    def pass_ms(self, ms: int) -> None:
        self.now += ms

    def write(self, jid: str, event: str, *fields: Any, by: str = "w1", attempt: Any = None) -> list[Any]:
        """A write to a record that brings its line of history."""
        job = self.jobs.setdefault(jid, {"n": 0, "attempt": 0, "entry": "", "token": ""})
        job["n"] += 1
        attempt = job["attempt"] if attempt is None else attempt
        line = f"{event}\t{self.now}\t{attempt}\t{by}\t"
        return ["HSET", PREFIX + "job:" + jid, *fields, f"e{job['n']}", line, "n", job["n"]]

    def add_entry(self, jid: str) -> list[Any]:
        self._entries += 1
        self.jobs.setdefault(jid, {"n": 0, "attempt": 0, "entry": "", "token": ""})["entry"] = f"{NOW}-{self._entries}"
        return ["XADD", PREFIX + "queue:q", f"{NOW}-{self._entries}", "jid", jid, "kind", "k"]

    def drop_entry(self, jid: str) -> list[list[Any]]:
        entry = self.jobs[jid]["entry"]
        return [["XACK", PREFIX + "queue:q", "busq", entry], ["XDEL", PREFIX + "queue:q", entry]]

    def admission(self, jid: str, state: str, *more: Any) -> list[Any]:
        seq = len(self.jobs)
        fields = ["v", 1, "kind", "k", "queue", "q", "payload", b"\x01", "call", f"c-{jid}", "enqueued", self.now]
        return self.write(jid, "enqueued", *fields, "seq", seq, *more, "state", state, by="p")

    def enqueue(self, jid: str, *more: Any) -> None:
        entry = self.add_entry(jid)
        self.say(entry, self.admission(jid, "queued", *more, "entry", entry[2]))

    def schedule(self, jid: str) -> None:
        self.say(
            ["ZADD", PREFIX + "scheduled", self.now + 1000, jid], self.admission(jid, "scheduled", "due", self.now)
        )

    def promote(self, jid: str) -> None:
        entry = self.add_entry(jid)
        write = self.write(jid, "promoted", "state", "queued", "entry", entry[2], by="d1")
        self.say(entry, write, ["ZREM", PREFIX + "scheduled", jid])

    def beat(self, worker: str, lease_ms: int = 15_000) -> None:
        self.say(
            ["ZADD", PREFIX + "workers", self.now + lease_ms, worker], ["HSET", PREFIX + "worker_info", worker, "{}"]
        )

    def deliver(self, jid: str, worker: str = "w1") -> None:
        entry = self.jobs[jid]["entry"]
        words = ["TIME", self.now, "RETRYCOUNT", 1, "FORCE", "JUSTID", "LASTID", entry]
        self.say(["XCLAIM", PREFIX + "queue:q", "busq", worker, 0, entry, *words])

    def begin(self, jid: str, worker: str = "w1", *, attempt: int | None = None, token: str = "") -> list[Any]:
        job = self.jobs[jid]
        job["attempt"] = job["attempt"] + 1 if attempt is None else attempt
        job["token"] = token or f"{worker}/{jid}/{job['attempt']}"
        fields = ["state", "running", "attempt", job["attempt"], "token", job["token"], "owner", worker]
        return self.write(jid, "started", *fields, "started", self.now, "terms", "0 5 5000 2000 -", by=worker)

    def start(self, jid: str, worker: str = "w1") -> None:
        self.say(self.begin(jid, worker), ["HINCRBY", PREFIX + "counters", "started", 1])

    def run(self, jid: str, worker: str = "w1") -> None:
        """Delivered and started."""
        self.deliver(jid, worker)
        self.start(jid, worker)

    def ending(
        self, jid: str, state: str, *fields: Any, by: str = "w1", token: str = "", attempt: Any = None
    ) -> list[Any]:
        own = ["fin", token or self.jobs[jid]["token"]] if by.startswith("w") else []
        return self.write(jid, "finalized", *own, *fields, "state", state, "finished", self.now, by=by, attempt=attempt)

    def close(self, jid: str, state: str) -> list[list[Any]]:
        """What goes with an ending: the expiry and the index."""
        expiry = self.now + 3_600_000
        return [["PEXPIREAT", PREFIX + "job:" + jid, expiry], ["ZADD", f"{PREFIX}ended:{state}", expiry, jid]]

    def finish(
        self, jid: str, state: str = "succeeded", *, by: str = "w1", token: str = "", attempt: Any = None
    ) -> None:
        ending = self.ending(jid, state, "result", b"\x01", by=by, token=token, attempt=attempt)
        self.say(ending, *self.close(jid, state), *self.drop_entry(jid))

    def request(self, jid: str, *fields: Any) -> list[Any]:
        return self.write(
            jid, "requested", "cause", "user", "reason", "", "source", "", "requested", self.now, *fields, by="c"
        )

    def signal(self, jid: str, *, grace_ms: int = 1000) -> None:
        """A cancel of a running job is accepted."""
        deadline = self.now + grace_ms
        self.say(
            self.request(jid, "state", "cancelling", "deadline", deadline, "cancel_grace", grace_ms),
            ["ZADD", PREFIX + "cancelled", "+inf", jid],
            ["ZADD", PREFIX + "deadlines", deadline, jid],
        )

    def confirm(self, jid: str, *, ended: str = "confirmed", by: str = "w1") -> None:
        """A cancelling job becomes cancelled."""
        self.say(
            ["ZREM", PREFIX + "cancelled", jid],
            ["ZREM", PREFIX + "deadlines", jid],
            self.ending(jid, "cancelled", "ended", ended, by=by),
            *self.close(jid, "cancelled"),
            *self.drop_entry(jid),
        )

    def cancel_queued(self, jid: str) -> None:
        """A cancel of a queued job is accepted; its entry stays until somebody reads it."""
        self.say(
            self.request(jid),
            self.ending(jid, "cancelled", "ended", "before_start", by="c"),
            *self.close(jid, "cancelled"),
            ["ZADD", PREFIX + "cancelled", "+inf", jid],
        )

    def sweep_out(self, jid: str, worker: str = "w1") -> None:
        """A worker reads the entry of a cancelled job, and starts nothing."""
        self.deliver(jid, worker)
        self.say(["ZREM", PREFIX + "cancelled", jid], *self.drop_entry(jid))

    def reclaim(self, jid: str, *, by: str = "d1") -> None:
        old = self.drop_entry(jid)
        entry = self.add_entry(jid)
        self.say(*old, entry, self.write(jid, "reclaimed", "losses", 1, "state", "queued", "entry", entry[2], by=by))

    def hand_back(self, jid: str, worker: str = "w1") -> None:
        old = self.drop_entry(jid)
        entry = self.add_entry(jid)
        own = ["fin", self.jobs[jid]["token"]]
        self.say(*old, entry, self.write(jid, "handed_back", *own, "state", "queued", "entry", entry[2], by=worker))

    def retry(self, jid: str) -> None:
        fields = ["fin", self.jobs[jid]["token"], "failures", 1, "state", "scheduled", "due", self.now]
        write = self.write(jid, "retried", *fields)
        dropped = ["HDEL", PREFIX + "job:" + jid, "entry"]
        self.say(write, dropped, ["ZADD", PREFIX + "scheduled", self.now, jid], *self.drop_entry(jid))

    def expire(self, jid: str) -> None:
        del self.jobs[jid]
        self.say(["DEL", PREFIX + "job:" + jid])

    def whole(self, jid: str) -> None:
        """A job that runs and succeeds."""
        self.enqueue(jid)
        self.run(jid)
        self.finish(jid)

    # What processes wrote down ----------------------------------------------------------------------------

    def tell(self, ev: str, kind: str, *, ms: float, proc: str = "p:1", role: str = "client", **facts: Any) -> None:
        line = {
            "v": 1, "run": "t", "seq": len(self.lines), "mono": round(ms * 1e6), "wall": NOW + round(ms), "proc": proc,
            "role": role, "ev": ev, "type": kind, "op": None, "jid": None, "inc": 1, "attempt": None, "fence": None,
            "val": None, "err": None,
        }  # fmt: skip
        self.lines.append(line | facts)

    def call(self, ev: str, jid: str, answer: str, *, ms: float, kind: str = "ok", proc: str = "p:1") -> None:
        op = f"{ev}-{len(self.lines)}"
        self.tell(ev, "invoke", ms=ms, op=op, jid=jid, proc=proc)
        self.tell(ev, kind, ms=ms + 1, op=op, jid=jid, proc=proc, val={"ret": answer})

    def handler(
        self, ev: str, jid: str, fence: int, *, ms: float, proc: str = "w1:7", nonce: str = "", **val: Any
    ) -> None:
        nonce = nonce or f"{jid}/{fence}"
        self.tell(ev, "info", ms=ms, proc=proc, role="handler", jid=jid, fence=fence, attempt=nonce, val=val)

    def told_folder(self) -> Path:
        """The run, written out."""
        log = self.folder / self.server / "appendonlydir"
        log.mkdir(parents=True, exist_ok=True)
        (log / "a.aof.manifest").write_text("file a.aof.1.incr.aof seq 1 type i\n")
        (log / "a.aof.1.incr.aof").write_bytes(self._log)
        (self.folder / "history").mkdir(exist_ok=True)
        lines = "".join(json.dumps(line) + "\n" for line in self.lines)
        (self.folder / "history" / f"{self.server}.jsonl").write_text(lines)
        (self.folder / "run.json").write_text(json.dumps(self.told))
        return self.folder
