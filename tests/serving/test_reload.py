from __future__ import annotations

import asyncio
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from recsys.bundle import Registry, publish_run
from recsys.bundle.gate import Gate
from recsys.bundle.promotion import promote
from serving.app import create_app
from serving.engine import InProcessEngine
from serving.metrics import EngineMetrics
from serving.reload import BundleWatcher
from serving.settings import Settings


@pytest.fixture
def two_versions(
    served_registry: Registry, served_work: Path, tiny_work: Path, tiny_run: Path, tmp_path: Path
) -> Registry:
    """A registry with an older version (of `served_work`) that is current and a newer one (of `tiny_work`)."""
    root = tmp_path / "registry"
    shutil.copytree(served_registry.root, root)
    registry = Registry(root)
    publish_run(registry, run=tiny_run, work=tiny_work, created=datetime(2026, 2, 1, tzinfo=UTC), make_current=False)
    return registry


def wait_for_version(client: TestClient, version: str) -> None:
    deadline = time.monotonic() + 10
    while client.get("/readyz").json()["bundle_version"] != version and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.get("/readyz").json()["bundle_version"] == version


def test_a_server_follows_current(two_versions: Registry, server_settings: Settings) -> None:
    settings = server_settings.model_copy(
        update={"registry": two_versions.root, "bundle_poll": timedelta(milliseconds=10)}
    )
    old, new = two_versions.versions()
    with TestClient(create_app(settings)) as client:
        wait_for_version(client, old)
        two_versions.set_current(new)
        wait_for_version(client, new)
        answer = client.post("/v1/recommend", json={"n": 500, "history": ["item-11"]}).json()
        assert (answer["bundle_version"], answer["catalog_version"]) == (new, f"{new}.0")
        assert len(answer["items"]) == 47  # in the newer catalog nothing is gone
        text = client.get("/metrics").text
        assert f'windfire_bundle{{version="{new}"}} 1.0' in text
        assert f'version="{old}"' not in text


@pytest.fixture
def engine() -> InProcessEngine:
    return InProcessEngine(EngineMetrics(), queue_limit=4, batch_limit=3, torch_threads=1)


def test_a_refused_bundle_leaves_the_one_before(
    two_versions: Registry, server_settings: Settings, engine: InProcessEngine
) -> None:
    hour = timedelta(hours=1)
    settings = server_settings.model_copy(update={"registry": two_versions.root, "bundle_poll": hour})
    metrics = EngineMetrics()
    watcher = BundleWatcher(settings, engine, metrics)
    old, new = two_versions.versions()
    asyncio.run(watcher.look())
    codes = two_versions.path(new) / "codes.npy"
    good = codes.read_bytes()
    codes.write_bytes(b"spoiled")
    two_versions.set_current(new)
    asyncio.run(watcher.look())
    assert engine.versions is not None
    assert engine.versions.bundle == old
    assert "codes.npy" in (watcher.refused or "")
    two_versions.set_current(old)
    asyncio.run(watcher.look())
    assert watcher.refused is None
    loaded = metrics.registry.get_sample_value("windfire_bundle_reloads_total", {"result": "loaded"})
    assert loaded == 1, "what runs is not loaded again"
    codes.write_bytes(good)
    two_versions.set_current(new)
    asyncio.run(watcher.look())
    assert engine.versions.bundle == new, "set again it is tried at once"
    engine.close()


@pytest.mark.parametrize(("poll", "again"), [(timedelta(microseconds=1), True), (timedelta(hours=1), False)])
def test_a_refused_bundle_is_tried_again_after_a_pause(
    two_versions: Registry, server_settings: Settings, engine: InProcessEngine, poll: timedelta, again: bool
) -> None:
    settings = server_settings.model_copy(update={"registry": two_versions.root, "bundle_poll": poll})
    watcher = BundleWatcher(settings, engine, EngineMetrics())
    codes = two_versions.path(two_versions.versions()[0]) / "codes.npy"
    good = codes.read_bytes()
    codes.unlink()
    asyncio.run(watcher.look())
    assert "codes.npy" in (watcher.refused or "")
    codes.write_bytes(good)
    asyncio.run(watcher.look())
    assert (engine.versions is not None, watcher.refused is None) == (again, again)
    engine.close()


def test_a_first_bundle_is_picked_up_and_a_bad_pointer_named(
    two_versions: Registry, server_settings: Settings, engine: InProcessEngine
) -> None:
    pointer = two_versions.root / "CURRENT"
    good = pointer.read_text()
    pointer.unlink()
    watcher = BundleWatcher(server_settings.model_copy(update={"registry": two_versions.root}), engine, EngineMetrics())
    asyncio.run(watcher.look())
    assert (engine.versions, watcher.refused) == (None, None)
    pointer.write_text("../elsewhere")
    asyncio.run(watcher.look())
    assert "../elsewhere" in (watcher.refused or "")
    pointer.write_text(good)
    asyncio.run(watcher.look())
    assert engine.versions is not None
    assert (engine.versions.bundle, watcher.refused) == (good.strip(), None)
    engine.close()


@pytest.mark.parametrize(("name", "answers"), [("codes.npy", 0), ("../../CURRENT", 1)])
def test_a_process_that_starts_over_something_spoiled_answers_with_what_was_served(
    two_versions: Registry, server_settings: Settings, engine: InProcessEngine, name: str, answers: int
) -> None:
    old, new = two_versions.versions()
    for version in (old, new):
        promote(two_versions, version, Gate(), reason="a drill")
    spoiled = two_versions.path(new) / name
    good = spoiled.read_bytes()
    spoiled.write_text("../elsewhere")
    often = {"registry": two_versions.root, "bundle_poll": timedelta(microseconds=1)}
    watcher = BundleWatcher(server_settings.model_copy(update=often), engine, EngineMetrics())
    asyncio.run(watcher.look())
    assert engine.versions is not None
    assert engine.versions.bundle == two_versions.versions()[answers]
    assert watcher.refused is not None
    spoiled.write_bytes(good)
    asyncio.run(watcher.look())
    assert engine.versions.bundle == new
    engine.close()


def test_a_decoder_that_the_bundle_does_not_have(
    two_versions: Registry, server_settings: Settings, engine: InProcessEngine
) -> None:
    settings = server_settings.model_copy(update={"registry": two_versions.root, "decoder": "oracle"})
    watcher = BundleWatcher(settings, engine, EngineMetrics())
    asyncio.run(watcher.look())
    assert engine.versions is None
    assert "oracle" in (watcher.refused or "")
    engine.close()
