"""
busq: a Redis Streams job bus whose running jobs can be stopped.

    bus = busq.Bus()

    @bus.job(grace=5.0)
    async def transcode(path: str) -> str: ...

    handle = await transcode.enqueue("a.mp4")
    await bus.cancel(handle.jid, reason="user deleted the video")
"""

from busq.client.bus import Bus
from busq.client.default import cancel, cancel_where, enqueue
from busq.client.handle import BlockingHandle, JobHandle
from busq.client.scope import BlockingScope, Scope
from busq.client.spec import JobSpec
from busq.errors import (
    BadArguments,
    BadJid,
    BadWhere,
    BlockingCallInLoop,
    BusqError,
    BusUnavailable,
    Cancelled,
    ConfigError,
    JidInUse,
    JobCancelled,
    JobFailed,
    JobNotFound,
    NoCurrentJob,
    ParentClosed,
    PictureChanged,
    QueueFull,
    RateLimited,
    ScopeNotFound,
    TooDeep,
    TooLarge,
    TooManyRules,
    UnfitServer,
    UsageError,
)
from busq.protocol.cancel import CancelAnswer, Cause, Ended, Verdict
from busq.protocol.hook import CancelledJob
from busq.protocol.job import Event, Job
from busq.protocol.scope import Rule, Survey
from busq.protocol.states import State
from busq.protocol.tree import FinishedJob
from busq.worker.context import CurrentJob, current_job

__version__ = "0.1.0"

__all__ = [
    "BadArguments",
    "BadJid",
    "BadWhere",
    "BlockingCallInLoop",
    "BlockingHandle",
    "BlockingScope",
    "Bus",
    "BusUnavailable",
    "BusqError",
    "CancelAnswer",
    "Cancelled",
    "CancelledJob",
    "Cause",
    "ConfigError",
    "CurrentJob",
    "Ended",
    "Event",
    "FinishedJob",
    "JidInUse",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobHandle",
    "JobNotFound",
    "JobSpec",
    "NoCurrentJob",
    "ParentClosed",
    "PictureChanged",
    "QueueFull",
    "RateLimited",
    "Rule",
    "Scope",
    "ScopeNotFound",
    "State",
    "Survey",
    "TooDeep",
    "TooLarge",
    "TooManyRules",
    "UnfitServer",
    "UsageError",
    "Verdict",
    "cancel",
    "cancel_where",
    "current_job",
    "enqueue",
]
