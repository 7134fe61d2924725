"""Changes of items against real processes that are killed: none lost, none back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys.bundle import Registry, publish_run

BLOCK = 250  # items of one brand: an answer holds 500

Start = Callable[..., Any]


def item(n: int) -> dict[str, Any]:
    return {"title": f"Crimson lacquer {n}", "brand": f"Block {n // BLOCK}", "category_path": ["All", "Nails"]}


def send(url: str, method: str, names: list[tuple[str, dict[str, Any] | None]]) -> list[int]:
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda each: client.request(method, f"/v1/items/{each[0]}", json=each[1]), names)
        return [answer.status_code for answer in answers]


def shown(url: str, count: int) -> set[str]:
    """All new items that a server recommends, block by block, to somebody with a history of a new item."""
    found: set[str] = set()
    for block in range(-(-count // BLOCK)):
        body = {
            "history": ["item-11", "new-0"],
            "n": 500,
            "exclude_seen": False,
            "filters": {"brands": [f"Block {block}"]},
        }
        answer = httpx.post(f"{url}/v1/recommend", json=body, timeout=60).json()
        assert answer["truncated"]
        found |= {row["item_id"] for row in answer["items"]}
    return found


@pytest.fixture
def registry(encodable_registry: Registry, tmp_path: Path) -> Registry:
    shutil.copytree(encodable_registry.root, tmp_path / "registry")
    return Registry(tmp_path / "registry")


class Workers:
    """A server that decodes, or two servers and an engine process; on one registry, each with a state of its own."""

    def __init__(self, registry: Registry, folder: Path, server: Start, engine: Start | None) -> None:
        self._registry, self._folder, self._server, self._engine = registry, folder, server, engine
        self._running: list[Any] = []
        self.urls: list[str] = []

    def start(self) -> None:
        environment = {}
        if self._engine is not None:
            path = self._folder / "engine.sock"
            self._running.append(self._engine(registry=self._registry.root, path=path))
            environment["WINDFIRE_ENGINE_SOCKET"] = str(path)
        names = ["one", "two"] if self._engine is not None else ["one"]
        servers = [
            self._server(registry=self._registry.root, state=self._folder / name, **environment) for name in names
        ]
        self.urls = [server.url for server in servers]
        self._running += servers

    def kill(self) -> None:
        """kill -9, all of them."""
        for worker in self._running:
            worker.process.kill()
            worker.process.wait()
        self._running.clear()

    def wait_for(self, version: str) -> None:
        deadline = 600
        while deadline and {httpx.get(f"{url}/readyz").json()["bundle_version"] for url in self.urls} != {version}:
            deadline -= 1
            httpx.post(f"{self.urls[0]}/v1/recommend", json={"n": 1}, timeout=60)
        assert deadline


@pytest.mark.parametrize(
    ("count", "engine"),
    [
        (30, False),
        pytest.param(1_000, False, marks=pytest.mark.faults),
        pytest.param(1_000, True, marks=pytest.mark.faults),
    ],
)
def test_none_lost_and_none_back(
    count: int,
    engine: bool,
    registry: Registry,
    encodable_work: Path,
    encodable_rerun: Path,
    tmp_path: Path,
    start_server: Start,
    start_engine: Start,
) -> None:
    workers = Workers(registry, tmp_path, start_server, start_engine if engine else None)
    workers.start()
    url = workers.urls[0]
    assert set(send(url, "PUT", [(f"new-{n}", item(n)) for n in range(2 * count)])) == {201}
    expired = [(f"new-{n}", item(n) | {"available_until": 1}) for n in range(1, 2 * count, 4)]
    deleted = [(f"new-{n}", None) for n in range(3, 2 * count, 4)]
    assert set(send(url, "PUT", expired)) == {200}
    assert set(send(url, "DELETE", deleted)) == {200}
    kept = {f"new-{n}" for n in range(0, 2 * count, 2)}
    assert len(kept) == count == len(expired) + len(deleted)
    for each in workers.urls:
        assert shown(each, 2 * count) == kept
    older = publish_run(
        registry, run=encodable_rerun, work=encodable_work, created=datetime(2026, 3, 1, tzinfo=UTC), catalog_sequence=0
    )
    assert older.version == registry.current()
    workers.kill()
    workers.start()
    workers.wait_for(older.version)
    for each in workers.urls:
        assert shown(each, 2 * count) == kept
        assert httpx.get(f"{each}/readyz").json()["catalog_version"] == f"{older.version}.{3 * count}"
    assert set(send(workers.urls[-1], "PUT", [("new-0", item(0))])) == {200}
    assert set(send(workers.urls[0], "DELETE", [("new-3", None)])) == {404}
