"""A tokenizer built anew under the numbers of an earlier one, and how much changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    import numpy.typing as npt

    Codes = npt.NDArray[np.int32]


def match_codes(before: Codes, after: Codes, sizes: tuple[int, ...]) -> list[npt.NDArray[np.intp]]:
    """Rename codes level by level, so that as many items as possible keep theirs.

    A level is matched on the items whose codes of the levels before are the same already, on all items where there is
    none; the matching is the best one (Hungarian algorithm). A code that no matched item has keeps its number where
    that is free.

    Args:
        before: (M, L) codes of the same items under the earlier tokenizer.
        after: (M, L) under the new one.
        sizes: T_1..T_L of both.

    Returns:
        Per level (T_l,): which code of the new tokenizer takes the number c, as `Tokenizer.relabelled` wants it.
    """
    order: list[npt.NDArray[np.intp]] = []
    same = np.ones(len(before), dtype=bool)
    for level, size in enumerate(sizes):
        rows = same if same.any() else np.ones_like(same)
        shared = np.zeros((size, size), dtype=np.int64)
        np.add.at(shared, (before[rows, level], after[rows, level]), 2 * size)
        shared[np.diag_indices(size)] += 1  # less than one item over all codes together
        _, found = linear_sum_assignment(shared, maximize=True)
        order.append(found)
        number = np.empty(size, dtype=np.int64)
        number[found] = np.arange(size)
        same &= before[:, level] == number[after[:, level]]
    return order


def changed_prefixes(before: Codes, after: Codes) -> npt.NDArray[np.float64]:
    """Share of the items (M, L) whose first l codes are not what they were, for l = 1..L; 0 without items."""
    if len(before) == 0:
        return np.zeros(before.shape[1])
    changed = np.maximum.accumulate(before != after, axis=1)  # (M, L)
    return np.asarray(changed.mean(axis=0), dtype=np.float64)
