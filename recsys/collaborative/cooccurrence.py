"""Windowed co-occurrence counts: integers, so that sums do not depend on how the log is partitioned."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


class PairCounts(NamedTuple):
    """Weighted counts of unordered item pairs, sorted by (a, b), a < b; `weight` is the count column."""

    a: npt.NDArray[np.int32]
    b: npt.NDArray[np.int32]
    weight: npt.NDArray[np.int64]


def count_pairs(
    offsets: npt.NDArray[np.int64], items: npt.NDArray[np.int32], *, window: int, num_items: int
) -> PairCounts:
    """Count item pairs at most `window` positions apart in a sequence.

    A pair at distance d adds window + 1 - d; a pair of the same item adds nothing.

    Args:
        offsets: (U + 1,) sequence u is items[offsets[u]:offsets[u + 1]].
        items: (E,) item indices, oldest first inside a sequence.
        window: largest distance in positions, >= 1.
        num_items: number of items I.
    """
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))  # (E,)
    keys: list[npt.NDArray[np.int64]] = []
    weights: list[npt.NDArray[np.int64]] = []
    for distance in range(1, window + 1):
        left, right = items[:-distance].astype(np.int64), items[distance:].astype(np.int64)
        keep = (owner[:-distance] == owner[distance:]) & (left != right)
        left, right = left[keep], right[keep]
        keys.append(np.minimum(left, right) * num_items + np.maximum(left, right))
        weights.append(np.full(len(left), window + 1 - distance, dtype=np.int64))
    unique, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    count = np.zeros(len(unique), dtype=np.int64)
    np.add.at(count, inverse, np.concatenate(weights))
    return PairCounts((unique // num_items).astype(np.int32), (unique % num_items).astype(np.int32), count)
