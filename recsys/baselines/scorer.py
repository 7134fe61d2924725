"""The one thing every baseline can do, and how good it is on validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from recsys.evaluation.metrics import ndcg, ranks_from_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.datasets.prepared import PreparedData

_BATCH = 256
_K = 10


class Scorer(Protocol):
    """Scores every item of the catalogue behind a batch of histories."""

    def score(self, histories: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.float32]:
        """Score all items.

        Args:
            histories: B arrays of item indices, oldest first; may be empty.

        Returns:
            (B, I), a new array the caller may change.
        """


def validation_ndcg(scorer: Scorer, data: PreparedData, *, users: int = 8000) -> float:
    """NDCG@10 of the validation targets over the full catalogue, history masked.

    Args:
        scorer: a fitted baseline.
        data: whose validation part is read.
        users: at most so many, spread evenly over all that have a validation target.

    Returns:
        the mean; 0 where no user has a validation target.
    """
    _, histories, targets = data.sequences.targets("valid")
    if not len(targets):
        return 0.0
    chosen = np.unique(np.linspace(0, len(targets) - 1, min(users, len(targets))).astype(int))
    gain = 0.0
    for begin in range(0, len(chosen), _BATCH):
        rows = chosen[begin : begin + _BATCH]
        batch = [histories[row] for row in rows]
        gain += float(ndcg(ranks_from_scores(scorer.score(batch), targets[rows], batch), _K).sum())
    return gain / len(chosen)
