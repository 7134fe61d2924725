"""Synthetic bundles, published for real: random weights and vectors, so that only times and rules mean something."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from recsys.bundle import Registry, publish_run
from recsys.datasets.prepared import PreparedData
from recsys.models import ItemFeatures, RecommenderConfig, build_model
from recsys.records import ITEMS
from recsys.storage import read_json, write_json_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from benchmarks.serving_settings import BundleShape
    from recsys.bundle import Bundle

_COLLABORATIVE: Final = 16
_LEVELS: Final = 3
_STEPS: Final = (1, 2, 3, 5, 8, 13)  # from an item to its neighbours, over the indices
_USERS: Final = 8  # of the work directory; histories are drawn elsewhere
_FIRST: Final = datetime(2026, 1, 1, tzinfo=UTC)


def item_names(count: int, *, own: str = "") -> list[str]:
    """Ids of a catalogue in byte order; with `own`, every second one holds that word and is of no other catalogue."""
    return sorted(f"item-{own}-{n:08d}" if own and n % 2 else f"item-{n:08d}" for n in range(count))


def synthetic_work(folder: Path, names: Sequence[str], shape: BundleShape, seed: int) -> Path:
    """Write a work directory as `windfire offline run` leaves it.

    Args:
        folder: absent or empty.
        names: item ids in byte order.
        shape: of vectors and codebooks.
        seed: of everything drawn.
    """
    rng, count = np.random.default_rng(seed), len(names)
    indices = np.arange(count, dtype=np.int32)
    counts = np.minimum(rng.zipf(1.3, count), 100_000).astype(np.int64)
    tables = {
        "items": _items(names, counts),
        **_users(rng, count),
        "text_embeddings": _indexed(indices, "vector", rng.normal(size=(count, shape.text)).astype(np.float32)),
        "collaborative": _indexed(indices, "vector", rng.normal(size=(count, _COLLABORATIVE)).astype(np.float32)),
        "semantic_ids": _indexed(indices, "codes", _codes(rng, count, shape.codebook)),
        "popularity": pa.table({"scene": [""] * count, "item_index": indices, "count": counts}),
        "item_to_item": _neighbours(indices),
    }
    for name, table in tables.items():
        (folder / name / "data").mkdir(parents=True)
        pq.write_table(table, folder / name / "data" / "part-0.parquet")
    width = shape.text + _COLLABORATIVE
    for level in range(1, _LEVELS + 1):
        centres = rng.normal(size=(shape.codebook, width)).astype(np.float32)
        np.save(folder / "semantic_ids" / f"codebook_{level}.npy", centres)
    tokenizer = {"tokenizer_version": f"synthetic-{seed}", "codebook_sizes": [shape.codebook] * _LEVELS}
    write_json_atomically(folder / "semantic_ids" / "tokenizer.json", tokenizer)
    write_json_atomically(folder / "clean" / "manifest.json", {"counts": {"read": 0}})
    return folder


def synthetic_run(folder: Path, work: Path, shape: BundleShape, seed: int) -> Path:
    """Write a training run with random weights for a work directory."""
    data = PreparedData.load(work)
    config = RecommenderConfig(
        data.codebook_sizes, data.items.num_rows, shape.text, _COLLABORATIVE,
        use_item_id=False, d_model=shape.d_model, layers=shape.layers, heads=shape.heads,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        features = ItemFeatures(data.codes, data.text, data.collaborative, data.train_counts)
        weights = build_model(config, features).state_dict()
    (folder / "model").mkdir(parents=True)
    save_file(weights, folder / "model" / "weights.safetensors")
    write_json_atomically(folder / "model" / "config.json", config.to_dict())
    tokenizer: dict[str, Any] = read_json(work / "semantic_ids" / "tokenizer.json")
    manifest = {
        "format": "windfire.run/1", "settings": {"steps": 0}, "seed": seed, "items": "none", "fingerprint": "none",
        "tokenizer_version": tokenizer["tokenizer_version"], "metrics": {}, "steps": 0, "seconds": 0.0,
    }  # fmt: skip
    write_json_atomically(folder / "manifest.json", manifest)
    return folder


def publish_synthetic(root: Path, shape: BundleShape, seed: int, *, owns: Sequence[str] = ("",)) -> Registry:
    """Publish one bundle per word of `owns` (see `item_names`); the first is served. A finished one is kept.

    The items that several have in common have other vectors and semantic IDs in each.
    """
    registry = Registry(root)
    if (root / "whole").is_file():
        registry.set_current(registry.versions()[0])
        return registry
    shutil.rmtree(root, ignore_errors=True)
    for number, own in enumerate(owns):
        drafts = root.with_name(f"{root.name}.draft")
        shutil.rmtree(drafts, ignore_errors=True)
        work = synthetic_work(drafts / "work", item_names(shape.items, own=own), shape, seed + number)
        run = synthetic_run(drafts / "run", work, shape, seed + number)
        publish_run(registry, run=run, work=work, created=_FIRST + timedelta(days=number), make_current=not number)
        shutil.rmtree(drafts)
    (root / "whole").touch()
    return registry


def drawn_histories(bundle: Bundle, users: int, length: int, seed: int) -> dict[str, list[str]]:
    """Histories for a bundle whose users are not known: popular beginnings, then from an item to one seen with it.

    Returns:
        User id to item ids, oldest first; from one item to `length`.
    """
    rng = np.random.default_rng(seed)
    popular, count = bundle.popular(None), bundle.manifest.items
    found: dict[str, list[str]] = {}
    for number in range(users):
        item = int(popular[min(int(rng.exponential(len(popular) / 8)), len(popular) - 1)])
        walk = []
        for _ in range(int(rng.integers(1, length + 1))):
            walk.append(item)
            near, _scores = bundle.item_to_item.of(item)
            follows = len(near) and rng.random() < 0.8
            item = int(near[rng.integers(len(near))]) if follows else int(rng.integers(count))
        found[f"user-{number:06d}"] = bundle.item_ids.ids(np.array(walk))
    return found


def prepared_histories(data: PreparedData, users: int, length: int, seed: int) -> dict[str, list[str]]:
    """Histories of a work directory's own users, the newest items of each that training saw; drawn evenly."""
    sequences, names = data.sequences, data.items["item_id"].to_pylist()
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(sequences.users, min(users, sequences.users), replace=False))
    histories = {str(sequences.user_ids[user]): sequences.training(user)[-length:] for user in chosen.tolist()}
    return {user: [names[item] for item in items] for user, items in histories.items() if len(items)}


def _items(names: Sequence[str], counts: npt.NDArray[np.int64]) -> pa.Table:
    numbers = range(len(names))
    columns: dict[str, Any] = {
        "item_id": pa.array(names),
        "title": pa.array([f"Title of item {n}" for n in numbers]),
        "category_path": pa.array([["All", f"Group {n % 50}"] for n in numbers]),
        "brand": pa.array([f"Brand {n % 200}" for n in numbers]),
        "price_micros": pa.array([(1 + n % 500) * 1_000_000 for n in numbers]),
    }
    arrays = [columns.get(field.name, pa.nulls(len(names), field.type)) for field in ITEMS]
    table = pa.Table.from_arrays([array.cast(f.type) for array, f in zip(arrays, ITEMS, strict=True)], schema=ITEMS)
    table = table.add_column(0, "train_count", pa.array(counts))
    return table.add_column(0, "item_index", pa.array(np.arange(len(names), dtype=np.int32)))


def _users(rng: np.random.Generator, count: int) -> dict[str, pa.Table]:
    users = [f"trained-{n}" for n in range(_USERS)]
    items = [rng.integers(0, count, 5).tolist() for _ in users]
    sequences = pa.table(
        {"user_id": users, "items": pa.array(items, pa.list_(pa.int32())), "times": [[0] * 5] * _USERS}
    )
    ends = {"train_end": 3, "valid_index": 3, "test_index": 4}
    splits = {name: pa.array([value] * _USERS, pa.int32()) for name, value in ends.items()}
    return {"sequences": sequences, "splits": pa.table({"user_id": users, **splits})}


def _indexed(indices: npt.NDArray[np.int32], name: str, rows: npt.NDArray[Any]) -> pa.Table:
    offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1])
    return pa.table({"item_index": indices, name: pa.ListArray.from_arrays(offsets, pa.array(rows.ravel()))})


def _codes(rng: np.random.Generator, count: int, codebook: int) -> npt.NDArray[np.int32]:
    """(I, 3) distinct semantic IDs where there are enough, else in buckets."""
    room = codebook**_LEVELS
    packed = rng.choice(room, count, replace=count > room // 2)
    return np.stack(np.unravel_index(packed, (codebook,) * _LEVELS), axis=1).astype(np.int32)


def _neighbours(indices: npt.NDArray[np.int32]) -> pa.Table:
    count, each = len(indices), len(_STEPS)
    columns = {
        "item_index": np.repeat(indices, each),
        "neighbour": ((indices[:, None] + np.array(_STEPS)) % count).astype(np.int32).ravel(),
        "rank": np.tile(np.arange(each, dtype=np.int32), count),
        "score": np.tile(1.0 / np.arange(1, each + 1), count),
    }
    return pa.table(columns)
