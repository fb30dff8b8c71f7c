"""
The health page of a process that goes on: `--health-port`.

It answers from the very loop that it speaks for. A loop that is blocked does not answer, and to whoever probes it that
is a no like any other; a page in a thread of its own would go on saying yes.

    /livez     may this process go on? Never asks whether Redis is there
    /readyz    does it do its work now?
    /startupz  has it begun?
    /          everything that it knows of itself, as JSON
    /metrics   figures for Prometheus (`metrics.py`), and what else a process has to serve

This is no web server: GET and HEAD, one request for each connection, and every size and every wait has a limit. Where
too many connections are open, the oldest goes: a probe needs a moment, and those who hold connections open do not.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
from cyclopts import Parameter

from busq import events, tasks
from busq.cli.safe import plain_json, shown
from busq.errors import BusUnavailable, ConfigError

HEAD_BYTES = 8192
REQUEST_S = 5.0  # for a whole request to come in
LINGER_S = 1.0  # for the other side to take the answer
LINGER_BYTES = 65536
MOST_OPEN = 64

SETTINGS = ("BUSQ_HEALTH_PORT", "BUSQ_HEALTH_HOST")

TEXT, JSON = "text/plain; charset=utf-8", "application/json"
METRICS = "text/plain; version=0.0.4; charset=utf-8"

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST = re.compile(rb"(" + _TOKEN + rb") ([!-~]+) HTTP/(\d)\.(\d)\Z")
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00\r\n]*)\Z")

log = events.logger("busq.cli")


class Report(Protocol):
    """
    A struct that says how a process fares. `live` and `ready` have words for each check, "" where all is well.
    """

    @property
    def started(self) -> bool: ...
    @property
    def live(self) -> Mapping[str, str]: ...
    @property
    def ready(self) -> Mapping[str, str]: ...


Answer = tuple[HTTPStatus, str, str]
"""Status, content type and content."""

Pages = Mapping[str, Callable[[], Awaitable[Answer]]]
"""What a process serves beside its health, by path."""


class Address(NamedTuple):
    host: str
    port: int


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HealthPage:
    """Where this process says how it fares."""

    health_port: Annotated[int | None, Parameter(env_var=SETTINGS[0], show_env_var=False)] = None
    """Serve /livez, /readyz, /startupz, /metrics and the whole state (/) here; 0 takes a free port. Left out:
    BUSQ_HEALTH_PORT, else none."""

    health_host: Annotated[str, Parameter(env_var=SETTINGS[1], show_env_var=False)] = "0.0.0.0"  # noqa: S104 - probes come from outside the pod
    """The address to serve it on; left out: BUSQ_HEALTH_HOST."""

    def address(self) -> Address | None:
        """Where to serve, None for nowhere. Raise `ConfigError`."""
        if self.health_port is None:
            return None
        if not 0 <= self.health_port <= 65535:
            raise ConfigError(f"--health-port: {self.health_port} will not do; it takes 0 to 65535, 0 for a free one")
        return Address(self.health_host, self.health_port)


NO_PAGE = HealthPage()


@asynccontextmanager
async def served(
    address: Address | None, report: Callable[[], Report], pages: Pages | None = None
) -> AsyncIterator[None]:
    """Serve what `report` says, and `pages`, in this loop, as long as the context lasts; `address` None: do nothing."""
    if address is None:
        yield
        return
    page = Page(report, pages)
    port = await page.open(address)
    events.tell(log, events.HEALTH_SERVING, host=address.host, port=port)
    try:
        yield
    finally:
        await page.close()


def metrics_page(figures: Callable[[], str]) -> Pages:
    """`/metrics` with these figures."""

    async def page() -> Answer:
        return HTTPStatus.OK, METRICS, figures()

    return {"/metrics": page}


def document(report: Report) -> dict[str, Any]:
    """Everything that a report holds, with our version, as it is written to JSON."""
    from busq import __version__

    return {"version": __version__, **msgspec.structs.asdict(report)}  # type: ignore[arg-type]


class Page:
    """One listening socket and what is open on it."""

    def __init__(self, report: Callable[[], Report], pages: Pages | None = None) -> None:
        self._report = report
        self._pages = pages or {}
        self._open: dict[asyncio.Task[None], None] = {}  # connections, the oldest first

    async def open(self, address: Address) -> int:
        """Listen; answers with the port. Raise `ConfigError` when that cannot be had."""
        try:
            self._server = await asyncio.start_server(self._connected, *address, limit=HEAD_BYTES)
        except OSError as error:
            where = f"{address.host}:{address.port}"
            raise ConfigError(f"--health-port: cannot listen on {where}: {error.strerror or error}") from None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        await tasks.end(*self._open)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: those of asyncio's streams are cancelled with a lot of noise when the loop ends.
        serving = asyncio.create_task(self._serve(reader, writer))
        self._open[serving] = None
        serving.add_done_callback(lambda ended: self._open.pop(ended, None))
        if len(self._open) > MOST_OPEN:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(await self._answer(reader))
            async with asyncio.timeout(LINGER_S):
                await writer.drain()
                writer.write_eof()
                # What comes after the request is read and dropped: closing on unread bytes would reset the
                # connection, and the answer with it.
                for _ in range(LINGER_BYTES // HEAD_BYTES):
                    if not await reader.read(HEAD_BYTES):
                        break
        except (OSError, TimeoutError):
            pass  # whoever asked is gone or does not read
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except TimeoutError:
            return _response(HTTPStatus.REQUEST_TIMEOUT)
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except asyncio.IncompleteReadError as cut:
            return _response(HTTPStatus.BAD_REQUEST) if cut.partial else b""
        request = _understood(head)
        if isinstance(request, HTTPStatus):
            return _response(request)
        if request.method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, more=("Allow: GET, HEAD",))
        try:
            async with asyncio.timeout(REQUEST_S):
                status, kind, body = await self._page(request)
        except (TimeoutError, BusUnavailable) as error:
            why = str(error) or f"no answer within {REQUEST_S:g} s"
            status, kind, body = HTTPStatus.SERVICE_UNAVAILABLE, TEXT, f"{why}\n"
        except Exception as error:  # a mistake of ours, and no reason to answer nothing
            log.exception("health.failed", error=repr(error))
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _response(status, body, kind, head_only=request.method == "HEAD")

    async def _page(self, request: _Request) -> Answer:
        more = self._pages.get(request.path)
        if more is not None:
            return await more()
        if request.path == "/":
            return HTTPStatus.OK, JSON, plain_json(document(self._report())) + "\n"
        probe = request.path[1:]
        if probe not in ("livez", "readyz", "startupz"):
            there = ", ".join(["/livez", "/readyz", "/startupz", *sorted(self._pages)])
            return HTTPStatus.NOT_FOUND, TEXT, f"There are {there} and /\n"
        report = self._report()
        checks = {
            "livez": report.live,
            "readyz": report.ready,
            "startupz": {"started": "" if report.started else "not yet"},
        }[probe]
        ok = not any(checks.values())
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        if request.wants_json:
            return status, JSON, plain_json({"ok": ok, "checks": checks}) + "\n"
        lines = [f"[-]{name} {shown(words)}" if words else f"[+]{name} ok" for name, words in checks.items()]
        return status, TEXT, "\n".join([*lines, f"{probe} check {'passed' if ok else 'failed'}", ""])


class _Request(NamedTuple):
    method: str
    path: str
    wants_json: bool


def _understood(head: bytes) -> _Request | HTTPStatus:
    """The request in these lines, or what to answer to lines that hold none."""
    first, *rest = head[:-4].split(b"\r\n")
    request = _REQUEST.match(first)
    headers = [_HEADER.match(line) for line in rest]
    if request is None or None in headers:
        return HTTPStatus.BAD_REQUEST
    method, target, major, _ = (each.decode("ascii") for each in request.groups())
    if major != "1":
        return HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
    path = re.sub(r"\Ahttp://[^/?]*", "", target).partition("?")[0] or "/"
    if not path.startswith("/"):
        return HTTPStatus.BAD_REQUEST
    accepts = [header[2] for header in headers if header is not None and header[1].lower() == b"accept"]
    return _Request(method, path, any(JSON.encode() in each for each in accepts))


def _response(
    status: HTTPStatus, body: str = "", kind: str = TEXT, *, more: tuple[str, ...] = (), head_only: bool = False
) -> bytes:
    content = (body or f"{status.phrase}\n").encode()
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
        "Connection: close",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head_only else content)
