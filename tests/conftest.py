"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from recsys.records import ITEMS
from recsys.storage import write_json_atomically

if TYPE_CHECKING:
    from xdist.remote import Producer

    from benchmarks.example_generator import Example
    from recsys.bundle import Registry

# Before torch is loaded: the tests' processes share the cores, and threads that wait by spinning would starve them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no failure.
settings.register_profile("windfire", deadline=None)
settings.load_profile("windfire")

ROOT = Path(__file__).resolve().parent.parent
TINY_ITEMS, TINY_USERS = 48, 30
# What takes longest begins, so that no worker is left with it at the end; of the rest, no file takes 10 s.
OFFLINE = "tests/offline"
LONGEST = (
    OFFLINE,
    "tests/recsys/decoding/test_against_enumeration.py",
    "tests/training/test_trainer.py",
    "tests/training/rl/test_processes.py",
    "tests/training/test_killed_training.py",
    "tests/training/rere/test_rere_asynchronous.py",
    "tests/serving/remote/test_engine_process.py",
    "tests/serving/test_process.py",
    "tests/serving/workers/test_workers.py",
    "tests/benchmarks/test_rere_speed.py",
)


def _share(nodeid: str) -> str:
    """What one worker runs as a whole: a file, or all that needs Spark, because a second Java process warms up anew."""
    return OFFLINE if nodeid.startswith(f"{OFFLINE}/") else nodeid.partition("::")[0]


class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """`--dist loadfile` with the tests of Spark in one place."""

    def _split_scope(self, nodeid: str) -> str:
        return _share(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """The scheduler of the process that hands out the tests."""
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first; see `make test`."""
    places = {share: place for place, share in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(_share(item.nodeid), len(places)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets; skips where it is absent."""
    folder = Path(os.environ.get("WINDFIRE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"public data sets are absent: set WINDFIRE_DATA (looked in {folder})")
    return folder


@pytest.fixture(scope="session")
def tiny_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory as `windfire offline run` leaves it: 48 items, 30 users, made without Spark. Read only."""
    work = tmp_path_factory.mktemp("tiny") / "work"
    rng = np.random.default_rng(7)
    indices = np.arange(TINY_ITEMS, dtype=np.int32)
    lengths = rng.integers(4, 12, TINY_USERS)
    sequences = [rng.permutation(TINY_ITEMS)[:length].tolist() for length in lengths]
    events = [item for items in sequences for item in items[:-2]]
    counts = np.bincount(events, minlength=TINY_ITEMS)
    rows = [
        {
            "item_id": f"item-{n:02d}",
            "title": f"Title {n}",
            "category_path": ["All", f"Group {n % 3}"],
            "brand": f"Brand {n % 4}",
            "price_micros": n * 1_000_000,
        }
        for n in range(TINY_ITEMS)
    ]
    items = pa.Table.from_pylist(rows, schema=ITEMS)
    items = items.add_column(0, "train_count", pa.array(counts)).add_column(0, "item_index", pa.array(indices))
    users = [f"user-{n:02d}" for n in range(TINY_USERS)]
    pairs = [(item, (item + step) % TINY_ITEMS, step - 1) for item in range(TINY_ITEMS) for step in (1, 2, 3)]
    jobs: dict[str, dict[str, Any]] = {
        "sequences": {"user_id": users, "items": sequences, "times": [list(range(n)) for n in lengths]},
        "splits": {
            "user_id": users,
            "train_end": pa.array(lengths - 2, pa.int32()),
            "valid_index": pa.array(lengths - 2, pa.int32()),
            "test_index": pa.array(lengths - 1, pa.int32()),
        },
        "text_embeddings": {"item_index": indices, "vector": list(rng.normal(size=(TINY_ITEMS, 6)).astype("f4"))},
        "collaborative": {"item_index": indices, "vector": list(rng.normal(size=(TINY_ITEMS, 4)).astype("f4"))},
        "semantic_ids": {
            "item_index": indices,
            "codes": [[n % 4, n // 4 % 4, n // 16] for n in range(TINY_ITEMS)],
        },
        "popularity": {
            "scene": [""] * TINY_ITEMS + ["home"] * 10,
            "item_index": np.concatenate([indices, indices[:10]]),
            "count": np.concatenate([counts, np.arange(10)]),
        },
        "item_to_item": {
            "item_index": pa.array([item for item, _, _ in pairs], pa.int32()),
            "neighbour": pa.array([other for _, other, _ in pairs], pa.int32()),
            "rank": pa.array([rank for _, _, rank in pairs], pa.int32()),
            "score": [1.0 / (1 + rank) for _, _, rank in pairs],
        },
    }
    for name, table in {"items": items, **{name: pa.table(columns) for name, columns in jobs.items()}}.items():
        (work / name / "data").mkdir(parents=True)
        pq.write_table(table, work / name / "data" / "part-0.parquet")
    np.save(work / "semantic_ids" / "codebook_1.npy", np.zeros((4, 10), dtype=np.float32))
    write_json_atomically(
        work / "semantic_ids" / "tokenizer.json", {"tokenizer_version": "tok-1", "codebook_sizes": [4, 4, 3]}
    )
    write_json_atomically(work / "clean" / "manifest.json", {"counts": {"read": 300}})
    return work


@pytest.fixture(scope="session")
def tiny_run(tiny_work: Path) -> Path:
    """A training run on `tiny_work` as the trainer leaves it, with random weights. Read only."""
    import torch
    from safetensors.torch import save_file

    from recsys.models import ItemFeatures, RecommenderConfig, build_model

    config = RecommenderConfig(
        (4, 4, 3), TINY_ITEMS, 6, 4, d_model=16, layers=1, heads=2, max_history=10, item_rows=True
    )
    features = ItemFeatures(
        np.zeros((TINY_ITEMS, 3), np.int32),
        np.zeros((TINY_ITEMS, 6), np.float32),
        np.zeros((TINY_ITEMS, 4), np.float32),
        np.ones(TINY_ITEMS, np.int64),
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        weights = build_model(config, features).state_dict()
        weights["head.item_output.weight"].normal_(std=0.02)  # at first they are 0
    run = tiny_work.parent / "run"
    (run / "model").mkdir(parents=True)
    save_file(weights, run / "model" / "weights.safetensors")
    write_json_atomically(run / "model" / "config.json", config.to_dict())
    manifest = {
        "format": "windfire.run/1",
        "settings": {"steps": 1},
        "seed": 7,
        "tokenizer_version": "tok-1",
        "items": "none",
        "fingerprint": "none",
        "metrics": {"valid.ndcg@10": 0.1},
        "steps": 1,
        "seconds": 0.1,
    }
    write_json_atomically(run / "manifest.json", manifest)
    return run


@pytest.fixture
def tiny_registry(tiny_work: Path, tiny_run: Path, tmp_path: Path) -> Registry:
    """A registry of one's own with `tiny_run` published and current."""
    from recsys.bundle import Registry, publish_run

    registry = Registry(tmp_path / "registry")
    publish_run(registry, run=tiny_run, work=tiny_work, created=datetime(2026, 1, 1, tzinfo=UTC))
    return registry


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """A small language model that writes semantic IDs, in MiniOneRec's form. Read only."""
    from benchmarks.example_generator import make_example

    return make_example(tmp_path_factory.mktemp("foreign"), steps=12, users=80)


@pytest.fixture(scope="session")
def foreign_run(foreign: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`foreign`, imported: a run directory with its work directory in `work`. Read only."""
    from recsys.imported.importer import import_model

    out = tmp_path_factory.mktemp("foreign_run") / "run"
    import_model("minionerec", foreign.model, sids=foreign.sids, work=foreign.work, out=out)
    return out
