"""A registry in which bundles differ in items, in weights and in what they measure."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys.bundle import Registry, publish_run
from recsys.storage import read_json, write_json_atomically
from serving.engine import InProcessEngine
from serving.metrics import EngineMetrics
from serving.reload import BundleWatcher
from serving.settings import Settings


@pytest.fixture(scope="session")
def renamed_work(tiny_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_work` with items named next-00 to next-47. Read only."""
    work = tmp_path_factory.mktemp("renamed") / "work"
    shutil.copytree(tiny_work, work)
    path = work / "items" / "data" / "part-0.parquet"
    table = pq.read_table(path)
    names = pa.array([name.replace("item", "next") for name in table["item_id"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("item_id"), table.schema.field("item_id"), names), path)
    return work


def _rerun(tiny_run: Path, run: Path, *, seed: int, metric: float) -> Path:
    """`tiny_run` with other weights and another measure."""
    shutil.copytree(tiny_run, run)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(run / "model" / "weights.safetensors")
    weights["head.item_output.weight"] = torch.randn(weights["head.item_output.weight"].shape, generator=generator)
    save_file(weights, run / "model" / "weights.safetensors")
    write_json_atomically(
        run / "manifest.json", read_json(run / "manifest.json") | {"metrics": {"valid.ndcg@10": metric}}
    )
    return run


@dataclass(frozen=True)
class Versions:
    """A registry of one's own and the names of its bundles.

    Attributes:
        registry: serves `old`.
        old: items item-00 to item-47, the first of them gone; measures .1.
        good: the same with other weights; measures .099.
        worse: likewise; measures .02.
        renamed: items next-00 to next-47.
    """

    registry: Registry
    old: str
    good: str
    worse: str
    renamed: str


@pytest.fixture(scope="session")
def all_versions(
    served_registry: Registry,
    served_work: Path,
    renamed_work: Path,
    tiny_run: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Versions:
    folder = tmp_path_factory.mktemp("versions")
    root = folder / "registry"
    shutil.copytree(served_registry.root / "versions", root / "versions")
    shutil.copy(served_registry.root / "CURRENT", root)
    registry = Registry(root)

    def published(month: int, run: Path, work: Path) -> str:
        created = datetime(2026, month, 1, tzinfo=UTC)
        return publish_run(registry, run=run, work=work, created=created, make_current=False).version

    good = _rerun(tiny_run, folder / "good", seed=1, metric=0.099)
    worse = _rerun(tiny_run, folder / "worse", seed=2, metric=0.02)
    return Versions(
        registry,
        registry.current() or "",
        published(2, good, served_work),
        published(3, worse, served_work),
        published(4, tiny_run, renamed_work),
    )


@pytest.fixture
def versions(all_versions: Versions, tmp_path: Path) -> Versions:
    """A copy of one's own."""
    root = tmp_path / "registry"
    shutil.copytree(all_versions.registry.root, root)
    names = all_versions
    return Versions(Registry(root), names.old, names.good, names.worse, names.renamed)


class Rig:
    """An engine and its watcher on a registry."""

    def __init__(self, versions: Versions, settings: Settings, **changes: Any) -> None:
        hour = {"registry": versions.registry.root, "bundle_poll": timedelta(hours=1)}
        self.settings = settings.model_copy(update={**hour, **changes})
        self.metrics = EngineMetrics()
        self.engine = InProcessEngine(self.metrics, queue_limit=256, batch_limit=8, torch_threads=1)
        self.watcher = BundleWatcher(self.settings, self.engine, self.metrics)

    def close(self) -> None:
        self.engine.close()
        self.watcher.close()

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def rig(versions: Versions, server_settings: Settings) -> Iterator[Rig]:
    rig = Rig(versions, server_settings)
    yield rig
    rig.close()
