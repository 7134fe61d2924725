"""Everybody gets what most people took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.datasets.prepared import PreparedData


@dataclass(frozen=True, slots=True)
class Popularity:
    """Ranks by the number of training interactions, the same for every history.

    Attributes:
        counts: (I,) float32.
    """

    counts: npt.NDArray[np.float32]

    @classmethod
    def fit(cls, data: PreparedData) -> Popularity:
        """Take the counts of the training part."""
        return cls(data.train_counts.astype(np.float32))

    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        """Histories -> (B, I); see `recsys.baselines.scorer.Scorer`."""
        return np.tile(self.counts, (len(histories), 1))
