"""A tiny catalog with every peculiarity that serving must respect, published for real."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
import structlog.testing
import uvicorn
from starlette.testclient import TestClient
from typer.testing import CliRunner

from recsys.bundle import Bundle, Registry, load_decoder, load_indexes, publish_run
from serving.app import create_app
from serving.settings import Settings
from serving.stages import BundleRecommender
from windfire.commands import index

FAR = 4_000_000_000_000_000  # UTC microseconds in the year 2096
GONE = 1_000


def _rewrite(work: Path, job: str, **columns: pa.Array) -> None:
    path = work / job / "data" / "part-0.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), table.schema.field(name), values)
    pq.write_table(table, path)


@pytest.fixture(scope="session")
def served_work(tiny_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_work` with items 0-3 gone, 4 still to come, 5 without attributes and text, 6 and 7 in one bucket.

    It has indexes; the text vectors in them are by hashing, so that texts can be searched for without a model.

    Popularity over all scenes knows items 0-29, scene `home` items 0-9.
    """
    work = tmp_path_factory.mktemp("served") / "work"
    shutil.copytree(tiny_work, work)
    items = pq.read_table(work / "items" / "data" / "part-0.parquet")
    count = items.num_rows
    kept = pa.array([n != 5 for n in range(count)])
    blanked = {name: _where(kept, items[name]) for name in ("title", "category_path", "brand", "price_micros")}
    begins = pa.array([FAR if n == 4 else 1 if n == 10 else None for n in range(count)], pa.int64())
    ends = pa.array([GONE if n < 4 else FAR if n == 10 else None for n in range(count)], pa.int64())
    _rewrite(work, "items", available_from=begins, available_until=ends, **blanked)
    codes = [[n % 4, n // 4 % 4, n // 16] for n in range(count)]
    codes[7] = codes[6]
    _rewrite(work, "semantic_ids", codes=pa.array(codes, pa.list_(pa.int64())))
    popularity = pq.read_table(work / "popularity" / "data" / "part-0.parquet")
    rows = np.concatenate([np.arange(30), np.arange(count, count + 10)])
    pq.write_table(popularity.take(pa.array(rows)), work / "popularity" / "data" / "part-0.parquet")
    options = ["build", "--data", str(work), "--encoder", "hashing", "--encode"]
    assert CliRunner().invoke(index.app, options, catch_exceptions=False).exit_code == 0
    return work


def _where(kept: pa.Array, column: pa.ChunkedArray) -> pa.Array:
    values = [value if keep else None for keep, value in zip(kept.to_pylist(), column.to_pylist(), strict=True)]
    return pa.array(values, column.type)


@pytest.fixture(scope="session")
def served_registry(served_work: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """`tiny_run` on `served_work`, published and current. Read only."""
    registry = Registry(tmp_path_factory.mktemp("served_registry") / "registry")
    publish_run(registry, run=tiny_run, work=served_work, created=datetime(2026, 1, 1, tzinfo=UTC))
    return registry


@pytest.fixture(scope="session")
def served_bundle(served_registry: Registry) -> Bundle:
    return served_registry.open_current()


@pytest.fixture(scope="session")
def recommender(served_bundle: Bundle) -> BundleRecommender:
    return BundleRecommender(served_bundle, load_decoder(served_bundle), beam=10, retrieval=load_indexes(served_bundle))


@pytest.fixture(autouse=True)
def log_lines() -> Iterator[list[MutableMapping[str, Any]]]:
    """What is logged during a test."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture
def server_settings(served_registry: Registry, tmp_path: Path) -> Settings:
    """Settings of a server with a state of its own and nothing from the environment."""
    return Settings(registry=served_registry.root, state=tmp_path / "state", catalog_log=tmp_path / "log", beam=10)


@pytest.fixture
def client(server_settings: Settings) -> Iterator[TestClient]:
    """The real application on the real tiny bundle."""
    with TestClient(create_app(server_settings)) as client:
        yield client


@dataclass
class Server:
    """A server process of its own.

    Attributes:
        process: `windfire serve`.
        url: where it listens.
        state: its state directory.
        log: where its log lines go.
    """

    process: subprocess.Popen[bytes]
    url: str
    state: Path
    log: Path

    def wait_until_ready(self, seconds: float = 200.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        pytest.fail(f"the server did not become ready:\n{self.log.read_text()}")


StartServer = Callable[..., Server]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def start_server(served_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Starts `windfire serve` and returns when it is ready; ends what still runs after the tests."""
    started: list[Server] = []

    def start(*, registry: Path | None = None, state: Path | None = None, **environment: str) -> Server:
        folder = tmp_path_factory.mktemp("server")
        state, log, port = state or folder / "state", folder / "log", _free_port()
        command = [sys.executable, "-c", "from windfire.cli import main; main()", "serve"]
        options = ["--registry", str(registry or served_registry.root), "--state", str(state), "--port", str(port)]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, *options], env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stderr=file
            )
        server = Server(process, f"http://127.0.0.1:{port}", state, log)
        started.append(server)
        server.wait_until_ready()
        return server

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()


@dataclass
class EngineProcess:
    """An engine process of its own.

    Attributes:
        process: `windfire engine`.
        socket: where it listens.
        log: where its log lines go.
    """

    process: subprocess.Popen[bytes]
    socket: Path
    log: Path

    def wait_until_listening(self, seconds: float = 200.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if b"engine_listening" in self.log.read_bytes():
                return
            time.sleep(0.02)
        pytest.fail(f"the engine does not listen:\n{self.log.read_text()}")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()


StartEngine = Callable[..., EngineProcess]


@pytest.fixture(scope="session")
def start_engine(served_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartEngine]:
    """Starts `windfire engine` and returns when it listens; ends what still runs after the tests."""
    started: list[EngineProcess] = []

    def start(
        *, registry: Path | None = None, path: Path | None = None, wait: bool = True, **environment: str
    ) -> EngineProcess:
        folder = tmp_path_factory.mktemp("engine")
        path = path or folder / "engine.sock"
        command = [sys.executable, "-c", "from windfire.cli import main; main()", "engine"]
        options = ["--registry", str(registry or served_registry.root), "--state", str(folder / "state")]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "WINDFIRE_BEAM": "10", **environment}
        with (folder / "log").open("wb") as file:
            process = subprocess.Popen([*command, *options, "--socket", str(path)], env=variables, stderr=file)
        engine = EngineProcess(process, path, folder / "log")
        started.append(engine)
        if wait:
            engine.wait_until_listening()
        return engine

    yield start
    for engine in started:
        engine.kill()


@pytest.fixture(scope="session")
def shared_engine(start_engine: StartEngine) -> EngineProcess:
    """An engine process on `served_registry`, for tests that leave it as it is."""
    return start_engine()


ServeInThread = Callable[[Settings], contextlib.AbstractContextManager[str]]


@pytest.fixture(scope="session")
def serve_in_thread() -> ServeInThread:
    """Serves on a real socket in a thread of this process while a block lasts; gives the URL."""

    @contextlib.contextmanager
    def serving(settings: Settings) -> Iterator[str]:
        config = uvicorn.Config(create_app(settings), port=0, http="httptools", log_config=None, lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join()

    return serving


@pytest.fixture(scope="session")
def shared_url(
    served_registry: Registry, tmp_path_factory: pytest.TempPathFactory, serve_in_thread: ServeInThread
) -> Iterator[str]:
    """A server in a thread, for tests that need no state of their own."""
    folder = tmp_path_factory.mktemp("shared")
    settings = Settings(registry=served_registry.root, state=folder / "state", catalog_log=folder / "log")
    with serve_in_thread(settings) as url:
        yield url
