"""Ragged rows in NumPy: the children of many prefixes side by side, without a Python loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def ranges(start: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """start[0], start[0] + 1, ... (counts[0] numbers), start[1], ...: (counts.sum(),) int64."""
    ends = counts.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(start - ends + counts, counts) + np.arange(total)


def segment_log_sum_exp(values: npt.NDArray[np.floating], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
    """Log of the sum of exponentials of each row.

    Args:
        values: (counts.sum(),) the rows one behind the other.
        counts: (n,) lengths of the rows, each at least 1.

    Returns:
        (n,) in the type of `values`.
    """
    first = counts.cumsum() - counts
    peak = np.maximum.reduceat(values, first)
    total = np.add.reduceat(np.exp(values - np.repeat(peak, counts)), first)
    return peak + np.log(total)


def best(scores: npt.NDArray[np.floating], width: int) -> npt.NDArray[np.int64]:
    """Indices of the `width` largest scores in ascending order of index, ties to the smaller index.

    Scores of minus infinity are never chosen, so that fewer may come back.
    """
    surplus = len(scores) - width
    if surplus <= 0:
        return np.flatnonzero(scores > -np.inf)
    threshold = np.partition(scores, surplus)[surplus]
    if threshold == -np.inf:
        return np.flatnonzero(scores > -np.inf)
    chosen = np.flatnonzero(scores >= threshold)
    if len(chosen) > width:
        tied = np.flatnonzero(scores[chosen] == threshold)
        chosen = np.delete(chosen, tied[width - len(chosen) :])
    return chosen
