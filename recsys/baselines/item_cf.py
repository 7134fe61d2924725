"""Item-to-item collaborative filtering: shrunk cosine, recent items count more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from recsys.baselines.interactions import recency_matrix, training_matrix
from recsys.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.datasets.prepared import PreparedData


@dataclass(frozen=True, slots=True)
class ItemCFSettings:
    """Settings of `ItemCF`.

    Attributes:
        shrink: added to the cosine's denominator; small counts then say little.
        decay: weight of an item per step back in the history.
        max_history: newest items that count.
    """

    shrink: float = 10.0
    decay: float = 0.6
    max_history: int = 50

    def __post_init__(self) -> None:
        if self.shrink < 0:
            raise ConfigError("must not be negative", field="shrink", value=self.shrink)
        if not 0 < self.decay <= 1:
            raise ConfigError("must lie in (0, 1]", field="decay", value=self.decay)


@dataclass(frozen=True, slots=True)
class ItemCF:
    """score(j) = sum over the history of decay^age * n_ij / (sqrt(n_i n_j) + shrink).

    n_i counts the users whose training part holds item i, n_ij those who hold both.

    Attributes:
        similarity: (I, I) float32, zero diagonal.
        settings: as fitted.
    """

    similarity: sparse.csr_array
    settings: ItemCFSettings

    @classmethod
    def fit(
        cls,
        data: PreparedData,
        settings: ItemCFSettings | None = None,
        *,
        users: npt.NDArray[np.integer] | None = None,
    ) -> ItemCF:
        """Count common users over the training part.

        Args:
            data: only its training part is read.
            settings: None takes the defaults.
            users: count these users alone (cross-fitting); None takes all.
        """
        settings = settings or ItemCFSettings()
        matrix = training_matrix(data.sequences, len(data.train_counts), users)
        counts = np.asarray(matrix.sum(axis=0), dtype=np.float32).ravel()  # (I,)
        return cls(shrunk_cosine((matrix.T @ matrix).tocsr(), counts, 0, settings.shrink), settings)

    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        """Histories -> (B, I); see `recsys.baselines.scorer.Scorer`."""
        weights = recency_matrix(
            histories, self.similarity.shape[0], decay=self.settings.decay, max_history=self.settings.max_history
        )
        scores: npt.NDArray[np.float32] = (weights @ self.similarity).toarray()
        return scores


def shrunk_cosine(
    common: sparse.csr_array, counts: npt.NDArray[np.float32], first: int, shrink: float
) -> sparse.csr_array:
    """From common users to similarities, without those of an item with itself.

    Args:
        common: (b, I) float32, the users that hold both items, for items first..first + b - 1; changed in place.
        counts: (I,) float32, the users that hold an item.
        first: the item of row 0.
        shrink: added to the cosine's denominator.
    """
    rows = np.repeat(np.arange(first, first + common.shape[0]), np.diff(common.indptr))
    common.data[rows == common.indices] = 0
    common.data /= np.sqrt(counts[rows] * counts[common.indices]) + np.float32(shrink)
    common.eliminate_zeros()
    return common


def truncated(similarity: sparse.csr_array, neighbours: int) -> sparse.csr_array:
    """Keep the largest `neighbours` entries of every row, ties to the smaller column."""
    rows = np.repeat(np.arange(similarity.shape[0]), np.diff(similarity.indptr))
    order = np.lexsort((similarity.indices, -similarity.data, rows))
    rank = np.arange(len(order)) - similarity.indptr[rows]
    kept = order[rank < neighbours]
    return sparse.csr_array((similarity.data[kept], (rows[kept], similarity.indices[kept])), shape=similarity.shape)
