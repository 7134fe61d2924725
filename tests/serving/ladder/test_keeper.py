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
