"""Retrieval with judged documents: several may be right for one query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from recsys.errors import InputError
from recsys.evaluation.metrics import top_items

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Judgements:
    """The documents that are right for each query, flattened.

    Attributes:
        offsets: (Q + 1,) int64; query q owns documents[offsets[q]:offsets[q + 1]], distinct and at least one.
        documents: (P,) int64 indices.
    """

    offsets: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]

    @classmethod
    def of(cls, lists: Sequence[Sequence[int] | npt.NDArray[np.integer]]) -> Self:
        """From one list per query; repetitions are left out.

        Raises:
            InputError: a query without a document.
        """
        distinct = [np.unique(np.asarray(documents, dtype=np.int64)) for documents in lists]
        lengths = np.array([len(documents) for documents in distinct], dtype=np.int64)
        if len(empty := np.flatnonzero(lengths == 0)):
            raise InputError("a query has no judged document", field="judgements", value=f"query {empty[0]}")
        flat = np.concatenate(distinct) if distinct else np.empty(0, np.int64)
        return cls(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), flat)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, query: int) -> npt.NDArray[np.int64]:
        return self.documents[self.offsets[query] : self.offsets[query + 1]]

    def some(self, queries: npt.NDArray[np.integer]) -> Judgements:
        """Of these queries, in this order."""
        return Judgements.of([self[query] for query in queries.tolist()])


def judged_gains(
    scores: npt.NDArray[np.floating],
    judgements: Judgements,
    *,
    ndcg_at: int,
    recall_at: Sequence[int],
    own: npt.NDArray[np.integer] | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """NDCG@K and Recall@K per query, every judged document worth the same.

    NDCG@K is the sum of 1 / log2(rank + 1) over judged documents of a rank up to K, over the same sum of the best
    order there is; Recall@K is the share of the judged documents of a rank up to K. Equal scores stand by rising index.

    Args:
        scores: (Q, D) of every document.
        judgements: of Q queries.
        ndcg_at: K of NDCG.
        recall_at: every K of Recall.
        own: (Q,) the document that a query is itself, left out of its list; -1 where it is none.

    Returns:
        NDCG (Q,), and Recall (K, Q) in the order of `recall_at`.

    Raises:
        InputError: another number of queries.
    """
    if scores.ndim != 2 or len(scores) != len(judgements):
        raise InputError("scores must be (Q, D)", field="scores", value=(scores.shape, len(judgements)))
    depth = min(max(ndcg_at, *recall_at), scores.shape[1])
    mask = None if own is None else [np.array([row] if row >= 0 else [], dtype=np.int64) for row in own]
    lists = top_items(scores, depth, mask=mask)  # (Q, depth)
    discounts = 1.0 / np.log2(np.arange(depth) + 2.0)
    ndcg, recall = np.zeros(len(scores)), np.zeros((len(recall_at), len(scores)))
    for query, found in enumerate(lists):
        judged = judgements[query]
        right = np.isin(found, judged)  # (depth,)
        ndcg[query] = discounts[:ndcg_at] @ right[:ndcg_at] / discounts[: min(ndcg_at, len(judged))].sum()
        recall[:, query] = [right[:k].sum() / len(judged) for k in recall_at]
    return ndcg, recall


def kept_neighbours(
    full: npt.NDArray[np.float32], short: npt.NDArray[np.float32], rows: npt.NDArray[np.integer], k: int
) -> npt.NDArray[np.float64]:
    """The share of each row's K nearest that are still among the K nearest when vectors are shorter, itself left out.

    Args:
        full: (D, N) unit vectors.
        short: (D, n) unit vectors.
        rows: (B,) whose neighbours are compared.
        k: number of neighbours.

    Returns:
        (B,) from 0 to 1.

    Raises:
        InputError: there are not so many others.
    """
    before, after = (nearest(vectors, rows, k) for vectors in (full, short))
    return np.array([np.isin(a, b).mean() for a, b in zip(before, after, strict=True)])


def nearest(vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.integer], k: int) -> npt.NDArray[np.int32]:
    """(B, k) the nearest other vectors of these rows by dot product, equal ones by rising index.

    Raises:
        InputError: there are not so many others.
    """
    if k >= len(vectors):
        raise InputError(
            f"{len(vectors)} vectors have fewer neighbours", field="neighbours", value=k, remedy="ask for fewer"
        )
    return top_items(vectors[rows] @ vectors.T, k, mask=[np.array([row]) for row in rows])
