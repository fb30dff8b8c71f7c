#!/usr/bin/env python3
"""
Everything goes wrong at once, on real processes, and the judge says whether busq kept its word.

    python scripts/chaos.py --seed 7 --minutes 5
    python scripts/chaos.py --seed 7 --minutes 30 --jobs 200000 --out /tmp/run7
    python scripts/chaos.py --minutes 1 --faults kill_worker,kill_server
    python scripts/chaos.py --minutes 5 --shards 4         several shards on one server
    python scripts/chaos.py --minutes 5 --cluster          shards over the three nodes of a Redis Cluster
    python scripts/chaos.py --minutes 5 --netns            workers and watchdogs whose networks are cut, too

A redis-server with an append-only file, workers of all three sorts, watchdogs, producers and cancellers; a nemesis
kills, freezes, cuts, pauses, fills, forges, by a plan drawn from the seed. Then everything heals, the bus comes to
rest, and what it did is judged. Printed are the seed, the counts of jobs, cancels, faults and transitions, and the
verdict.

In a cluster a fault of the server hits one node, drawn by chance; one that is killed comes back with its file. The
nodes have no replicas, for a failover loses acknowledged writes by nature, and no slot is moved, for a moved key comes
as RESTORE, which the judge cannot read: both are tests of their own (tests/fault/test_redis_cluster.py).
Exit codes: 0 it holds, 1 it does not, 2 it was asked for what there is not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Runnable by itself: found are the modules beside it, and the busq that it stands beside.
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from faults.cables import Impossible  # noqa: E402
from faults.campaign import Campaign  # noqa: E402
from faults.plan import A_MINUTE, draw  # noqa: E402
from faults.topology import FEWEST_NODES, node_of  # noqa: E402
from faults.verdict import Report  # noqa: E402

JOBS_A_MINUTE = 5500
CANCELS_A_MINUTE = 1400
SHOWN = 40  # violations on the screen; faults.json has all


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _read(arguments)
    folder = asked.out or Path(tempfile.mkdtemp(prefix=f"busq-chaos-{asked.seed}-")) / "run"
    print(f"seed {asked.seed}, {asked.minutes:g} min, run folder {folder}", file=sys.stderr, flush=True)
    try:
        plan = draw(
            asked.seed, asked.minutes, jobs=asked.jobs, cancels=asked.cancels, faults=asked.faults,
            shards=_shards(asked), nodes=asked.cluster, cables=asked.netns,
        )  # fmt: skip
    except ValueError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    try:
        campaign = Campaign(plan, folder)
    except Impossible as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    report = asyncio.run(campaign.carry_out())
    _print(report)
    if report.holds and asked.out is None:
        shutil.rmtree(folder.parent)
    return 0 if report.holds else 1


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="left out: a fresh one, which is printed")
    parser.add_argument("--minutes", type=float, default=1.0, help="for the faults; the drain comes after (1)")
    parser.add_argument("--jobs", type=int, help=f"accepted in all ({JOBS_A_MINUTE} for each minute)")
    parser.add_argument("--cancels", type=int, help=f"answered in all ({CANCELS_A_MINUTE} for each minute)")
    parser.add_argument("--out", type=Path, help="the run folder to make; left out: a temporary one, kept if it fails")
    parser.add_argument(
        "--faults", type=lambda text: text.split(","), default=[], help=f"only these: {', '.join(sorted(A_MINUTE))}"
    )
    parser.add_argument("--shards", type=int, help="of the bus (1; in a cluster at least two for each node)")
    parser.add_argument(
        "--cluster", type=int, nargs="?", default=0, const=FEWEST_NODES, metavar="NODES",
        help=f"a Redis Cluster of so many nodes ({FEWEST_NODES})",
    )  # fmt: skip
    parser.add_argument(
        "--netns",
        action="store_true",
        help="each worker and watchdog in a network of its own, which can be cut; takes root",
    )
    asked = parser.parse_args(arguments)
    if asked.netns and asked.cluster:
        parser.error("--netns: of one server only; leave --cluster out")
    if asked.seed is None:
        asked.seed = random.SystemRandom().randrange(1 << 31)
    asked.jobs = asked.jobs or round(JOBS_A_MINUTE * asked.minutes)
    asked.cancels = asked.cancels or round(CANCELS_A_MINUTE * asked.minutes)
    return asked


def _shards(asked: argparse.Namespace) -> int:
    """As many as were asked for, or as it takes. Raise `ValueError` where not every node would have one."""
    if not asked.cluster:
        return asked.shards or 1
    if asked.cluster < FEWEST_NODES:
        raise ValueError(f"--cluster {asked.cluster}: with fewer than {FEWEST_NODES}, one that dies takes all along")
    shards = asked.shards or 2 * asked.cluster
    while len({node_of(b"{%d}" % shard, asked.cluster) for shard in range(shards)}) < asked.cluster:
        if asked.shards:
            raise ValueError(f"--shards {shards}: not every one of {asked.cluster} nodes has a shard; ask for more")
        shards += 1
    return shards


def _print(report: Report) -> None:
    for name in ("seed", "jobs", "cancels", "scopes", "reads", "kills", "server_restarts", "pubsub_kills"):
        print(f"{name.replace('_', ' '):<17} {getattr(report, name)}")
    for name in ("faults", "missed", "crashes", "endings", "verdicts", "transitions"):
        counts: dict[str, int] = getattr(report, name)
        print(f"{name}:")
        for what, count in counts.items():
            print(f"  {what:<40} {count:>8,}")
    for violation in report.violations[:SHOWN]:
        print(f"VIOLATION {violation}")
    if len(report.violations) > SHOWN:
        print(f"… and {len(report.violations) - SHOWN} more")
    print(f"{'holds' if report.holds else 'DOES NOT HOLD'} after {report.seconds:,} s")


if __name__ == "__main__":
    sys.exit(main())
