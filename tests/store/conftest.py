"""The servers that store tests run on: `url` is a real server and fakeredis in turn, each found empty."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from redis import Redis

from busq.cli.embedded import embedded_server


@pytest.fixture(scope="session")
def fake_server() -> Iterator[str]:
    """One fakeredis for the session, in a process of its own, as `busq dev` would start it."""
    with ExitStack() as until_the_end:
        with pytest.MonkeyPatch.context() as patch:  # for the start alone: other tests start servers of other kinds
            patch.setenv("BUSQ_EMBEDDED", "fake")
            server = until_the_end.enter_context(embedded_server())
        yield server.url


@pytest.fixture
def fake_url(fake_server: str) -> str:
    """The shared fakeredis; it is running and empty."""
    with Redis.from_url(fake_server, protocol=2) as client:
        client.flushall()
    return fake_server


@pytest.fixture(params=["redis", "fakeredis"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty server: the test runs once on each kind."""
    found: str = request.getfixturevalue("redis_url" if request.param == "redis" else "fake_url")
    return found
