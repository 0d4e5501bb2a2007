"""What every test may ask for: a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from memfold.local.redis_server import RedisServer


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A private Redis that syncs its append-only file before it answers."""
    from memfold.local.redis_server import RedisServer  # noqa: PLC0415

    server = RedisServer.start(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of that Redis, emptied."""
    from redis import Redis  # noqa: PLC0415

    with Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url
