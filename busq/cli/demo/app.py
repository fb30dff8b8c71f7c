"""
The demo's application: what its two workers run, as `busq worker busq.cli.demo.app:bus` would.

    pack      compress and hash a batch of files; a thread with a checkpoint before each file
    squeeze   look for the LZMA settings that make a sample smallest; a thread that could go on for long
    recount   hash files again and again, deaf to every cancel: the handler that a bus must be able to cope with
"""

from __future__ import annotations

import asyncio
import hashlib
import lzma
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

import busq

bus = busq.Bus()

PIECE_BYTES = 16 * 1024
SAMPLE_BYTES = 256 * 1024


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one batch: sizes in bytes, the SHA-256 of each file by name, how many had vanished."""

    bytes_in: int
    bytes_out: int
    digests: dict[str, str]
    vanished: int


@bus.job(queue="files")
def pack(root: str, names: list[str]) -> Packed:
    """Compress and hash some files of a tree."""
    job = busq.current_job()
    bytes_in = bytes_out = vanished = 0
    digests = {}
    for n, name in enumerate(names):
        job.progress(n / len(names), name)
        try:
            data = Path(root, name).read_bytes()
        except OSError:
            vanished += 1
            continue
        bytes_in += len(data)
        bytes_out += _squeezed(data, _filters(6), job.check_cancelled)
        digests[name] = hashlib.sha256(data).hexdigest()
    return Packed(bytes_in=bytes_in, bytes_out=bytes_out, digests=digests, vanished=vanished)


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """The best settings that a search found, and how many it tried."""

    tried: int
    bytes_in: int
    bytes_out: int
    settings: dict[str, int]


@bus.job(queue="search")
def squeeze(root: str, names: list[str], seconds: float) -> Best:
    """Look for the LZMA settings that make a sample of the tree smallest, for so many seconds."""
    job = busq.current_job()
    sample = _sample(root, names)
    draw = random.Random(job.jid)
    best, settings, tried = len(sample) + 1024, {}, 0
    began = time.monotonic()
    while (spent := time.monotonic() - began) < seconds:
        chosen = {"lc": draw.randint(0, 4), "lp": 0, "pb": draw.randint(0, 4), "nice_len": draw.randint(8, 273)}
        size = _squeezed(sample, _filters(4, **chosen), job.check_cancelled)
        tried += 1
        if size < best:
            best, settings = size, chosen
        job.progress(spent / seconds, f"{tried} settings tried, {best:,} bytes at best")
    return Best(tried=tried, bytes_in=len(sample), bytes_out=best, settings=settings)


@bus.job(queue="recount")
async def recount(root: str, names: list[str]) -> None:
    """Hash the files of a tree without end, and swallow every cancel on the way, as a broad `except` does."""
    rounds, last = 0, ""
    while True:
        for name in names:
            try:
                last = await asyncio.to_thread(_digest, Path(root, name))
                busq.current_job().progress(0.0, f"round {rounds}, {last[:8]}")
            except BaseException:  # noqa: S112 - the very mistake that this handler is here to make
                continue
        rounds += 1


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _sample(root: str, names: list[str]) -> bytes:
    sample = b""
    for name in names:
        try:
            sample += Path(root, name).read_bytes()[:SAMPLE_BYTES]
        except OSError:
            continue
        if len(sample) >= SAMPLE_BYTES:
            break
    return sample[:SAMPLE_BYTES]


def _filters(preset: int, **settings: int) -> list[dict[str, Any]]:
    return [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": 1 << 20, **settings}]


def _squeezed(data: bytes, filters: list[dict[str, Any]], checkpoint: Callable[[], None]) -> int:
    """How large these bytes are when compressed; a checkpoint every 16 KiB."""
    compressor = lzma.LZMACompressor(format=lzma.FORMAT_RAW, filters=filters)
    size = 0
    for piece in _pieces(data):
        checkpoint()
        size += len(compressor.compress(piece))
    return size + len(compressor.flush())


def _pieces(data: bytes) -> Iterator[bytes]:
    return (data[i : i + PIECE_BYTES] for i in range(0, len(data), PIECE_BYTES))


def tree_digest(packed: list[Packed]) -> str:
    """One SHA-256 for the whole tree: of every name and digest, sorted by name."""
    lines = sorted(f"{name}\0{digest}\n" for each in packed for name, digest in each.digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
