"""Each story is told to each executor."""

from __future__ import annotations

import pytest

from tests.executors.stage import EXECUTORS


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
