"""What short vectors are good for, measured for every method alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from recsys.evaluation.judged import judged_gains, kept_neighbours
from training.smec.data import unit

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from training.smec.course import Reducer
    from training.smec.data import VectorData

NDCG_AT: Final = 10
KEPT_AT: Final = 10
RECALL_AT: Final = (10, 100)


def measure(
    method: Reducer, data: VectorData, rows: npt.NDArray[np.int64], width: int
) -> dict[str, npt.NDArray[np.float64]]:
    """What short vectors are good for.

    Args:
        method: fitted.
        data: documents, and queries with labels or without any.
        rows: (B,) documents whose neighbours are counted.
        width: of the short vectors.

    Returns:
        `neighbours@10` (B,): share of a document's ten nearest that are kept; with labels per query (Q,)
        `ndcg@10`, `recall@10` and `recall@100`, of all documents but the one that a query is itself.
    """
    short = method.reduce(data.documents, width)
    found = {f"neighbours@{KEPT_AT}": kept_neighbours(unit(data.documents), short, rows, KEPT_AT)}
    if data.judgements is not None:
        scores = method.reduce(data.queries, width) @ short.T  # (Q, D)
        ndcg, recall = judged_gains(scores, data.judgements, ndcg_at=NDCG_AT, recall_at=RECALL_AT, own=data.own)
        found |= {f"ndcg@{NDCG_AT}": ndcg} | {f"recall@{k}": at for k, at in zip(RECALL_AT, recall, strict=True)}
    return found
