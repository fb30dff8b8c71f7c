"""These tests run as the roles' users, never as `default`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.servers import RedisServer


@pytest.fixture(scope="session")
def redis_server(server_with_users: RedisServer) -> RedisServer:
    return server_with_users


@pytest.fixture(scope="session")
def how_to_start() -> dict[str, Any]:
    return {"users": True}
