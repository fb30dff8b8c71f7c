"""
What an error of redis-py means to us: a trouble of the server by name, or something that we cannot work with.

The thing to hold in mind: redis-py takes the first word off the errors that it has a class for, and leaves it on
others. The word is what tells them apart, so it is looked for in both places.
"""

from __future__ import annotations

from redis import exceptions as redis_errors

from busq.errors import BadRecord, BusqError, BusUnavailable
from busq.protocol.trouble import Trouble, trouble_of

AWAY = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.InvalidResponse,
    redis_errors.RedisClusterException,  # none of the cluster's nodes answered
    OSError,
)
CLUSTER = (redis_errors.ClusterError, redis_errors.SlotNotCoveredError)


def named(error: Exception) -> Trouble | None:
    """The trouble behind an error from redis-py or the network; None where the server is well and the call is not."""
    code = getattr(error, "status_code", None) or str(error).partition(" ")[0]
    trouble = trouble_of(code, str(error))
    if trouble is None and isinstance(error, redis_errors.AuthenticationError):
        return Trouble.LOGIN
    if trouble is None and isinstance(error, CLUSTER):
        return Trouble.CLUSTER_DOWN
    if trouble is None and isinstance(error, AWAY):
        return Trouble.UNREACHABLE
    return trouble


def as_ours(error: Exception, place: str) -> BusqError:
    """`BusUnavailable` with the trouble's name, what was found and what would do; `BadRecord` for all else."""
    trouble = named(error)
    said = str(error) or type(error).__name__
    if trouble is None:
        return BadRecord(f"Redis at {place} holds something that busq cannot work with: {said}")
    return BusUnavailable(f"Redis at {place} {trouble.words}: {said.rstrip('.')}. {trouble.advice}", trouble)
