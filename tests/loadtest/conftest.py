"""Servers on real sockets: some that misbehave on purpose, and the real application."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from loadtest.running import Load, Run
from loadtest.samples import Samples
from loadtest.target import Target
from recsys.bundle import Registry, publish_run
from serving.app import create_app
from serving.settings import Settings

OUTCOMES = ["ok", "http_503", "timeout", "connect_refused", "invalid_empty"]
TIERS = ["", "nezha", "item_to_item"]
Handler = Callable[[int, bytes, asyncio.StreamWriter], Awaitable[None]]
"""Number of the request from 0, its head and body, and where the answer goes."""


@pytest.fixture
def serving() -> Callable[[Handler], object]:
    """A context manager inside an event loop: a server that calls the handler for each request."""

    @asynccontextmanager
    async def serve(handler: Handler) -> AsyncIterator[Target]:
        number = 0

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal number
            try:
                while not writer.is_closing():
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    body = await reader.readexactly(length)
                    this, number = number, number + 1
                    await handler(this, head + body, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        try:
            yield Target(host, port)
        finally:
            server.close()

    return serve


@pytest.fixture
def nobody() -> Iterator[str]:
    """The address of a port on which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture(scope="session")
def service(tiny_work: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the real application on the tiny bundle."""
    folder = tmp_path_factory.mktemp("loaded")
    publish_run(Registry(folder / "registry"), run=tiny_run, work=tiny_work, created=datetime(2026, 1, 1, tzinfo=UTC))
    app = create_app(Settings(registry=folder / "registry", state=folder / "state", beam=10))
    server = uvicorn.Server(uvicorn.Config(app, port=0, http="httptools", log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    limit = time.monotonic() + 60
    while not server.started and thread.is_alive() and time.monotonic() < limit:
        time.sleep(0.01)
    assert server.started
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def _run_of(
    latency: list[float], outcome: list[int] | None = None, tier: list[int] | None = None, *, seconds: float = 10.0
) -> Run:
    count = len(latency)
    numbers, tiers = outcome or [0] * count, tier or [1] * count
    samples = Samples(
        np.linspace(0, seconds, count, endpoint=False), np.array(latency, float), np.array(latency, float) - 0.001,
        np.array(numbers, np.uint8), np.array(tiers, np.uint8), OUTCOMES, TIERS, seconds,
    )  # fmt: skip
    return Run(Load(rate=10, seconds=seconds, deadline=0.1), samples, 0.1, 0, {})


@pytest.fixture(scope="session")
def run_of() -> Callable[..., Run]:
    """Makes a run of given latencies, spread over the window and sent 1 ms late; numbers into OUTCOMES and TIERS."""
    return _run_of
