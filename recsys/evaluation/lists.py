"""What is recommended, whether or not it hits: concentration, popularity, validity.

A list array is (N, K) int32 item indices, -1 behind the end of a shorter list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

GROUPS: Final = ("head", "torso", "tail")


def coverage(lists: npt.NDArray[np.int32], num_items: int) -> float:
    """Share of the catalogue that stands in at least one list."""
    listed = np.unique(lists[lists >= 0])
    return len(listed) / num_items


def gini(lists: npt.NDArray[np.int32], num_items: int) -> float:
    """Gini coefficient of how often each item of the catalogue is listed.

    0 where all items are listed equally often, (I - 1) / I where one item takes every place; 0 for no list at all.
    """
    counts = np.sort(np.bincount(lists[lists >= 0], minlength=num_items))
    total = int(counts.sum())
    if total == 0:
        return 0.0
    place = np.arange(1, num_items + 1)
    return float((2 * place - num_items - 1) @ counts) / (num_items * total)


def mean_popularity(lists: npt.NDArray[np.int32], train_counts: npt.NDArray[np.int64]) -> float:
    """Mean number of training interactions of a listed item; 0 for no list at all."""
    listed = lists[lists >= 0]
    return float(train_counts[listed].mean()) if listed.size else 0.0


def invalid_rate(
    lists: npt.NDArray[np.int32], num_items: int, mask: Sequence[npt.NDArray[np.integer]] | None = None
) -> float:
    """Share of the listed entries that may not stand there.

    Args:
        lists: (N, K).
        num_items: I; any other index than 0..I-1 is invalid, but -1 is no entry.
        mask: per list the items that were not to be shown.

    Returns:
        the share of entries that are outside the catalogue, masked, or a repetition inside their list.
    """
    entries = invalid = 0
    for row, line in enumerate(lists):
        listed = line[line != -1]
        distinct = np.unique(listed)
        wrong = (distinct < 0) | (distinct >= num_items)
        if mask is not None:
            wrong |= np.isin(distinct, mask[row])
        entries += len(listed)
        invalid += len(listed) - len(distinct) + int(wrong.sum())
    return invalid / entries if entries else 0.0


def popularity_groups(train_counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """Put items into head, torso and tail by training interactions.

    Items are ordered by falling count, equal counts by index. The head is the shortest beginning that makes at least
    a third of all interactions, the torso what brings it to at least two thirds, the tail all others; items without
    an interaction are tail.

    Returns:
        (I,) int8, places in `GROUPS`.
    """
    order = np.argsort(-train_counts, kind="stable")
    ordered = train_counts[order]
    before = np.cumsum(ordered) - ordered  # interactions of all items that stand before
    total = int(ordered.sum())
    groups = np.empty(len(train_counts), dtype=np.int8)
    groups[order] = np.where(3 * before < total, 0, np.where(3 * before < 2 * total, 1, 2))
    groups[train_counts == 0] = 2
    return groups
