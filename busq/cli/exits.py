"""
How a command ends: one exit code for each kind of ending, one clear line on stderr, no traceback.

    0  done                                 1  the answer is no: not found, too late, timed out
    2  wrong usage                          3  Redis is not reachable, or unfit

Beside these, 130 and 141 are what a shell reports for Ctrl-C and for a reader of our output that went away, and 70 is
a mistake in busq itself: the only ending that shows a traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

from busq.cli.safe import shown
from busq.errors import BadWhere, BusqError, BusUnavailable, UsageError
from busq.protocol.durability import Confirmed

DONE = 0
NO = 1
USAGE = 2
UNREACHABLE = 3
OUR_MISTAKE = 70
INTERRUPTED = 130
PIPE_CLOSED = 141


def run(command: Callable[[], object]) -> int:
    """Carry out a command and say with which code to exit. What went wrong has been told on stderr then."""
    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more. What is still buffered must not raise once again when Python closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except BadWhere as error:  # its lines stand below each other, the last one pointing at the mistake
        tell(str(error), lines=True)
        return USAGE
    except UsageError as error:
        return _told(error, USAGE)
    except BusUnavailable as error:
        return _told(error, UNREACHABLE)
    except (BusqError, TimeoutError) as error:
        return _told(error, NO)
    except Exception as error:  # a mistake of ours: whoever reports it needs all of it, but for the secrets
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            tell(f"the answer could not be written: {error.strerror}")
            return NO
        tell(f"a mistake in busq itself, please report it:\n{traceback.format_exc()}", lines=True)
        return OUR_MISTAKE


def tell(words: str, *, lines: bool = False) -> None:
    """Say something to people, on stderr, without secrets and without anything that steers a terminal."""
    print(f"busq: {shown(words, newlines=lines)}", file=sys.stderr, flush=True)


def confirmed(told: Confirmed | None) -> int:
    """The code for a write that went through, and what it lacks said on stderr when it was to be confirmed."""
    if told is None or told.ok:
        return DONE
    tell(f"not confirmed as {told.asked}: {told.words}. It is written down all the same, and may yet get there")
    return NO


def _told(error: Exception, code: int) -> int:
    tell(str(error) or type(error).__name__)
    return code
