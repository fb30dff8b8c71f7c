"""The health page as an HTTP server: what it answers to probes, to people with curl, and to those who wish it ill."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from busq.cli import health
from busq.cli.health import Address, Page
from busq.errors import ConfigError


class Report(msgspec.Struct, frozen=True, kw_only=True):
    name: str = "me"
    started: bool = True
    live: dict[str, str] = msgspec.field(default_factory=lambda: {"loop": ""})
    ready: dict[str, str] = msgspec.field(default_factory=lambda: {"redis": "no answer for 5.0 s", "listener": ""})
    last_error: str = "redis://me:hunter22@host is away"


class Served:
    """An open page; `ask` sends bytes as they are and reads until the other side closes."""

    def __init__(self, port: int, page: Page) -> None:
        self.port = port
        self.page = page

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], str]:
        reader, writer = await self.connect()
        writer.write(request)
        answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(first.split()[1]), headers, body.decode()

    async def get(self, path: str, *headers: str) -> tuple[int, dict[str, str], str]:
        lines = [f"GET {path} HTTP/1.1", "Host: here", *headers, "", ""]
        return await self.ask("\r\n".join(lines).encode())


@asynccontextmanager
async def served(report: Any = Report) -> AsyncIterator[Served]:
    page = Page(report)
    port = await page.open(Address("127.0.0.1", 0))
    try:
        yield Served(port, page)
    finally:
        await page.close()


async def test_probes_get_a_line_for_each_check_and_a_status_for_all() -> None:
    async with served() as it:
        status, headers, body = await it.get("/livez")
        assert (status, body) == (200, "[+]loop ok\nlivez check passed\n")
        assert headers["content-length"] == str(len(body))
        assert headers["connection"] == "close"
        assert headers["content-type"].startswith("text/plain")
        status, _, body = await it.get("/readyz?verbose")
        assert (status, body) == (503, "[-]redis no answer for 5.0 s\n[+]listener ok\nreadyz check failed\n")
        assert (await it.get("/startupz"))[0] == 200
    async with served(lambda: Report(started=False)) as it:
        assert (await it.get("/startupz"))[0] == 503


async def test_who_asks_for_json_gets_json() -> None:
    async with served() as it:
        status, headers, body = await it.get("/readyz", "Accept: application/json, */*;q=0.5")
        assert (status, headers["content-type"]) == (503, "application/json")
        assert json.loads(body) == {"ok": False, "checks": {"redis": "no answer for 5.0 s", "listener": ""}}


async def test_the_whole_state_is_one_document_with_the_version_and_without_secrets() -> None:
    async with served() as it:
        for path in ("/", "http://here:1/"):
            status, headers, body = await it.get(path)
            assert (status, headers["content-type"]) == (200, "application/json")
            assert json.loads(body)["name"] == "me"
            assert "version" in json.loads(body)
            assert "hunter22" not in body


async def test_head_has_the_length_of_a_body_that_does_not_come() -> None:
    async with served() as it:
        _, _, body = await it.get("/readyz")
        status, headers, none = await it.ask(b"HEAD /readyz HTTP/1.0\r\n\r\n")
        assert (status, headers["content-length"], none) == (503, str(len(body)), "")


async def test_other_paths_are_404_and_name_those_that_there_are() -> None:
    async with served() as it:
        for path in ("/livez/", "/healthz", "//livez", "/%6civez"):
            status, _, body = await it.get(path)
            assert status == 404, path
            assert "/livez" in body


async def test_other_methods_are_405() -> None:
    async with served() as it:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "get"):
            status, headers, _ = await it.ask(f"{method} /livez HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc".encode())
            assert (status, headers["allow"]) == (405, "GET, HEAD")


async def test_who_is_still_sending_when_the_answer_comes_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is closed on unread bytes is reset: then the sender fails, and may never read the answer."""
    monkeypatch.setattr(health, "LINGER_S", 30.0)

    def post(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"POST /livez HTTP/1.1\r\nContent-Length: 30000\r\n\r\n")
            answer = b""
            while more := client.recv(10_000):
                answer += more
            for _ in range(100):
                client.sendall(b"x" * 300)
            return answer

    async with served() as it:
        assert (await asyncio.to_thread(post, it.port)).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /livez\r\n\r\n", 400),
        (b"GET  /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /liv\xffez HTTP/1.1\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost : here\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n", 400),
        (b"GET /livez HTTP/2.0\r\n\r\n", 505),
        (b"GET /livez HTTP/1.1\r\nA: " + b"b" * 9000 + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_no_request_is_told_so(request_bytes: bytes, status: int) -> None:
    async with served() as it:
        assert (await it.ask(request_bytes))[0] == status
        assert (await it.get("/livez"))[0] == 200


async def test_a_client_that_stops_half_way_is_told_so_or_just_let_go() -> None:
    async with served() as it:
        reader, writer = await it.connect()
        writer.write(b"GET /livez HT")
        writer.write_eof()
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        reader, writer = await it.connect()
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_a_slow_client_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "REQUEST_S", 0.05)
    async with served() as it:
        reader, writer = await it.connect()
        writer.write(b"GET /livez HTTP/1.1\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_client_that_does_not_hang_up_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LINGER_S", 0.05)
    async with served() as it:
        reader, writer = await it.connect()
        writer.write(b"GET /livez HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        while it.page._open:  # noqa: ASYNC110 - the page has no event for it
            await asyncio.sleep(0.01)
        writer.close()


async def test_a_probe_gets_through_however_many_connections_are_held_open() -> None:
    async with served() as it:
        held = [await it.connect() for _ in range(health.MOST_OPEN + 20)]
        assert (await it.get("/livez"))[0] == 200
        assert len(it.page._open) <= health.MOST_OPEN
        oldest, _ = held[0]
        with suppress(ConnectionResetError):
            assert await oldest.read() == b""
        for _, writer in held:
            writer.transport.abort()


async def test_a_mistake_in_the_report_is_a_no_and_not_the_end() -> None:
    def broken() -> Report:
        raise ZeroDivisionError

    async with served(broken) as it:
        assert (await it.get("/livez"))[0] == 500
        assert (await it.get("/nothing"))[0] == 404


async def test_a_port_that_is_taken_is_the_callers_mistake_and_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--health-port: cannot listen on 127\.0\.0\.1:{port}"):
            await Page(Report).open(Address("127.0.0.1", port))
