"""EASE: a linear item-to-item model in closed form (Steck, 2019), read with recency weights.

With X the binary user-by-item matrix of the training part, the weights minimise |X - XB|^2 + lambda |B|^2 under a
zero diagonal: B = I - P diag(1 / P_jj), P = (X^T X + lambda I)^-1. A history scores an item by
sum over its items of decay^age * B[item].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import lapack

from recsys.baselines.interactions import recency_matrix, training_matrix
from recsys.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.datasets.prepared import PreparedData


@dataclass(frozen=True, slots=True)
class EaseSettings:
    """Settings of `Ease`.

    Attributes:
        regularisation: lambda.
        decay: weight of an item per step back in the history; 1 is plain EASE.
        max_history: newest items of a history that count.
        max_items: largest dense matrix; beyond it the items with the fewest training interactions stay outside
            the model and score 0. 20,000 items take 1.6 GB and about 3 CPU minutes.
    """

    regularisation: float = 250.0
    decay: float = 0.7
    max_history: int = 50
    max_items: int = 20_000

    def __post_init__(self) -> None:
        if self.regularisation <= 0:
            raise ConfigError("must be positive", field="regularisation", value=self.regularisation)
        if not 0 < self.decay <= 1:
            raise ConfigError("must lie in (0, 1]", field="decay", value=self.decay)
        if self.max_history < 1 or self.max_items < 1:
            raise ConfigError(
                "must be at least 1", field="max_history, max_items", value=(self.max_history, self.max_items)
            )


@dataclass(frozen=True, slots=True)
class Ease:
    """A fitted EASE.

    Attributes:
        weights: (N, N) float32, B over the kept items; row = item of the history.
        kept: (N,) int64 rising item indices: those with a training interaction, at most `max_items`. An item without
            one has zero weights in the whole problem too, so leaving it out changes nothing.
        num_items: I.
        settings: as fitted.
    """

    weights: npt.NDArray[np.float32]
    kept: npt.NDArray[np.int64]
    num_items: int
    settings: EaseSettings

    @classmethod
    def fit(
        cls,
        data: PreparedData,
        settings: EaseSettings | None = None,
        *,
        users: npt.NDArray[np.integer] | None = None,
    ) -> Ease:
        """Solve for the weights: N^3 multiplications, 4 N^2 bytes.

        Args:
            data: only its training part is read.
            settings: None takes the defaults.
            users: fit on these users alone (cross-fitting); None takes all.

        Raises:
            DataError: there is no training interaction.
        """
        settings = settings or EaseSettings()
        num_items = len(data.train_counts)
        matrix = training_matrix(data.sequences, num_items, users)
        kept = _kept_items(np.asarray(matrix.sum(axis=0)).ravel(), settings.max_items)
        if not len(kept):
            raise DataError("EASE needs training interactions and found none", field="users", value=matrix.shape[0])
        part = matrix[:, kept]
        gram = (part.T @ part).toarray(order="F")  # (N, N) float32
        gram[np.diag_indices_from(gram)] += settings.regularisation
        inverse = _inverse(gram)
        scale = -1.0 / np.diagonal(inverse)
        inverse *= scale[None, :]
        np.fill_diagonal(inverse, 0.0)
        return cls(inverse, kept, num_items, settings)

    def with_decay(self, decay: float) -> Ease:
        """The same weights read with another recency."""
        return replace(self, settings=replace(self.settings, decay=decay))

    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        """Histories -> (B, I); see `recsys.baselines.scorer.Scorer`."""
        weights = recency_matrix(
            histories, self.num_items, decay=self.settings.decay, max_history=self.settings.max_history
        )
        if len(self.kept) == self.num_items:
            full: npt.NDArray[np.float32] = weights @ self.weights
            return full
        scores = np.zeros((len(histories), self.num_items), dtype=np.float32)
        scores[:, self.kept] = weights[:, self.kept] @ self.weights
        return scores


def _kept_items(counts: npt.NDArray[np.number], limit: int) -> npt.NDArray[np.int64]:
    order = np.argsort(-counts, kind="stable")[:limit]
    return np.sort(order[counts[order] > 0])


def _inverse(gram: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The inverse of a symmetric positive definite matrix, in its own memory, row-major."""
    factor, failed = lapack.spotrf(gram, lower=1, overwrite_a=1, clean=0)
    if not failed:
        factor, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise DataError(
            "the co-occurrence matrix could not be inverted",
            field="regularisation",
            value=int(failed),
            remedy="raise EASE's regularisation",
        )
    for column in range(len(factor) - 1):  # LAPACK fills the lower triangle only
        factor[column, column + 1 :] = factor[column + 1 :, column]
    inverse: npt.NDArray[np.float32] = factor.T  # symmetric: the transposed view of column-major is row-major
    return inverse
