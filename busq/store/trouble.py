"""
What an error of redis-py means to us: a trouble of the server by name, or something that we cannot work with.

The thing to hold in mind: redis-py takes the first word off the errors that it has a class for, and leaves it on
others. The word is what tells them apart, so it is looked for in both places; where an error has none, its class
will do. In a pipeline other words stand before all that.
"""

from __future__ import annotations

import re

from redis import exceptions as redis_errors

from busq.errors import BadRecord, BusqError, BusUnavailable
from busq.protocol.trouble import Trouble, trouble_of
from busq.store.tls import TlsRefused

AWAY = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.InvalidResponse,
    redis_errors.RedisClusterException,  # none of the cluster's nodes answered
    OSError,
)
_IN_PIPELINE = re.compile(r"Command # \d+ \(.*\) of pipeline caused error: \(['\"]", re.DOTALL)

# The first that fits counts: some of them are of the others' kind.
_SORTS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Trouble], ...] = (
    (TlsRefused, Trouble.TLS),
    (redis_errors.BusyLoadingError, Trouble.LOADING),
    (redis_errors.AuthenticationError, Trouble.LOGIN),
    (redis_errors.NoPermissionError, Trouble.FORBIDDEN),
    (redis_errors.ReadOnlyError, Trouble.READ_ONLY),
    (redis_errors.MasterDownError, Trouble.CUT_OFF),
    (redis_errors.OutOfMemoryError, Trouble.OUT_OF_MEMORY),
    ((redis_errors.NoScriptError, redis_errors.TryAgainError), Trouble.REFUSED),
    ((redis_errors.ClusterError, redis_errors.SlotNotCoveredError), Trouble.CLUSTER_DOWN),
    (AWAY, Trouble.UNREACHABLE),
)


def named(error: Exception) -> Trouble | None:
    """The trouble behind an error from redis-py or the network; None where the server is well and the call is not."""
    said = _IN_PIPELINE.sub("", str(error))
    code = getattr(error, "status_code", None) or said.partition(" ")[0]
    trouble = trouble_of(code, said)
    if trouble is None:
        return next((sort for classes, sort in _SORTS if isinstance(error, classes)), None)
    return trouble


def as_ours(error: Exception, place: str) -> BusqError:
    """`BusUnavailable` with the trouble's name, what was found and what would do; `BadRecord` for all else."""
    trouble = named(error)
    said = str(error) or type(error).__name__
    if trouble is None:
        return BadRecord(f"Redis at {place} holds something that busq cannot work with: {said}")
    return BusUnavailable(f"Redis at {place} {trouble.words}: {said.rstrip('.')}. {trouble.advice}", trouble)
