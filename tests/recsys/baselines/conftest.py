"""Small logs, split leave-one-out by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from recsys.datasets.prepared import PreparedData, Sequences

if TYPE_CHECKING:
    from collections.abc import Callable


def leave_one_out(rows: list[list[int]], num_items: int) -> PreparedData:
    lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
    held = lengths >= 3
    train_end = np.where(held, lengths - 2, lengths).astype(np.int32)
    items = np.asarray([item for row in rows for item in row], dtype=np.int32)
    training = [row[:end] for row, end in zip(rows, train_end, strict=True)]
    sequences = Sequences(
        user_ids=np.asarray([str(user) for user in range(len(rows))], dtype=object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=items,
        times=np.arange(len(items), dtype=np.int64),
        train_end=train_end,
        valid_index=np.where(held, lengths - 2, -1).astype(np.int32),
        test_index=np.where(held, lengths - 1, -1).astype(np.int32),
    )
    counts = np.bincount([item for row in training for item in row], minlength=num_items)
    nothing = np.zeros((num_items, 0), dtype=np.float32)
    return PreparedData(
        items=pa.table({"item_index": np.arange(num_items, dtype=np.int32)}),
        sequences=sequences,
        text=nothing,
        collaborative=nothing,
        codes=np.arange(num_items, dtype=np.int32)[:, None],
        codebook_sizes=(num_items,),
        tokenizer_version="none",
        train_counts=counts.astype(np.int64),
    )


@pytest.fixture(scope="session")
def prepared() -> Callable[[list[list[int]], int], PreparedData]:
    return leave_one_out


@pytest.fixture(scope="session")
def small_log() -> PreparedData:
    """60 users who walk along a ring of 12 items; item 12 is never seen."""
    rng = np.random.default_rng(5)
    rows = [((rng.integers(12) + np.arange(rng.integers(3, 9))) % 12).tolist() for _ in range(60)]
    return leave_one_out(rows, 13)
