"""Item vectors from co-occurrence: truncated SVD of the positive pointwise mutual information.

Source: Levy and Goldberg, "Neural Word Embedding as Implicit Matrix Factorization" (2014), with the smoothed context
distribution of Levy, Goldberg and Dagan (2015), section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.collaborative.cooccurrence import PairCounts

_CONTEXT_SMOOTHING = 0.75


def ppmi_matrix(pairs: PairCounts, num_items: int) -> sp.csr_array:
    """The symmetric (I, I) PPMI matrix: max(0, log(count_ab * total / (count_a * smoothed count_b)))."""
    rows = np.concatenate([pairs.a, pairs.b])
    columns = np.concatenate([pairs.b, pairs.a])
    values = np.concatenate([pairs.weight, pairs.weight]).astype(np.float64)
    counts = sp.coo_array((values, (rows, columns)), shape=(num_items, num_items)).tocsr()
    marginal = np.asarray(counts.sum(axis=1)).ravel()  # (I,)
    smoothed = marginal**_CONTEXT_SMOOTHING
    smoothed /= max(smoothed.sum(), 1.0)
    coo = counts.tocoo()
    information = np.log(coo.data / (marginal[coo.row] * smoothed[coo.col]))
    keep = information > 0
    ppmi = sp.coo_array((information[keep], (coo.row[keep], coo.col[keep])), shape=counts.shape).tocsr()
    symmetric: sp.csr_array = (ppmi + ppmi.T) * 0.5
    return symmetric


def collaborative_vectors(
    pairs: PairCounts, *, num_items: int, dimension: int, seed: int, exponent: float = 0.5
) -> npt.NDArray[np.float32]:
    """Unit-length item vectors U * S^exponent of the PPMI matrix's truncated SVD.

    Args:
        pairs: counts from training interactions only.
        num_items: I.
        dimension: D; the columns beyond the matrix's rank are zero.
        seed: of the solver's start vector.
        exponent: of the singular values; 0.5 splits them evenly between the two factors.

    Returns:
        (I, D) float32; the zero vector for an item without a pair.
    """
    vectors = np.zeros((num_items, dimension), dtype=np.float32)
    if len(pairs.weight) == 0:
        return vectors
    matrix = ppmi_matrix(pairs, num_items)
    rank = min(dimension, num_items - 1)
    start = np.random.default_rng(seed).standard_normal(num_items)
    left, singular, _ = svds(matrix, k=rank, v0=start, which="LM")
    order = np.argsort(-singular, kind="stable")
    left, singular = left[:, order], np.maximum(singular[order], 0.0)
    # A singular vector's sign is arbitrary: make the entry of largest magnitude positive.
    left *= np.sign(left[np.abs(left).argmax(axis=0), np.arange(rank)])
    scaled = left * singular**exponent
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    vectors[:, :rank] = np.divide(scaled, length, out=np.zeros_like(scaled), where=length > 1e-9)
    return vectors
