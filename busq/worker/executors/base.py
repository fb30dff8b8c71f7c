"""
The contract of the executors: begin, ask to stop, force, report.

They differ honestly in what force can do: a coroutine is cancelled again, a thread can only be abandoned. Whatever
happens inside a handler, `report` is called exactly once when its code has really stopped, in the handlers' loop;
for an attempt that was abandoned meanwhile, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from busq.worker.attempt import Attempt

Report = Callable[[Attempt, Any, BaseException | None], None]
"""Called with the attempt, what its handler returned, and what it raised (None when it returned)."""


class Executor(Protocol):
    """One way to run a handler. All methods belong to the handlers' loop and return at once."""

    def begin(self, attempt: Attempt, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Run the handler of this attempt; `attempt.job` is set."""
        ...

    def ask_to_stop(self, attempt: Attempt) -> None:
        """The token was tripped: interrupt the handler in the gentlest way that it has."""
        ...

    def force(self, attempt: Attempt) -> bool:
        """The grace is over. Return whether forcing again later can do any good."""
        ...

    async def close(self) -> None:
        """No further attempts will begin."""
        ...


class HandlerExit(Exception):
    """A handler raised `SystemExit` or `KeyboardInterrupt`: a failure of the handler, not the end of the worker."""
