"""
The contract of the executors: begin, ask to stop, force, kill, report.

They differ honestly in what force can do: a coroutine is cancelled again, a thread can only be abandoned, a process
is asked by a signal and then killed. Whatever happens inside a handler, `report` is called exactly once when its code
has really stopped, in the handlers' loop; for an attempt that was abandoned meanwhile, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from busq.protocol.codec import ErrorInfo
from busq.worker.attempt import Attempt

Report = Callable[[Attempt, Any, BaseException | None], None]
"""Called with the attempt, what its handler returned, and what it raised (None when it returned)."""


class Executor(Protocol):
    """One way to run a handler. All methods belong to the handlers' loop and return at once."""

    def begin(self, attempt: Attempt, payload: bytes) -> None:
        """
        Run the handler of this attempt with the arguments in this payload; `attempt.job` is set.

        Raise `BadPayload` or `BadArguments`, and report nothing, when it can be seen here that they do not fit.
        """
        ...

    def ask_to_stop(self, attempt: Attempt) -> None:
        """The token was tripped: interrupt the handler in the gentlest way that it has."""
        ...

    def tell_anew(self, attempt: Attempt) -> None:
        """The token shows a cancel in place of what it showed before: let the handler find it, without interrupting."""
        ...

    def force(self, attempt: Attempt) -> bool:
        """The grace is over. Return whether forcing again later can do any good."""
        ...

    def kill(self, attempt: Attempt) -> bool:
        """
        The force time is over, or the code of an attempt that was given up is to go. Return whether it is as good as
        gone.

        After True the report follows at once, unless the kernel itself cannot end the code.
        """
        ...

    async def close(self) -> None:
        """No further attempts will begin."""
        ...


class HandlerExit(Exception):
    """A handler raised `SystemExit` or `KeyboardInterrupt`: a failure of the handler, not the end of the worker."""


class Told(Exception):
    """What a handler in another process raised, as that process put it into words."""

    def __init__(self, info: ErrorInfo, *, cancellation: bool) -> None:
        super().__init__(info.message)
        self.info = info
        self.cancellation = cancellation


class Gone(Told):
    """The process that should run the handler has ended, or was not there; the message says how."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorInfo("ChildProcessEnded", message), cancellation=False)


class NotBegun(Exception):
    """The handler has not been begun and will not be: the job is handed back, somebody else may have room for it."""


class Written(msgspec.Struct, frozen=True):
    """What a handler in another process returned, as it will be stored; or why it is `unfit` to be, and its cause."""

    result: bytes = b""
    unfit: ErrorInfo | None = None
    cause: str = ""
