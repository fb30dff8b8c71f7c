"""
What busq puts on the wire, caught: bytes with what they stand for, and the scripts as they are sent.

`scripts/golden.py` writes it down for a release; the tests beside this read the folders of all releases with today's
code. A folder is never changed once its version has been released.
"""

from __future__ import annotations

import asyncio
import lzma
from pathlib import Path
from typing import Any

import msgspec

from busq.protocol.cancel import Cause, TripFacts
from busq.protocol.codec import ErrorInfo, encode_error, encode_payload, encode_result
from busq.protocol.hook import write_clean_up
from busq.protocol.job import event_from_line, history_from_record, job_from_record
from busq.protocol.states import State, Verb
from busq.protocol.tree import write_finished
from busq.store import scripts
from busq.store.forms import NewJob, Note
from busq.worker.executors import frames
from tests.store.bench import DEADLINE_S, KIND, Bench, put_in

FOLDER = Path(__file__).parent
MIB = 1024 * 1024

ARGUMENTS: list[tuple[list[Any], dict[str, Any]]] = [
    ([], {}),
    ([1, -1, 2**63 - 1, 0.5, True, None, "text", "\u00e4\U0001f600"], {}),
    ([], {"path": "a.mp4", "nested": {"list": [1, [2, [3]]], "empty": {}}, "blank": ""}),
    ([{"a": 1}], {"preset": "slow"}),
]
RESULTS: list[Any] = [0, "done", [1, {"a": None}], {"n": 1.5}, False]
ERROR = ErrorInfo("ValueError", "no \u00e4", "Traceback (most recent call last):\n  ...\nValueError: no \u00e4\n")

FRAMES: list[frames.Frame] = [
    frames.Hello([frames.Address("k", "app", "k")], "", "", "", MIB, 16384, 4 * MIB),
    frames.Run(1, "k", "jid", 2, b"\x01\x92\x90\x80", b""),
    frames.Trip(1, TripFacts(cause=Cause.USER, reason="r", source="s", grace_s=5.0, left_s=7.0)),
    frames.Saved(3, "lost"),
    frames.Ready(),
    frames.Refused("no", "trace"),
    frames.Progress(1, "0.5", "half"),
    frames.Save(1, 3, b"\x01\x01"),
    frames.Done(1, 250, None, b"\x01\x01"),
    frames.Failed(1, 250, Cause.USER, True, ERROR),
    frames.Unfit(1, 250, None, "bad_result", ERROR),
    frames.Born(4, "enqueued", "queued"),
    frames.Spawn(1, 4, NewJob("child", "k", "q", b"\x01\x92\x90\x80", 0, ("parent", "jid"))),
    frames.Observed(1, Cause.DEADLINE),
]


class Wire(msgspec.Struct):
    """One release on the wire. Bytes are base64 in JSON; what stands beside them is what they mean."""

    payloads: list[tuple[bytes, list[Any], dict[str, Any]]] = []
    results: list[tuple[bytes, Any]] = []
    errors: list[tuple[bytes, dict[str, str]]] = []
    frames: list[tuple[bytes, dict[str, Any]]] = []
    clean_up: bytes = b""
    finished: bytes = b""
    records: list[tuple[str, list[tuple[bytes, bytes]], dict[str, Any], list[dict[str, Any]]]] = []
    entries: list[tuple[list[bytes], str, str]] = []
    events: list[tuple[bytes, dict[str, Any]]] = []
    messages: list[tuple[bytes, bytes]] = []
    rules: list[tuple[bytes, bytes]] = []
    scope: list[tuple[bytes, bytes]] = []
    tombstones: list[tuple[bytes, bytes]] = []
    meta: list[tuple[bytes, bytes]] = []


class GoldenScript(msgspec.Struct):
    """A script as it is sent to a server that takes the flags line."""

    source: str
    sha: str
    keys: list[str]
    argv: list[str]


def written(wire: Wire) -> bytes:
    return msgspec.json.format(msgspec.json.encode(wire), indent=1) + b"\n"


def read_wire(version: str) -> Wire:
    return msgspec.json.decode((FOLDER / version / "wire.json").read_bytes(), type=Wire)


def read_scripts(version: str) -> dict[str, scripts.Script]:
    """The scripts of a release, by name, as today's loader would hand them over."""
    data = lzma.decompress((FOLDER / version / "scripts.json.xz").read_bytes())
    found = msgspec.json.decode(data, type=dict[str, GoldenScript])
    return {
        name: scripts.Script(name=name, source=it.source, sha=it.sha, keys=tuple(it.keys), argv=tuple(it.argv))
        for name, it in found.items()
    }


def versions() -> list[str]:
    return sorted(path.name for path in FOLDER.iterdir() if (path / "wire.json").exists())


def scripts_now() -> bytes:
    sent = {name: scripts.load(name) for name in scripts.names()}
    told = {name: GoldenScript(it.source, it.sha, list(it.keys), list(it.argv)) for name, it in sent.items()}
    return lzma.compress(msgspec.json.encode(told, order="sorted"))


async def wire_now(url: str) -> Wire:
    """Everything that goes over the wire or is kept there, from a story told on an empty server."""
    wire = Wire(
        payloads=[(encode_payload(tuple(args), kwargs, MIB), args, kwargs) for args, kwargs in ARGUMENTS],
        results=[(encode_result(value, MIB), value) for value in RESULTS],
        errors=[(encode_error(ERROR), msgspec.to_builtins(ERROR))],
        frames=[(frames.packed(each), _said(each)) for each in FRAMES],
        clean_up=write_clean_up(b"\x01\x92\x90\x80", "jid", 1, "user", "r", "s", "confirmed", b""),
        finished=write_finished(b"\x01\x92\x90\x80", "jid", 1, 3, 1, ["c"], b"\x01\x01", b""),
    )
    async with Bench(url) as bench, bench.redis.pubsub() as ears:
        await ears.psubscribe("*")
        await _tell(bench, wire)
        await bench.redis.publish("over", "over")
        async for heard in ears.listen():
            if heard["channel"] == b"over":
                break
            if heard["type"] == "pmessage":
                wire.messages.append((heard["channel"], heard["data"]))
        wire.messages = sorted(set(wire.messages))
    return wire


def _said(frame: frames.Frame) -> dict[str, Any]:
    fields = {name: msgspec.to_builtins(getattr(frame, name)) for name in frame.__struct_fields__}
    return {"is": type(frame).__name__, **fields}


async def _tell(bench: Bench, wire: Wire) -> None:
    held = [await put_in(bench, state, group="g", tags='{"a":"b"}', retries=2) for state in State]
    jids = [each.jid for each in held]
    result, error = encode_result([1], MIB), encode_error(ERROR)
    done = await bench.run()
    await bench.a.note(done.jid, token=done.token, attempt=1, note=Note("tripped", 5, "facts"), saved=result)
    await bench.settle(Verb.FINISH, done, result=result)
    failed = await bench.run(retries=1)
    await bench.settle(Verb.RETRY, failed, error=error, cause="error", delay_s=1)
    late = await put_in(bench, State.CANCELLING)
    bench.clock.advance(DEADLINE_S)
    await bench.finalize(late.jid)
    jids += [done.jid, failed.jid, late.jid]
    await bench.cancel("nobody", tombstone_s=60, reason="r", source="s")
    scope = await bench.decide(kind=KIND, how={"standing": True, "reason": "r", "source": "s", "grace_s": 1.5})
    await bench.walk()
    own = bench.a.keys(0)
    for jid in jids:
        record = await bench.record(jid)
        job = msgspec.to_builtins(job_from_record(jid, record))
        wire.records.append((jid, list(record.items()), job, msgspec.to_builtins(history_from_record(record))))
    for _, fields in await bench.redis.xrange(own.stream("q")):
        flat = [part for pair in fields.items() for part in pair]
        wire.entries.append((flat, flat[1].decode(), flat[3].decode()))
    for _, fields in await bench.redis.xrange(own.events, count=20):
        for line in fields.values():
            wire.events.append((line, msgspec.to_builtins(event_from_line(line.partition(b"\t")[2]))))
    for name, key in (("rules", own.rules), ("scope", own.scope(scope)), ("tombstones", own.tombstones)):
        setattr(wire, name, list((await bench.redis.hgetall(key)).items()))
    wire.meta = list((await bench.redis.hgetall("busq:meta")).items())


def write(version: str, url: str) -> Path:
    folder = FOLDER / version
    folder.mkdir(exist_ok=True)
    (folder / "wire.json").write_bytes(written(asyncio.run(wire_now(url))))
    (folder / "scripts.json.xz").write_bytes(scripts_now())
    return folder
