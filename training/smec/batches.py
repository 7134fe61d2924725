"""One step's rows: labelled queries with their documents, and anchors with their neighbours, each row once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from training.smec.data import VectorData
    from training.smec.settings import SmecSettings


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything by row of the table (documents, then queries).

    Attributes:
        rows: (R,) distinct, what goes through the layer.
        queries: (B,) places in `rows`.
        documents: (C,) places in `rows`.
        labels: (B, C) 1 where a document is right, -1 where it is the query itself, else 0.
        anchors: (A,) places in `rows`.
        neighbours: (A, K) places in `rows`; K is 0 where neighbours are not known yet.
    """

    rows: Tensor
    queries: Tensor
    documents: Tensor
    labels: Tensor
    anchors: Tensor
    neighbours: Tensor


class Labelled:
    """Draws queries, the documents that are right for them, and some that are near but wrong.

    Args:
        data: with labels.
        settings: sizes.
    """

    def __init__(self, data: VectorData, settings: SmecSettings) -> None:
        assert data.judgements is not None  # noqa: S101 - for the type checker
        self._judgements, self._documents, self._own = data.judgements, len(data.documents), data.own
        self._settings = settings
        self._hard = data.hard_negatives(min(settings.hard, self._documents))  # (Q, H)

    def draw(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Tensor]:
        """Rows of queries (B,), of documents (C,), and labels (B, C)."""
        settings, count = self._settings, len(self._judgements)
        queries = rng.choice(count, size=min(settings.batch, count), replace=False)
        right = [self._judgements[query] for query in queries.tolist()]
        wrong = self._hard[queries[:, None], rng.integers(self._hard.shape[1], size=(len(queries), settings.negatives))]
        documents = np.unique(np.concatenate([*right, wrong[wrong >= 0].ravel()])).astype(np.int64)
        labels = torch.zeros(len(queries), len(documents))
        for row, own in enumerate(right):
            labels[row, np.searchsorted(documents, own)] = 1.0
        if self._own is not None:
            themselves = documents == self._own[queries][:, None]  # (B, C)
            labels[torch.from_numpy(themselves)] = -1.0
        return queries + self._documents, documents, labels


def together(
    labelled: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Tensor] | None,
    anchors: npt.NDArray[np.int64],
    neighbours: npt.NDArray[np.int64],
) -> Batch:
    """One batch.

    Args:
        labelled: what `Labelled.draw` gave, None without labels.
        anchors: (A,) rows.
        neighbours: (A, K) rows.
    """
    none = np.empty(0, np.int64)
    queries, documents, labels = labelled or (none, none, torch.zeros(0, 0))
    parts = [queries, documents, anchors, neighbours.ravel()]
    rows, places = np.unique(np.concatenate(parts), return_inverse=True)
    at = np.split(places, np.cumsum([len(part) for part in parts])[:-1])
    q, d, a, n = (torch.from_numpy(place) for place in at)
    return Batch(torch.from_numpy(rows), q, d, labels, a, n.reshape(neighbours.shape))
