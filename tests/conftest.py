"""
What every test can count on: a real Redis, an event loop of its own, and no settings from outside.

`async def test_…` runs in a fresh event loop; `BUSQ_TEST_LOOP=uvloop` makes that uvloop. Fixtures are plain
functions. Tests that hurt a server take `own_server`, the others share one and find it empty.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.servers import RedisServer, find_redis_server

FOR_THE_TESTS = {"BUSQ_REDIS_SERVER", "BUSQ_VALKEY_SERVER", "BUSQ_TEST_LOOP", "BUSQ_TEST_PARTITION_S", "BUSQ_WALKS"}

NO_SERVER = (
    "these tests need a redis-server 7.0 or later: none on PATH and BUSQ_REDIS_SERVER is not set. "
    "`sh scripts/test` brings one."
)


# How long one example takes says nothing on a machine that is shared.
settings.register_profile("busq", deadline=None)
settings.load_profile("busq")


def pytest_configure() -> None:
    """Keep the settings of whoever runs the tests out of them: BUSQ_URL above all."""
    for name in [name for name in os.environ if name.startswith("BUSQ_") and name not in FOR_THE_TESTS]:
        del os.environ[name]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in a loop that nothing else has touched, and leave no task of it behind."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(pyfuncitem.obj(**wanted))
    return True


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    name = os.environ.get("BUSQ_TEST_LOOP", "asyncio")
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    if name != "asyncio":
        raise pytest.UsageError(f"BUSQ_TEST_LOOP: {name!r} will not do; it takes asyncio or uvloop")
    return asyncio.new_event_loop


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., RedisServer]]:
    """Start real servers: `start_server(aof=True, options=["--maxmemory", "10mb"])`. All end with the session."""
    executable = find_redis_server()
    if executable is None:
        if "PYTEST_XDIST_WORKER" in os.environ:  # there an exit would show as a crash, without the reason
            pytest.fail(NO_SERVER, pytrace=False)
        pytest.exit(NO_SERVER, returncode=2)
    servers: list[RedisServer] = []

    def start(**how: Any) -> RedisServer:
        servers.append(RedisServer(executable, **how))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def redis_server(start_server: Callable[..., RedisServer]) -> RedisServer:
    """The real server that tests share, one for each test process. Leave it as you would like to find it."""
    return start_server()


@pytest.fixture(scope="session")
def server_with_users(start_server: Callable[..., RedisServer]) -> RedisServer:
    """The same with a user for each role, and no `default` (`tests/roles.py`)."""
    return start_server(users=True)


@pytest.fixture(scope="session")
def how_to_start() -> dict[str, Any]:
    """What `own_server` is started with; folders whose tests run as roles say `users=True`."""
    return {}


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The shared server's URL; it is running and empty."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def own_server(
    request: pytest.FixtureRequest, start_server: Callable[..., RedisServer], how_to_start: dict[str, Any]
) -> Iterator[RedisServer]:
    """
    A server for this test alone, to be killed, paused and restarted.

    `@pytest.mark.parametrize("own_server", [{"aof": True}], indirect=True)` gives one that keeps its data.
    """
    server = start_server(**how_to_start, **getattr(request, "param", {}))
    yield server
    server.close()
