"""A work directory as the offline jobs leave it, written by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.storage import write_json_atomically

if TYPE_CHECKING:
    from pathlib import Path

ITEMS = 24


def _vectors(rng: np.random.Generator, width: int) -> pa.Table:
    rows = list(rng.standard_normal((ITEMS, width)).astype(np.float32))
    index = pa.array(range(ITEMS), pa.int32())
    return pa.table({"item_index": index, "vector": pa.array(rows, pa.list_(pa.float32()))})


def write_prepared(folder: Path) -> None:
    """50 users who walk along a ring of 24 items, leave-one-out."""
    rng = np.random.default_rng(11)
    walks = [((rng.integers(ITEMS) + np.arange(rng.integers(3, 9))) % ITEMS).tolist() for _ in range(50)]
    users = [f"u{user:02}" for user in range(50)]
    lengths = np.asarray([len(walk) for walk in walks])
    counts = np.bincount([item for walk in walks for item in walk[:-2]], minlength=ITEMS)
    index = pa.array(range(ITEMS), pa.int32())
    items, times = pa.array(walks, pa.list_(pa.int32())), [list(range(length)) for length in lengths]
    codes = [[item // 6, item % 6] for item in range(ITEMS)]
    tables = {
        "items": pa.table(
            {
                "item_index": index,
                "item_id": [f"item-{n:02d}" for n in range(len(index))],
                "train_count": counts,
                "category_path": [["All", f"Part {n // 6}"] for n in range(len(index))],
            }
        ),
        "sequences": pa.table({"user_id": users, "items": items, "times": times}),
        "splits": pa.table(
            {
                "user_id": users,
                "train_end": pa.array(lengths - 2, pa.int32()),
                "valid_index": pa.array(lengths - 2, pa.int32()),
                "test_index": pa.array(lengths - 1, pa.int32()),
            }
        ),
        "text_embeddings": _vectors(rng, 4),
        "collaborative": _vectors(rng, 3),
        "semantic_ids": pa.table({"item_index": index, "codes": pa.array(codes, pa.list_(pa.int32()))}),
    }
    for job, table in tables.items():
        (folder / job / "data").mkdir(parents=True)
        pq.write_table(table, folder / job / "data" / "part-0.parquet")
    write_json_atomically(
        folder / "semantic_ids" / "tokenizer.json", {"codebook_sizes": [4, 6], "tokenizer_version": "hand"}
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "work" / "data" / "ring" / "prepared"
    write_prepared(folder)
    return folder
