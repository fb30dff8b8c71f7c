"""
Log lines of the processes that we start: JSON where a program reads them, colours where a person does.

Everything takes one way out, whether it was said through structlog or through `logging`, by busq or by a handler or by
a library that a handler uses: so every line of a job carries its jid, kind and attempt, and no line carries a secret.
Facts and results go to stdout; log lines go to stderr.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from busq import events
from busq.cli.safe import safe
from busq.errors import ConfigError
from busq.redaction import HIDDEN, hide, hide_logins, hide_within, is_secret
from busq.worker.context import current_job_or_none

IN_CHILDREN = "busq.cli.logs:configure_child"
"""What a child process of a worker calls, so that its lines look like the worker's."""

Level = Literal["debug", "info", "warning", "error"]

WORKER = "BUSQ_LOG_WORKER"  # how the children of a worker learn its name; no setting

LEVELS: dict[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(level: Level | None = None, stream: TextIO | None = None) -> None:
    """
    Set up structlog and `logging` for this process.

    `level` left out is BUSQ_LOG_LEVEL, else info. Raise `ConfigError` for a level that is none.
    """
    lowest = _level(level)
    if level:
        os.environ["BUSQ_LOG_LEVEL"] = level  # child processes say as much as we do
    stream = stream or sys.stderr
    pretty = stream.isatty()
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_worker,
        _add_job,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(lowest),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*before, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _hide_secrets,
                *(_pretty() if pretty else _json()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(lowest)
    logging.getLogger("asyncio").setLevel(max(lowest, logging.INFO))
    logging.captureWarnings(capture=True)
    events.be_quiet_below(lowest)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The last word of this process takes the way of every line: it may quote anything."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger("busq.cli").critical("uncaught", exc_info=(kind, error, trace))


def _uncaught_in_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not issubclass(ended.exc_type, SystemExit):
        logging.getLogger("busq.cli").error(
            "thread.failed", exc_info=(ended.exc_type, ended.exc_value, ended.exc_traceback)
        )


_worker = ""


def name_lines(worker: str) -> None:
    """From now on, say in every line whose it is: for several workers that share one stderr."""
    global _worker
    _worker = os.environ[WORKER] = worker


def configure_child() -> None:
    """`configure`, in a child process of a worker."""
    configure()
    name_lines(os.environ.get(WORKER, ""))


def flush() -> None:
    """Hand on every line that is still in a buffer; for a process that is about to end at once."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _level(given: str | None) -> int:
    name = (given or os.environ.get("BUSQ_LOG_LEVEL") or "info").lower()
    if name not in LEVELS:
        raise ConfigError(f"BUSQ_LOG_LEVEL: {name!r} will not do; it takes one of {', '.join(LEVELS)}")
    return LEVELS[name]


# Processors ----------------------------------------------------------------------------------------------


def _add_worker(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    if _worker:
        line.setdefault("worker", _worker)
    return line


def _add_job(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    """What is said inside a handler says whose it is. What busq says of a job names the jid itself."""
    job = current_job_or_none()
    if job is not None:
        line.setdefault("jid", job.jid)
        line.setdefault("kind", job.kind)
        line.setdefault("attempt", job.attempt)
    return line


def _hide_secrets(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    return {name: HIDDEN if is_secret(name) else hide_within(value) for name, value in line.items()}


def _hide_in_json(logger: WrappedLogger, method: str, line: Any) -> str:
    """The line as it will be written, and the last word on it; it is still one document then."""
    return hide_logins(line)


def _hide_in_line(logger: WrappedLogger, method: str, line: Any) -> str:
    return hide(line)


def _make_safe(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
    """Nothing that a handler logs may steer the terminal. Only a traceback keeps its line breaks."""
    return {safe(name): _harmless(name, value) for name, value in line.items()}


def _harmless(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if not isinstance(value, str):
        words = repr(value)
        return value if words.isprintable() else safe(words)
    if name not in ("exception", "stack"):
        return safe(value)
    # Set in, so that no line of a message looks like a line of the log.
    return "\n".join("    " + each for each in safe(value, newlines=True).split("\n"))


def _in_words(value: Any) -> str:
    """What JSON has no way to say."""
    return hide(repr(value))


def _json() -> list[Processor]:
    # The renderer writes every character that is not ASCII as an escape, so nothing in a line steers a terminal.
    return [
        structlog.processors.format_exc_info,
        _hide_secrets,  # once more, for the traceback that has just become words
        structlog.processors.JSONRenderer(default=_in_words),
        _hide_in_json,
    ]


def _pretty() -> list[Processor]:
    colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    # Tracebacks are plain: those with the values of variables in them show what should stay secret.
    renderer = structlog.dev.ConsoleRenderer(
        colors=colours, timestamp_key="at", exception_formatter=structlog.dev.plain_traceback
    )
    return [structlog.processors.format_exc_info, _make_safe, renderer, _hide_in_line]
