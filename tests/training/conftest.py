from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recsys.datasets.prepared import PreparedData, Sequences


@pytest.fixture(scope="session")
def tiny_data() -> PreparedData:
    """60 items in a ring; every user walks it, so the next item is predictable."""
    rng = np.random.default_rng(0)
    items = 60
    lengths = rng.integers(2, 12, size=120)
    walks = [(int(rng.integers(items)) + np.arange(n)) % items for n in lengths]
    return PreparedData(
        items=pa.table({"item_id": [f"i{i}" for i in range(items)]}),
        sequences=Sequences(
            user_ids=np.asarray([f"u{u}" for u in range(len(walks))], dtype=object),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items=np.concatenate(walks).astype(np.int32),
            times=np.arange(lengths.sum(), dtype=np.int64),
            train_end=(lengths - 1).astype(np.int32),
            valid_index=(lengths - 1).astype(np.int32),
            test_index=np.full(len(walks), -1, np.int32),
        ),
        text=rng.standard_normal((items, 6)).astype(np.float32),
        collaborative=rng.standard_normal((items, 4)).astype(np.float32),
        codes=np.stack([np.arange(items) // 16, np.arange(items) // 4 % 4, np.arange(items) % 4], axis=1).astype(
            np.int32
        ),
        codebook_sizes=(4, 4, 4),
        tokenizer_version="test",
        train_counts=np.full(items, 3, np.int64),
    )
