"""Ranks of held-out targets over the full catalogue, and what is measured on them.

A rank counts from 1 and is pessimistic: every other item that scores at least as much as the target stands before
it. There is one target per case, so Recall@K is the hit rate and NDCG@K is 1 / log2(rank + 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from recsys.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

MISSED: Final = int(np.iinfo(np.int64).max)
"""The rank of a target that was not, or could not be, recommended."""

KS: Final = (1, 3, 5, 10, 20, 50)


class RankedItems(Protocol):
    """One answer, best first; `recsys.decoding.Ranked` is one."""

    @property
    def items(self) -> npt.NDArray[np.int32]:
        """(k,) item indices."""

    @property
    def scores(self) -> npt.NDArray[np.floating]:
        """(k,) non-increasing."""


def ranks_from_scores(
    scores: npt.NDArray[np.floating],
    targets: npt.NDArray[np.integer],
    mask: Sequence[npt.NDArray[np.integer]] | None = None,
) -> npt.NDArray[np.int64]:
    """Rank each target among all items.

    The rank is 1 + the number of other, unmasked items whose score is not below the target's; a score that is not a
    number stands before every target, and a target without a number stands behind everything. A target that is
    itself masked cannot be recommended: its rank is `MISSED`.

    Args:
        scores: (B, I), left as they are.
        targets: (B,) item indices.
        mask: per case the items that are left out (usually the history; repetitions allowed); None leaves out none.

    Returns:
        (B,) int64.

    Raises:
        InputError: the shapes do not fit.
    """
    if scores.ndim != 2 or targets.shape != scores.shape[:1] or (mask is not None and len(mask) != len(targets)):
        raise InputError(
            "scores must be (B, I) with one target and one mask per row",
            field="scores, targets, mask",
            value=(scores.shape, targets.shape, None if mask is None else len(mask)),
        )
    rows = np.arange(len(targets))
    own = scores[rows, targets][:, None]  # (B, 1)
    ranks: npt.NDArray[np.int64] = np.count_nonzero(~(scores < own), axis=1).astype(np.int64)  # the target is one
    for row, masked in enumerate(mask or ()):
        left_out = np.unique(masked)
        if np.isin(targets[row], left_out):
            ranks[row] = MISSED
        else:
            ranks[row] -= np.count_nonzero(~(scores[row, left_out] < own[row]))
    return ranks


def ranks_from_ranked(ranked: Sequence[RankedItems], targets: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Rank each target in the list that was answered.

    Args:
        ranked: B answers.
        targets: (B,) item indices.

    Returns:
        (B,) int64: the number of listed items whose score is not below the target's; `MISSED` where it is not listed.
    """
    ranks = np.full(len(targets), MISSED, dtype=np.int64)
    for row, (answer, target) in enumerate(zip(ranked, targets, strict=True)):
        place = np.flatnonzero(answer.items == target)
        if len(place):
            ranks[row] = np.count_nonzero(~(answer.scores < answer.scores[place[0]]))
    return ranks


def top_items(
    scores: npt.NDArray[np.floating], k: int, mask: Sequence[npt.NDArray[np.integer]] | None = None
) -> npt.NDArray[np.int32]:
    """The best items per row, equal scores by rising index.

    Args:
        scores: (B, I), left as they are.
        k: list length.
        mask: per row the items that are left out; None leaves out none.

    Returns:
        (B, k) int32, -1 behind the last item that may be listed.
    """
    lists = np.full((len(scores), k), -1, dtype=np.int32)
    for row, line in enumerate(scores):
        allowed = np.array(line, copy=True)
        if mask is not None:
            allowed[mask[row]] = -np.inf
        count = min(k, len(allowed))
        edge = np.partition(allowed, len(allowed) - count)[len(allowed) - count]
        near = np.flatnonzero((allowed >= edge) & (allowed > -np.inf))
        best = near[np.argsort(-allowed[near], kind="stable")][:count]
        lists[row, : len(best)] = best
    return lists


def padded_lists(ranked: Sequence[RankedItems], k: int) -> npt.NDArray[np.int32]:
    """Answers as one array: (B, k) int32, -1 behind the end of a shorter list."""
    lists = np.full((len(ranked), k), -1, dtype=np.int32)
    for row, answer in enumerate(ranked):
        items = answer.items[:k]
        lists[row, : len(items)] = items
    return lists


def recall(ranks: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float64]:
    """Per case 1 where the target stands among the first k, else 0; the shape of `ranks`."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float64]:
    """Per case 1 / log2(rank + 1) where the target stands among the first k, else 0; the shape of `ranks`."""
    return np.where(ranks <= k, 1.0 / np.log2(np.minimum(ranks, k) + 1.0), 0.0)


def mrr(ranks: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.float64]:
    """Per case 1 / rank where the target stands among the first k, else 0; the shape of `ranks`."""
    return np.where(ranks <= k, 1.0 / np.minimum(ranks, k), 0.0)


GAINS: Final[dict[str, Callable[[npt.NDArray[np.int64], int], npt.NDArray[np.float64]]]] = {
    "recall": recall,
    "ndcg": ndcg,
    "mrr": mrr,
}
