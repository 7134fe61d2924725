"""The best neighbours of every item, block by block: no matrix of all pairs is ever held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import sparse

from recsys.baselines.interactions import training_matrix
from recsys.baselines.item_cf import shrunk_cosine, truncated
from recsys.decoding.neighbours import Neighbours
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from recsys.datasets.prepared import PreparedData

BLOCK: Final = 4096
"""Items whose pairs are counted at once."""


def fit_neighbours(
    data: PreparedData,
    *,
    shrink: float,
    neighbours: int,
    block: int = BLOCK,
    tick: Callable[[int], None] | None = None,
) -> Neighbours:
    """The rows of `ItemCF.similarity`, each cut to its largest entries, ties to the smaller item.

    Args:
        data: only its training part is read.
        shrink: added to the cosine's denominator.
        neighbours: entries kept per item.
        block: items whose common users are counted at once.
        tick: told the number of items of every finished block.

    Raises:
        ConfigError: a negative shrinkage, or no neighbour to keep.
    """
    if shrink < 0:
        raise ConfigError("must not be negative", field="shrink", value=shrink)
    if neighbours < 1:
        raise ConfigError("must be at least 1", field="neighbours", value=neighbours)
    matrix = training_matrix(data.sequences, len(data.train_counts))  # (U, I)
    counts = np.asarray(matrix.sum(axis=0), dtype=np.float32).ravel()  # (I,)
    by_item = matrix.T.tocsr()  # (I, U)
    parts: list[sparse.csr_array] = []
    for begin in range(0, len(counts), block):
        rows = by_item[begin : begin + block]
        part = truncated(shrunk_cosine((rows @ matrix).tocsr(), counts, begin, shrink), neighbours)
        part.sort_indices()
        parts.append(part)
        if tick is not None:
            tick(part.shape[0])
    degrees = np.concatenate([np.diff(part.indptr) for part in parts])
    table = Neighbours(
        np.concatenate([[0], np.cumsum(degrees)]).astype(np.int64),
        np.concatenate([part.indices for part in parts]).astype(np.int32),
        np.concatenate([part.data for part in parts]).astype(np.float32),
    )
    table.check()
    return table
