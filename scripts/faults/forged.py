"""
What somebody with a Redis login and no manners may send: entries that are no jobs, messages that nobody meant.
"""

from __future__ import annotations

import os
import random
from typing import Any

QUEUES = ("co", "th", "pr")


async def poison(admin: Any, chance: random.Random, shard: int) -> None:
    """A few entries in the queues of a shard that no enqueue has written."""
    for _ in range(chance.randint(1, 5)):
        fields: dict[bytes, bytes] = chance.choice(
            [
                {b"jid": b"ghost-%d" % chance.randrange(1000), b"kind": b"quick"},
                {b"jid": b"\xff\xfe", b"kind": b"quick"},
                {b"\xff": b"\x00"},
                {b"jid": b"", b"kind": b""},
                {b"kind": b"quick"},
                {b"jid": b"x" * 5000, b"kind": b"quick"},
                {b"jid": b"{%d}:job\n" % shard, b"kind": b"os:system"},
                {b"payload": os.urandom(200_000)},
            ]
        )
        await admin.xadd(f"busq:{{{shard}}}:queue:{chance.choice(QUEUES)}", fields)


async def notices(admin: Any, chance: random.Random) -> None:
    """Messages on the channels that workers listen to: for jobs that run, for none, and of no shape at all."""
    channels = [f"cancel:p{row}-s-{chance.randrange(2000)}".encode() for row in range(4)]
    listening = await admin.execute_command("PUBSUB", "CHANNELS", "*")
    channels += chance.sample(listening, min(20, len(listening)))
    channels += [b"cancel:", b"cancel:\xff", b"busq:rules", b"busq:done:", b"busq:done:\xff\xfe"]
    for channel in channels:
        body = chance.choice([b"", b"\xff\xfe", b"cancel", b"hasten", b"user", b"\x00" * 1000, b"x" * 1_000_000])
        await admin.publish(channel, body)
