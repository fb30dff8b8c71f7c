"""The commands of these tests run as roles' users: workers and watchdogs as such, all others as `admin`."""

from __future__ import annotations

import asyncio

import pytest

from tests.roles import deploy
from tests.servers import RedisServer


@pytest.fixture(scope="session")
def redis_server(server_with_users: RedisServer) -> RedisServer:
    return server_with_users


@pytest.fixture
def redis_url(redis_url: str) -> str:
    asyncio.run(deploy(redis_url))
    return redis_url
