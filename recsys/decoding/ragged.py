"""Ragged rows in NumPy: the children of many prefixes side by side, without a Python loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def ranges(start: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """start[0], start[0] + 1, ... (counts[0] numbers), start[1], ...: (counts.sum(),) int64."""
    ends = counts.cumsum()
    result = np.repeat(start - ends + counts, counts)
    result += np.arange(len(result))
    return result


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
