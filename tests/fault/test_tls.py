"""TLS with an authority of our own: what fits is let in, and what does not is refused once, in words for people."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis.asyncio import Redis

import busq
from busq.cli.embedded import HOST, free_port
from busq.errors import BusUnavailable
from busq.protocol.states import State
from tests.roles import TESTER, as_role, deploy, url_of
from tests.runtime.bench import bench
from tests.servers import RedisServer


class TlsServer:
    """A server whose TLS port shows this certificate; its plain port is for looking from outside."""

    def __init__(self, start: Callable[..., RedisServer], folder: Path, shown: trustme.LeafCert, *more: str) -> None:
        self.ca_file, certificate, key = (str(folder / name) for name in ("ca.pem", "server.pem", "server.key"))
        shown.private_key_pem.write_to_path(key)
        shown.cert_chain_pems[0].write_to_path(certificate)
        self.port = free_port()
        self.plain = start(
            users=True,
            options=[
                *("--tls-port", str(self.port), "--tls-cert-file", certificate, "--tls-key-file", key),
                *("--tls-ca-cert-file", self.ca_file, *(more or ("--tls-auth-clients", "no"))),
            ],
        )

    @property
    def url(self) -> str:
        """The tester's."""
        return url_of(TESTER, f"{HOST}:{self.port}/0", scheme="rediss")

    @property
    def canceller(self) -> str:
        return as_role(self.url, "canceller")

    def connections(self) -> int:
        """How many it has ever accepted."""
        with self.plain.client() as client:
            return int(client.info("stats")["total_connections_received"])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


Make = Callable[..., TlsServer]


@pytest.fixture
def serve(start_server: Callable[..., RedisServer], tmp_path: Path, authority: trustme.CA) -> Iterator[Make]:
    """Start a TLS server: `serve(certificate, *options)`; its `ca_file` holds our authority."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    made: list[TlsServer] = []

    def serve(shown: trustme.LeafCert, *more: str) -> TlsServer:
        try:
            made.append(TlsServer(start_server, tmp_path, shown, *more))
        except RuntimeError:
            pytest.skip("this server does not start with --tls-port; install one that was built with TLS")
        return made[-1]

    yield serve
    for each in made:
        each.plain.close()


async def test_a_bus_works_over_tls(serve: Make, authority: trustme.CA) -> None:
    server = serve(authority.issue_cert(HOST))
    async with bench(server.url, tls_ca_file=server.ca_file) as b:

        @b.bus.job
        async def wait() -> None:
            await b.gate().wait()

        worker = await b.work()
        handle = await wait.enqueue()
        await b.reaches(handle.jid, State.RUNNING)
        assert (await b.bus.cancel(handle.jid)).verdict == "signalled"
        await b.reaches(handle.jid, State.CANCELLED)
        assert worker.ready


async def _refused(server: TlsServer, url: str | None = None, **settings: Any) -> str:
    """What a canceller is told; and that it tried once, which is all that can be of use."""
    before = server.connections()
    async with busq.Bus(url or server.canceller, **settings) as bus:
        with pytest.raises(BusUnavailable) as told:
            await bus.cancel("job")
    assert server.connections() - before <= 2, "one of them is the one that counts"
    return str(told.value)


async def test_a_wrong_host_name_is_refused(serve: Make, authority: trustme.CA) -> None:
    server = serve(authority.issue_cert("redis.example"))
    told = await _refused(server, tls_ca_file=server.ca_file)
    assert "its certificate is not accepted" in told
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in told
    assert "a host name that stands in it" in told
    await deploy(server.plain.url)
    async with busq.Bus(f"{server.canceller}?ssl_check_hostname=false", tls_ca_file=server.ca_file) as bus:
        assert (await bus.cancel("job")).verdict == "not_found", "unless it is asked for"


@pytest.mark.parametrize("form", ["rediss+sentinel://{}:{}/jobs", "rediss+cluster://{}:{}"])
async def test_the_same_is_said_of_sentinels_and_of_a_cluster(serve: Make, authority: trustme.CA, form: str) -> None:
    server = serve(authority.issue_cert("redis.example"))
    told = await _refused(server, form.format(HOST, server.port), tls_ca_file=server.ca_file)
    assert "certificate is not valid for '127.0.0.1'" in told


async def test_an_expired_certificate_is_refused(serve: Make, authority: trustme.CA) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    server = serve(authority.issue_cert(HOST, not_after=past))
    assert "certificate has expired" in await _refused(server, tls_ca_file=server.ca_file)


async def test_an_unknown_authority_is_refused(serve: Make, authority: trustme.CA) -> None:
    server = serve(authority.issue_cert(HOST))
    told = await _refused(server)
    assert "its certificate is not accepted" in told
    assert "BUSQ_TLS_CA_FILE" in told


async def test_a_server_that_wants_a_certificate_is_shown_one(
    serve: Make, authority: trustme.CA, tmp_path: Path
) -> None:
    server = serve(authority.issue_cert(HOST), "--tls-auth-clients", "yes")
    own = authority.issue_cert("busq")
    certificate, key = str(tmp_path / "own.pem"), str(tmp_path / "own.key")
    own.cert_chain_pems[0].write_to_path(certificate)
    own.private_key_pem.write_to_path(key)
    await deploy(server.plain.url)
    async with busq.Bus(server.canceller, tls_ca_file=server.ca_file) as bus:
        with pytest.raises(BusUnavailable, match="BUSQ_TLS_CERT_FILE"):
            await bus.cancel("job")
    shown = {"tls_cert_file": certificate, "tls_key_file": key}
    async with busq.Bus(server.canceller, tls_ca_file=server.ca_file, **shown) as bus:
        assert (await bus.cancel("job")).verdict == "not_found"


async def test_tls_to_a_port_without_it_is_said_so(serve: Make, authority: trustme.CA) -> None:
    server = serve(authority.issue_cert(HOST))
    async with busq.Bus(f"rediss://{HOST}:{server.plain.port}", connect_timeout_s=0.3) as bus:
        with pytest.raises(BusUnavailable, match="speaks no TLS on this port"):
            await bus.cancel("job")


async def test_options_in_the_url_do_what_the_settings_do(serve: Make, authority: trustme.CA) -> None:
    server = serve(authority.issue_cert(HOST))
    await deploy(server.plain.url)
    async with busq.Bus(f"{server.canceller}?ssl_ca_certs={server.ca_file}") as bus:
        assert (await bus.cancel("job")).verdict == "not_found"
    async with Redis.from_url(f"{server.url}?ssl_ca_certs={server.ca_file}") as plain:
        assert await plain.ping(), "as redis-py takes them"
