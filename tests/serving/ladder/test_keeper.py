from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from recsys.bundle import Registry, publish_run
from recsys.bundle.gate import Gate
from recsys.bundle.promotion import promote
from recsys.catalog.changes import Delete
from recsys.catalog.log import CatalogLog
from serving.ladder.fallback import Fallback
from serving.ladder.keeper import FallbackKeeper
from serving.settings import Settings


def test_without_an_engine_a_front_end_over_a_spoiled_bundle_opens_the_one_before(
    served_registry: Registry, tiny_run: Path, tiny_work: Path, server_settings: Settings, tmp_path: Path
) -> None:
    root = tmp_path / "registry"
    shutil.copytree(served_registry.root, root)
    registry = Registry(root)
    old = registry.current()
    created = datetime(2026, 2, 1, tzinfo=UTC)
    new = publish_run(registry, run=tiny_run, work=tiny_work, created=created, make_current=False).version
    fallback = Fallback(minimum=0.01)
    away: Any = SimpleNamespace(versions=None, trouble="engine_away: nobody listens")
    keeper = FallbackKeeper(server_settings.model_copy(update={"registry": root}), away, away, fallback)
    spoiled = registry.path(new) / "manifest.json"
    good = spoiled.read_bytes()
    for version in (str(old), new):
        promote(registry, version, Gate(), reason="a drill")
    spoiled.write_text("{}")
    asyncio.run(keeper.look())
    assert fallback.loaded is not None
    assert fallback.loaded.version == old
    spoiled.write_bytes(good)
    keeper = FallbackKeeper(server_settings.model_copy(update={"registry": root}), away, away, fallback)
    asyncio.run(keeper.look())
    assert fallback.loaded.version == new
    fallback.close()


def test_each_look_takes_tables_and_memory_to_the_end_of_the_log(server_settings: Settings, tmp_path: Path) -> None:
    log = CatalogLog(tmp_path / "log")
    fallback = Fallback(minimum=0.01)
    away: Any = SimpleNamespace(versions=None, trouble="engine_away: nobody listens")
    keeper = FallbackKeeper(server_settings.model_copy(update={"catalog_log": log.directory}), away, away, fallback)

    async def looks() -> list[tuple[int, int]]:
        reached = []
        for _ in range(3):
            await keeper.look()
            assert fallback.loaded is not None
            reached.append((fallback.loaded.recommender.items.sequence, fallback.loaded.memory.sequence))
            with log.writing() as writer:
                writer.append([Delete(item_id="item-10", time=1)])
        return reached

    assert asyncio.run(looks()) == [(0, 0), (1, 1), (2, 2)]
    fallback.close()
