"""PUT and DELETE over HTTP, with the engine in this process and in one of its own."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from recsys.bundle import Registry, publish_run
from recsys.catalog.changes import Delete, Upsert
from recsys.catalog.log import CatalogLog
from serving.app import create_app
from serving.engine import EngineRequest, InProcessEngine
from serving.item_changes import ItemChange
from serving.metrics import EngineMetrics
from serving.reload import BundleWatcher
from serving.settings import Settings

BODY: dict[str, Any] = {
    "title": "Crimson nail lacquer",
    "category_path": ["All", "Nails"],
    "brand": "Acme",
    "price_micros": 7_000_000,
    "attributes": {"colour": "red"},
}


@pytest.fixture
def no_engine() -> None:
    """In the place of an engine process."""


@pytest.fixture(scope="module")
def engine_of_its_own(encodable_registry: Registry, start_engine: Callable[..., Any], tmp_path_factory: Any) -> Any:
    log = tmp_path_factory.mktemp("engine_log") / "log"
    return start_engine(registry=encodable_registry.root, WINDFIRE_CATALOG_LOG=str(log))


@pytest.fixture(params=["in process", "over a socket"])
def client(request: pytest.FixtureRequest, encodable_registry: Registry, tmp_path: Path) -> Iterator[TestClient]:
    fixture = {"in process": "no_engine", "over a socket": "engine_of_its_own"}[request.param]
    engine = request.getfixturevalue(fixture)
    settings = Settings(
        registry=encodable_registry.root,
        state=tmp_path / "state",
        catalog_log=tmp_path / "log",
        beam=20,
        deadline=timedelta(minutes=1),  # on a busy machine, too, the engine answers
        engine_socket=engine and engine.socket,
    )
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture
def here(encodable_registry: Registry, tmp_path: Path) -> Iterator[TestClient]:
    """Decoded in this process only."""
    settings = Settings(registry=encodable_registry.root, state=tmp_path / "state", catalog_log=tmp_path / "log")
    with TestClient(create_app(settings)) as client:
        yield client


def shown(client: TestClient, **body: Any) -> list[str]:
    answer = client.post("/v1/recommend", json={"history": ["item-11"], "n": 500} | body)
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def sequence(answer: Any) -> int:
    return int(answer.json()["catalog_version"].rpartition(".")[2])


def test_an_item_comes_changes_goes_and_returns(client: TestClient) -> None:
    created = client.put("/v1/items/new-1", json=BODY)
    assert (created.status_code, created.json()["result"], created.json()["item_id"]) == (201, "created", "new-1")
    assert created.json()["request_id"] == created.headers["x-request-id"]
    assert "new-1" in shown(client)
    assert "new-1" in shown(client, history=[], filters={"brands": ["Acme"]})
    assert client.post("/v1/search", json={"text": "crimson lacquer", "n": 1}).json()["items"][0]["item_id"] == "new-1"
    assert client.post("/v1/similar", json={"item_id": "new-1", "n": 3}).json()["counts"]["returned"] == 3
    replaced = client.put("/v1/items/new-1", json=BODY | {"brand": "Other"})
    assert (replaced.status_code, replaced.json()["result"], sequence(replaced)) == (
        200,
        "replaced",
        sequence(created) + 1,
    )
    assert shown(client, filters={"brands": ["Acme"]}) == []
    gone = client.delete("/v1/items/new-1")
    assert (gone.status_code, gone.json()["result"]) == (200, "deleted")
    assert "new-1" not in shown(client)
    assert client.post("/v1/similar", json={"item_id": "new-1"}).json()["code"] == "unknown_item"
    assert client.delete("/v1/items/new-1").status_code == 404
    back = client.put("/v1/items/new-1", json=BODY, headers={"If-None-Match": "*"})
    assert (back.status_code, back.json()["result"]) == (201, "created")
    assert "new-1" in shown(client)
    answer = client.post("/v1/recommend", json={"history": ["new-1"]}).json()
    assert (answer["decoder"], answer["counts"]["history_unknown"]) == ("nezha", 0)
    assert answer["catalog_version"] == back.json()["catalog_version"]
    assert client.delete("/v1/items/new-1").status_code == 200


def test_out_of_stock_and_out_of_time(client: TestClient) -> None:
    for field in ({"stock": 0}, {"available_until": 1}, {"available_from": 10**17}):
        assert client.put("/v1/items/item-20", json=BODY | field).json()["result"] == "replaced"
        assert "item-20" not in shown(client)
        assert "item-20" not in shown(client, history=[])
        assert client.put("/v1/items/item-20", json=BODY | {"stock": 1}).status_code == 200
        assert "item-20" in shown(client)


def problem(answer: Any) -> tuple[int, str, str | None]:
    return answer.status_code, answer.json()["code"], answer.json().get("field")


def test_documented_errors(client: TestClient) -> None:
    assert problem(client.delete("/v1/items/nobody")) == (404, "unknown_item", "path.item_id")
    duplicate = client.put("/v1/items/item-11", json=BODY, headers={"If-None-Match": "*"})
    assert problem(duplicate) == (409, "item_exists", "path.item_id")
    assert problem(client.put("/v1/items/new-2", json={})) == (422, "malformed", "body.text")
    assert problem(client.put("/v1/items/new-2", json={"title": " ", "text": "\n?"})) == (422, "malformed", "body.text")
    assert "new-2" not in shown(client)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("new-2", '{"title": "x", "price_micros": NaN}', "body.price_micros"),
        ("new-2", '{"title": "x", "price_micros": Infinity}', "body.price_micros"),
        ("new-2", '{"title": "x", "price_micros": 1e400}', "body.price_micros"),
        ("new-2", '{"title": "x", "price_micros": 1.5}', "body.price_micros"),
        ("new-2", '{"title": "x", "price_micros": -1}', "body.price_micros"),
        ("new-2", '{"title": "x", "stock": NaN}', "body.stock"),
        ("new-2", '{"title": "x", "available_until": -Infinity}', "body.available_until"),
        ("new-2", '{"title": "x", "unknown": 1}', "body.unknown"),
        ("new-2", '{"title": ["x"]}', "body.title"),
        ("new-2", '{"title": "\\ud800"}', "body.title"),
        ("new-2", '{"title": "x", "attributes": {"a": 1}}', "body.attributes.a"),
        ("new-2", f'{{"title": "{"x" * 1_001}"}}', "body.title"),
        ("new-2", f'{{"text": "{"x" * 20_001}"}}', "body.text"),
        ("new-2", f'{{"title": "x", "brand": "{"x" * 257}"}}', "body.brand"),
        ("new-2", '{"title": "x", "category_path": [' + '"x",' * 16 + '"x"]}', "body.category_path"),
        ("%C3%A9" * 129, '{"title": "x"}', "path.item_id"),
        ("x" * 257, '{"title": "x"}', "path.item_id"),
        ("a%00b", '{"title": "x"}', "path.item_id"),
        ("new-2", "[]", "body"),
        ("new-2", "{", None),
    ],
)
def test_malformed_items(here: TestClient, path: str, body: str, field: str | None, tmp_path: Path) -> None:
    answer = here.put(f"/v1/items/{path}", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "malformed"), answer.text
    assert field in (None, answer.json()["field"])
    assert CatalogLog(tmp_path / "log").end == 0


def test_all_methods_of_an_item_are_named(here: TestClient) -> None:
    answer = here.post("/v1/items/new-2", json=BODY)
    assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, PUT")


def test_another_condition_than_any_is_refused(here: TestClient) -> None:
    answer = here.put("/v1/items/new-2", json=BODY, headers={"If-None-Match": '"etag"'})
    assert answer.status_code == 422


def test_a_bundle_that_cannot_encode(server_settings: Settings) -> None:
    with TestClient(create_app(server_settings)) as client:
        refused = client.put("/v1/items/new-1", json=BODY)
        assert problem(refused) == (409, "no_item_encoder", None)
        message = refused.json()["message"]
        assert ("windfire offline run" in message, "/" in message.replace("docs/", "")) == (True, False)
        assert client.put("/v1/items/item-20", json=BODY).status_code == 200


def test_a_server_without_search_cannot_encode(encodable_registry: Registry, tmp_path: Path) -> None:
    settings = Settings(
        registry=encodable_registry.root, state=tmp_path / "state", catalog_log=tmp_path / "log", search=False
    )
    with TestClient(create_app(settings)) as client:
        assert problem(client.put("/v1/items/new-1", json=BODY)) == (409, "no_item_encoder", None)


def test_a_full_disk_refuses_and_nothing_is_half_done(here: TestClient, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("in the place of the directory")
    assert problem(here.put("/v1/items/new-1", json=BODY)) == (503, "unavailable", None)
    assert "new-1" not in shown(here)
    (tmp_path / "log").unlink()
    assert here.put("/v1/items/new-1", json=BODY).status_code == 201
    assert "new-1" in shown(here)


def test_a_log_that_is_older_than_the_snapshot_is_refused(
    encodable_registry: Registry, encodable_work: Path, encodable_run: Path, tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "registry")
    created = datetime(2026, 1, 1, tzinfo=UTC)
    publish_run(registry, run=encodable_run, work=encodable_work, created=created, catalog_sequence=5)
    settings = Settings(registry=registry.root, state=tmp_path / "state")
    with TestClient(create_app(settings)) as client:
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert "ends at 0" in ready.json()["reasons"][0]
        assert problem(client.put("/v1/items/new-1", json=BODY)) == (503, "unavailable", None)


def wait_for(client: TestClient, version: str) -> None:
    deadline = time.monotonic() + 30
    while client.get("/readyz").json()["bundle_version"] != version and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.get("/readyz").json()["bundle_version"] == version


def test_bundles_come_and_go_and_changes_stay(
    encodable_registry: Registry, encodable_work: Path, encodable_rerun: Path, tmp_path: Path
) -> None:
    """The log lies in the registry here; the snapshots of both bundles are older than its first record."""
    shutil.copytree(encodable_registry.root, tmp_path / "registry")
    registry = Registry(tmp_path / "registry")
    poll = timedelta(milliseconds=10)
    settings = Settings(registry=registry.root, state=tmp_path / "state", beam=20, bundle_poll=poll)
    with TestClient(create_app(settings)) as client:
        first = registry.current() or ""
        assert client.put("/v1/items/new-1", json=BODY).status_code == 201
        assert client.delete("/v1/items/item-20").status_code == 200
        before = set(shown(client))
        assert ("new-1" in before, "item-20" in before) == (True, False)
        created = datetime(2026, 4, 1, tzinfo=UTC)
        second = publish_run(registry, run=encodable_rerun, work=encodable_work, created=created).version
        wait_for(client, second)
        assert set(shown(client)) == before
        assert client.delete("/v1/items/new-1").status_code == 200
        assert client.put("/v1/items/new-2", json=BODY).json()["catalog_version"] == f"{second}.4"
        registry.rollback()
        wait_for(client, first)
        assert set(shown(client)) == (before - {"new-1"}) | {"new-2"}
        assert client.get("/readyz").json()["catalog_version"] == f"{first}.4"
    assert CatalogLog(registry.root / "catalog_log").end == 4


def test_whoever_was_answered_sees_the_change_whatever_happens_beside(
    encodable_registry: Registry, tmp_path: Path
) -> None:
    """Four writers, each of which asks behind every change, and one more engine on the same log."""
    settings = Settings(
        registry=encodable_registry.root, state=tmp_path / "state", catalog_log=tmp_path / "log", beam=20
    )

    async def worker(engine: InProcessEngine, other: InProcessEngine, watcher: BundleWatcher, name: str) -> None:
        for n in range(12):
            item = f"{name}-{n}"
            await watcher.change(ItemChange(change=Upsert(item_id=item, time=0, title=f"Crimson {n}")))
            request = EngineRequest(history=["item-11", item], n=500, time=1, exclude_seen=False)
            answers = [await each.recommend(request) for each in (engine, other)]
            assert [item in {row.item_id for row in answer.items} for answer in answers] == [True, True]
            await watcher.change(ItemChange(change=Delete(item_id=item, time=0)))
            answers = [await each.recommend(request) for each in (engine, other)]
            assert [item in {row.item_id for row in answer.items} for answer in answers] == [False, False]
            assert [answer.ineligible for answer in answers] == [0, 0]

    async def run() -> None:
        engines = [InProcessEngine(EngineMetrics(), queue_limit=64, batch_limit=8, torch_threads=1) for _ in range(2)]
        watchers = [BundleWatcher(settings, engine, EngineMetrics()) for engine in engines]
        for watcher in watchers:
            await watcher.look()
        await asyncio.gather(*(worker(engines[0], engines[1], watchers[n % 2], f"w{n}") for n in range(4)))
        for watcher, engine in zip(watchers, engines, strict=True):
            watcher.close()
            engine.close()

    asyncio.run(run())
    assert CatalogLog(tmp_path / "log").end == 96


def test_what_is_deleted_between_two_pages_does_not_show(client: TestClient) -> None:
    names = [f"paged-{n}" for n in range(4)]
    for name in names:
        assert client.put(f"/v1/items/{name}", json=BODY).status_code in {200, 201}
    body = {"history": ["item-11"], "n": 2, "filters": {"allow": [*names, "item-12"]}}
    first = client.post("/v1/recommend", json=body).json()
    shown = {item["item_id"] for item in first["items"]}
    gone, kept = min(set(names) - shown), max({*names, "item-12"} - shown)
    assert client.delete(f"/v1/items/{gone}").status_code == 200
    assert client.put("/v1/items/paged-later", json=BODY).status_code in {200, 201}
    body["filters"] = {"allow": [*names, "item-12", "paged-later"]}
    rest = client.post("/v1/recommend", json=body | {"n": 9, "cursor": first["next_cursor"]}).json()
    following = [item["item_id"] for item in rest["items"]]
    assert gone not in following
    assert {kept, "paged-later"} <= set(following)
    assert sorted(following) == sorted({*names, "item-12", "paged-later"} - shown - {gone})
    assert (rest["request_id"], rest["next_cursor"]) == (first["request_id"], None)
    client.delete("/v1/items/paged-later")


def test_caps_count_new_items_and_new_names(client: TestClient) -> None:
    for n in range(5):
        body = BODY | {"brand": f"Paged {n % 2}", "category_path": ["All", "Nails", f"Kind {n % 3}"]}
        assert client.put(f"/v1/items/capped-{n}", json=body).status_code in {200, 201}
    assert client.put("/v1/items/item-20", json=BODY | {"brand": "Paged 0"}).status_code == 200
    only = {"allow": ["item-20", *(f"capped-{n}" for n in range(5))]}

    def found(**rest: Any) -> list[str]:
        answer = client.post("/v1/recommend", json={"history": ["item-11"], "filters": only, **rest}).json()
        return [item["item_id"] for item in answer["items"]]

    assert len(found()) == 6
    paged = {"item-20": 0, **{f"capped-{n}": n % 2 for n in range(5)}}
    assert sorted(paged[item] for item in found(caps={"brand": 1})) == [0, 1]
    assert len(found(caps={"category": 1})) == 4
    assert len(found(caps={"category": 1, "category_depth": 2})) == 1
    assert sorted(paged[item] for item in found(caps={"brand": 1}, diversity=1.0)) == [0, 1]
    assert set(found(diversity=0.5)) == set(paged)
