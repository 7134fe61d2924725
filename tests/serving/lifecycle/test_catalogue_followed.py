"""The catalogue log reaches a worker that nobody asks, and one that had lost sight of it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

from recsys.bundle.pointers import CANARY, Share, write_share
from recsys.catalog.changes import Delete
from recsys.catalog.log import CatalogLog
from serving.engine import EngineAnswer, EngineRequest

NOW = 1_800_000_000_000_000


def delete(directory: Path, *items: str) -> None:
    with CatalogLog(directory).writing() as log:
        log.append([Delete(item_id=item, time=NOW) for item in items])


def everything(**more: Any) -> EngineRequest:
    return EngineRequest(history=[], n=60, time=NOW, **more)


def shown(answer: EngineAnswer) -> set[str]:
    return {item.item_id for item in answer.items}


def test_an_idle_worker_follows(rig: Any, versions: Any) -> None:
    async def scenario() -> None:
        await rig.watcher.look()
        watching = asyncio.create_task(rig.watcher.watch(timedelta(hours=1)))
        await asyncio.to_thread(delete, rig.settings.catalog_log, "item-11", "item-12")
        async with asyncio.timeout(30):
            while rig.engine.versions.catalog != f"{versions.old}.2":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(scenario())


def test_a_log_that_was_away_is_read_on_when_it_is_back(rig: Any, versions: Any, tmp_path: Path) -> None:
    log, away = rig.settings.catalog_log, tmp_path / "away"

    async def scenario() -> list[EngineAnswer]:
        delete(log, "item-11")
        await rig.watcher.look()
        answers = [await rig.engine.recommend(everything())]
        log.rename(away)
        answers.append(await rig.engine.recommend(everything()))
        delete(away, "item-12", "item-13")
        away.rename(log)
        return [*answers, await rig.engine.recommend(everything())]

    before, meanwhile, after = asyncio.run(scenario())
    assert shown(before) == shown(meanwhile) == {f"item-{n:02d}" for n in range(5, 48)} - {"item-11"}
    assert shown(after) == shown(before) - {"item-12", "item-13"}
    assert [each.catalog_version for each in (before, meanwhile, after)] == [
        f"{versions.old}.{sequence}" for sequence in (1, 1, 3)
    ]


def test_what_comes_up_beside_or_after_replays_the_log(rig: Any, versions: Any) -> None:
    write_share(versions.registry, CANARY, Share(versions.good, 1.0, ""))

    async def scenario() -> list[EngineAnswer]:
        await rig.watcher.look()
        answers = [await rig.engine.recommend(everything(unit="ann"))]
        delete(rig.settings.catalog_log, "item-11")
        answers += [await rig.engine.recommend(everything(unit=unit)) for unit in ("ann", None)]
        versions.registry.set_current(versions.worse)
        await rig.watcher.look()
        return [*answers, await rig.engine.recommend(everything())]

    first, canary, control, later = asyncio.run(scenario())
    assert "item-11" in shown(first)
    assert [each.catalog_version for each in (canary, control, later)] == [
        f"{version}.1" for version in (versions.good, versions.old, versions.worse)
    ]
    assert {"item-11"}.isdisjoint(shown(canary) | shown(control) | shown(later))
