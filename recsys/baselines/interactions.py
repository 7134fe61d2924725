"""Training interactions and histories as sparse matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.datasets.prepared import Sequences


def training_matrix(
    sequences: Sequences, num_items: int, users: npt.NDArray[np.integer] | None = None
) -> sparse.csr_array:
    """The binary user-by-item matrix of the training parts.

    Args:
        sequences: only items[:train_end] of each user are read.
        num_items: I.
        users: the users to take; None takes all.

    Returns:
        (U, I) float32, 1 where the user's training part holds the item.
    """
    chosen = np.arange(sequences.users) if users is None else np.asarray(users)
    counts = sequences.train_end[chosen].astype(np.int64)
    starts = sequences.offsets[chosen]
    total = int(counts.sum())
    before = np.cumsum(counts) - counts
    places = np.repeat(starts - before, counts) + np.arange(total)
    rows = np.repeat(np.arange(len(chosen)), counts)
    matrix = sparse.csr_array(
        (np.ones(total, dtype=np.float32), (rows, sequences.items[places])), shape=(len(chosen), num_items)
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def recency_matrix(
    histories: Sequence[npt.NDArray[np.integer]], num_items: int, *, decay: float, max_history: int
) -> sparse.csr_array:
    """Histories as weights: the newest item 1, each earlier one `decay` times the next; repetitions add up.

    Args:
        histories: B arrays, oldest first; may be empty.
        num_items: I.
        decay: in (0, 1].
        max_history: newest items that count.

    Returns:
        (B, I) float32.
    """
    newest = [history[-max_history:] for history in histories]
    lengths = np.asarray([len(history) for history in newest], dtype=np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate([*newest, np.zeros(0, dtype=np.int32)]).astype(np.int32)
    age = np.repeat(indptr[1:], lengths) - 1 - np.arange(len(items))  # 0 for the newest
    weights = np.power(decay, age, dtype=np.float32)
    matrix = sparse.csr_array((weights, items, indptr), shape=(len(newest), num_items))
    matrix.sum_duplicates()
    return matrix
