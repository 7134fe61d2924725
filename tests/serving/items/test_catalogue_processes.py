"""Changes of items against real processes that are killed: none lost, none back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from recsys.bundle import Registry, publish_run
from serving.app import create_app
from serving.settings import Settings

BLOCK = 250  # items of one brand: an answer holds 500

Start = Callable[..., Any]
Client = httpx.Client | TestClient


def item(n: int) -> dict[str, Any]:
    return {"title": f"Crimson lacquer {n}", "brand": f"Block {n // BLOCK}", "category_path": ["All", "Nails"]}


def changes(count: int) -> list[tuple[str, str, dict[str, Any] | None]]:
    """`count` items that stay, and as many that come and go: half of those expire, half are deleted."""
    comes = [("PUT", f"new-{n}", item(n)) for n in range(2 * count)]
    expires = [("PUT", f"new-{n}", item(n) | {"available_until": 1}) for n in range(1, 2 * count, 4)]
    goes = [("DELETE", f"new-{n}", None) for n in range(3, 2 * count, 4)]
    return [*comes, *expires, *goes]


def send(client: Client, asked: list[tuple[str, str, dict[str, Any] | None]]) -> list[int]:
    """Eight at a time; the changes of one item are more than a hundred places apart."""
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda each: client.request(each[0], f"/v1/items/{each[1]}", json=each[2]), asked)
        return [answer.status_code for answer in answers]


def shown(client: Client, count: int) -> set[str]:
    """All new items that a server recommends, block by block, to somebody with a history of a new item."""
    found: set[str] = set()
    for block in range(-(-2 * count // BLOCK)):
        body = {"history": ["item-11", "new-0"], "n": 500, "exclude_seen": False}
        answer = client.post("/v1/recommend", json=body | {"filters": {"brands": [f"Block {block}"]}}).json()
        assert answer["truncated"]
        found |= {row["item_id"] for row in answer["items"]}
    return found


def kept(count: int) -> set[str]:
    return {f"new-{n}" for n in range(0, 2 * count, 2)}


def check_second_life(client: Client, version: str, count: int) -> None:
    assert shown(client, count) == kept(count)
    ready = client.get("/readyz").json()
    assert (ready["bundle_version"], ready["catalog_version"]) == (version, f"{version}.{3 * count}")


@pytest.fixture
def registry(encodable_registry: Registry, tmp_path: Path) -> Registry:
    shutil.copytree(encodable_registry.root, tmp_path / "registry")
    return Registry(tmp_path / "registry")


@pytest.fixture
def publish_older(registry: Registry, encodable_work: Path, encodable_rerun: Path) -> Callable[[], str]:
    """Publishes a bundle whose snapshot is older than the whole log; returns its version."""
    created = datetime(2026, 3, 1, tzinfo=UTC)
    return lambda: publish_run(registry, run=encodable_rerun, work=encodable_work, created=created).version


def test_a_killed_server_loses_nothing_and_brings_nothing_back(
    registry: Registry, publish_older: Callable[[], str], tmp_path: Path, start_server: Start
) -> None:
    count = 120
    server = start_server(registry=registry.root, state=tmp_path / "state")
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert set(send(client, changes(count))) == {200, 201}
        assert shown(client, count) == kept(count)
    version = publish_older()
    server.process.kill()
    server.process.wait()
    with TestClient(create_app(Settings(registry=registry.root, state=tmp_path / "state"))) as client:
        check_second_life(client, version, count)
        assert send(client, [("PUT", "new-0", item(0)), ("DELETE", "new-3", None)]) == [200, 404]


class Workers:
    """Two servers and their engine process, or two servers that decode; each with a state of its own."""

    def __init__(self, registry: Registry, folder: Path, server: Start, engine: Start | None) -> None:
        self._registry, self._folder, self._server, self._engine = registry, folder, server, engine
        self._running: list[Any] = []

    def start(self) -> list[httpx.Client]:
        environment = {}
        if self._engine is not None:
            path = self._folder / "engine.sock"
            self._running.append(self._engine(registry=self._registry.root, path=path))
            environment["WINDFIRE_ENGINE_SOCKET"] = str(path)
        states = [self._folder / name for name in ("one", "two")]
        servers = [self._server(registry=self._registry.root, state=state, **environment) for state in states]
        self._running += servers
        return [httpx.Client(base_url=server.url, timeout=60) for server in servers]

    def kill(self) -> None:
        """kill -9, all of them."""
        for worker in self._running:
            worker.process.kill()
            worker.process.wait()
        self._running.clear()


@pytest.mark.faults
@pytest.mark.parametrize("engine", [False, True])
def test_all_workers_are_killed(
    registry: Registry,
    publish_older: Callable[[], str],
    tmp_path: Path,
    start_server: Start,
    start_engine: Start,
    engine: bool,
) -> None:
    """1,000 items stay and 1,000 come and go; half of each are written by either server."""
    count = 1_000
    workers = Workers(registry, tmp_path, start_server, start_engine if engine else None)
    with ExitStack() as stack:
        clients = [stack.enter_context(client) for client in workers.start()]
        asked = changes(count)
        middle = 2 * count
        assert set(send(clients[0], asked[:middle])) == {201}
        assert set(send(clients[1], asked[middle:])) == {200}
        assert [shown(client, count) for client in clients] == [kept(count)] * 2
        version = publish_older()
        workers.kill()
    with ExitStack() as stack:
        clients = [stack.enter_context(client) for client in workers.start()]
        for client in clients:
            check_second_life(client, version, count)
        assert send(clients[0], [("DELETE", "new-0", None), ("DELETE", "new-3", None)]) == [200, 404]
        assert [shown(client, count) for client in clients] == [kept(count) - {"new-0"}] * 2
