"""10,000 connections that say nothing, or next to nothing, against the real process."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from serving.settings import Settings

MANY = 10_000
FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(0 <= FILES < MANY + 500, reason=f"needs {MANY + 500} open files, the system allows {FILES}"),
]
STARTS = [b"", b"POST /v1/events HTTP/1.1\r\nA: ", b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"]


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened(url: str, start: bytes, stack: contextlib.ExitStack) -> None:
    address = urlsplit(url)
    for _ in range(MANY):
        connection = stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=60))
        with contextlib.suppress(ConnectionError):  # it made room for others already
            connection.sendall(start)


def answers(url: str) -> None:
    assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200
    answer = httpx.post(f"{url}/v1/recommend", json={"history": ["item-11"]}, timeout=60)
    assert (answer.status_code, len(answer.json()["items"])) == (200, 10)


@pytest.mark.parametrize("start", STARTS, ids=["silent", "half a head", "half a body"])
def test_ten_thousand_at_once_cost_little_memory(start_server: Any, many_files: None, start: bytes) -> None:
    server = start_server(
        WINDFIRE_CONNECTION_LIMIT=str(MANY + 100), WINDFIRE_HEAD_TIMEOUT="PT300S", WINDFIRE_BODY_TIMEOUT="PT300S"
    )
    answers(server.url)
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with contextlib.ExitStack() as stack:
        opened(server.url, start, stack)
        answers(server.url)
        held = sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp"))
        assert held >= MANY
        assert process.memory_info().rss - before < 32_768 * MANY
    answers(server.url)


@pytest.mark.parametrize("start", STARTS[:2], ids=["silent", "half a head"])
def test_over_the_limit_the_oldest_make_room(start_server: Any, many_files: None, start: bytes) -> None:
    server = start_server(WINDFIRE_CONNECTION_LIMIT="500", WINDFIRE_HEAD_TIMEOUT="PT300S")
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with contextlib.ExitStack() as stack:
        opened(server.url, start, stack)
        answers(server.url)
        held = sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp"))
        assert held <= 501
        assert process.memory_info().rss - before < 64 << 20
    figures = httpx.get(f"{server.url}/metrics", timeout=60).text
    assert 'windfire_connections_ended_total{reason="evicted"}' in figures


def test_they_are_gone_after_the_time_that_they_have(start_server: Any, many_files: None) -> None:
    server = start_server(WINDFIRE_HEAD_TIMEOUT="PT1S", WINDFIRE_CONNECTION_LIMIT=str(MANY + 100))
    process = psutil.Process(server.process.pid)
    with contextlib.ExitStack() as stack:
        opened(server.url, b"POST /", stack)
        deadline = time.monotonic() + 120
        while sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp")) > 10:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        answers(server.url)


def test_the_default_limit_is_as_many() -> None:
    assert Settings().connection_limit == MANY
