"""Ragged rows in NumPy: the children of many prefixes side by side, without a Python loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

# Sums of exponentials above this lost no term that float32 could have seen.
_SAFE_SUM = 1e-30


def ranges(start: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """start[0], start[0] + 1, ... (counts[0] numbers), start[1], ...: (counts.sum(),) int64."""
    ends = counts.cumsum()
    result = np.repeat(start - ends + counts, counts)
    result += np.arange(len(result))
    return result


def segment_log_sum_exp(values: npt.NDArray[np.floating], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.floating]:
    """Log of the sum of exponentials of each row.

    Args:
        values: (counts.sum(),) the rows one behind the other.
        counts: (n,) lengths of the rows, each at least 1.

    Returns:
        (n,) in the type of `values`.
    """
    first = counts.cumsum() - counts
    # One shift for all rows saves two passes; rows far below it are done again with a shift of their own.
    highest = values.max()
    total = np.add.reduceat(np.exp(values - highest), first)
    if total.min() > _SAFE_SUM:
        np.log(total, out=total)
        total += highest
        return total
    peak = np.maximum.reduceat(values, first)
    total = np.add.reduceat(np.exp(values - np.repeat(peak, counts)), first)
    return peak + np.log(total)


def best(scores: npt.NDArray[np.floating], width: int) -> npt.NDArray[np.int64]:
    """Indices of the `width` largest scores in ascending order of index, ties to the smaller index.

    Scores of minus infinity are never chosen, so that fewer may come back.
    """
    surplus = len(scores) - width
    threshold = np.partition(scores, surplus)[surplus] if surplus > 0 else -np.inf
    if threshold == -np.inf:
        return np.flatnonzero(scores > threshold)
    chosen = np.flatnonzero(scores >= threshold)
    if len(chosen) > width:
        tied = np.flatnonzero(scores[chosen] == threshold)
        chosen = np.delete(chosen, tied[width - len(chosen) :])
    return chosen
