#!/usr/bin/env python3
"""
busq's figures, measured beside the least that Redis and Python allow.

    python scripts/bench.py                 everything, on a redis-server of its own; some minutes
    python scripts/bench.py --quick         a smoke test
    python scripts/bench.py --only drain -o json

What is compared runs in turns within one run, in pairs, and a ratio is the median over the pairs: so a machine that
others use too disturbs both sides alike. Figures are reported and never asserted: the exit code is 0 unless
something could not be run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Runnable by itself: found are the modules beside it, and the busq that it stands beside.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import msgspec  # noqa: E402
from benchmarks import (  # noqa: E402
    cancel,
    drain,
    enqueue,
    idle,
    listed,
    observe,
    process,
    replace,
    rules,
    scope,
    settle,
    start,
    tell,
)
from benchmarks.figures import Figure  # noqa: E402

from busq.cli.embedded import embedded_server  # noqa: E402

NAMES = ["drain", "enqueue", "cancel", "observe", "start", "process", "replace", "idle"]
NAMES += ["scope", "settle", "tell", "rules", "listed"]

FULL = {
    "pairs": 11, "jobs": 20_000, "process_jobs": 10_000, "samples": 330, "idle_s": 10.0,
    "backlog": 1_000_000, "settled": 200_000, "running": 10_000,
    "listed": 1_000_000,
}  # fmt: skip
QUICK = {
    "pairs": 3, "jobs": 5000, "process_jobs": 2000, "samples": 90, "idle_s": 3.0,
    "backlog": 20_000, "settled": 10_000, "running": 1000,
    "listed": 20_000,
}  # fmt: skip

Measure = Callable[[str], list[Figure]]


def main(arguments: Sequence[str] | None = None) -> None:
    asked = _read(arguments)
    figures: list[Figure] = []
    with _server(asked.url) as (url, what):
        print(f"on {what}: {asked.pairs} pairs, {asked.jobs:,} jobs", file=sys.stderr)
        for name, measure in _benchmarks(asked).items():
            print(f"{name} ...", file=sys.stderr, flush=True)
            found = measure(url)
            figures += found
            if asked.output == "table":
                _print(found)
    if asked.output == "json":
        document = {"server": what, "pairs": asked.pairs, "jobs": asked.jobs, "figures": figures}
        print(msgspec.json.format(msgspec.json.encode(document)).decode())


def _benchmarks(asked: argparse.Namespace) -> dict[str, Measure]:
    everything: dict[str, Measure] = {
        "drain": lambda url: drain.measure(url, asked.pairs, asked.jobs),
        "enqueue": lambda url: enqueue.measure(url, asked.pairs, asked.jobs),
        "cancel": lambda url: cancel.measure(url, asked.pairs, asked.samples),
        "observe": lambda url: observe.measure(url, asked.pairs, asked.samples),
        "start": lambda url: start.measure(url, asked.pairs, asked.samples),
        "process": lambda url: process.measure(url, asked.pairs, asked.process_jobs),
        "replace": lambda url: replace.measure(url, asked.pairs),
        "idle": lambda url: idle.measure(url, asked.idle_s),
        "scope": lambda url: scope.measure(url, asked.pairs, asked.samples, asked.backlog),
        "settle": lambda url: settle.measure(url, asked.pairs, asked.settled),
        "tell": lambda url: tell.measure(url, asked.pairs, asked.running),
        "rules": lambda url: rules.measure(url, asked.pairs, asked.jobs),
        "listed": lambda url: listed.measure(url, asked.listed),
    }
    return {name: everything[name] for name in asked.only or everything}


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; left out: one is started and ended")
    parser.add_argument("--pairs", type=_count, help="how often each comparison is repeated (11)")
    parser.add_argument("--jobs", type=_count, help="jobs in one drain or bulk enqueue (20,000)")
    parser.add_argument("--process-jobs", type=_count, help="jobs through the process pool (10,000)")
    parser.add_argument("--samples", type=_count, help="cancels, and starts at light load, over all pairs (330)")
    parser.add_argument("--backlog", type=_count, help="queued jobs that a wide cancel is decided over (1,000,000)")
    parser.add_argument("--settled", type=_count, help="records that a watchdog settles (200,000)")
    parser.add_argument("--running", type=_count, help="running jobs of a group that is cancelled (10,000)")
    parser.add_argument("--listed", type=_count, help="jobs of a bus that people ask questions of (1,000,000)")
    parser.add_argument("--idle-s", type=float, help="how long to listen to an idle worker (10)")
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="3 pairs, 5,000 jobs, 2,000 of the process pool, 90 samples, 3 s, backlog 20,000, settled 10,000",
    )
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table")
    asked = parser.parse_args(arguments)
    usual = QUICK if asked.quick else FULL
    for name, value in usual.items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    return asked


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} will not do; it takes 1 or more")
    return number


@contextmanager
def _server(url: str | None) -> Iterator[tuple[str, str]]:
    if url is not None:
        yield url, "the given server"
        return
    with embedded_server() as server:
        yield server.url, server.what


def _print(figures: Sequence[Figure]) -> None:
    print(f"\n{figures[0].benchmark:40} {'min':>10} {'median':>10} {'max':>10} {'unit':6} requirement")
    for figure in figures:
        spread = figure.spread
        numbers = " ".join(f"{_number(value):>10}" for value in (spread.min, spread.median, spread.max))
        verdict = "" if figure.ok is None else f"{figure.requirement}: {'ok' if figure.ok else 'missed'}"
        print(f"  {figure.what:38} {numbers} {figure.unit:6} {verdict}".rstrip(), flush=True)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}"


if __name__ == "__main__":
    main()
