"""Validation during training: NDCG@10 over the full catalogue, history masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys.decoding.building import build_decoder
from recsys.decoding.eligibility import Eligibility

if TYPE_CHECKING:
    from recsys.datasets.prepared import PreparedData
    from recsys.decoding.trie import SidTrie
    from recsys.models import Recommender

_BATCH = 512
_K = 10


def validation_ndcg(model: Recommender, trie: SidTrie, data: PreparedData, *, users: int, beam: int) -> float | None:
    """NDCG@10 of the validation targets of up to `users` users, spread evenly over all that have one.

    None when no user has a validation target.
    """
    _, histories, targets = data.sequences.targets("valid")
    if len(targets) == 0:
        return None
    chosen = np.unique(np.linspace(0, len(targets) - 1, min(users, len(targets))).astype(int))
    # Batches of equal length: padding would be most of the work.
    chosen = chosen[np.argsort([len(histories[row]) for row in chosen], kind="stable")]
    decoder = build_decoder(model, trie, prior=data.train_counts)
    gain = 0.0
    for begin in range(0, len(chosen), _BATCH):
        rows = chosen[begin : begin + _BATCH]
        batch = [histories[row] for row in rows]
        answer = decoder.decode(batch, k=_K, beam=beam, eligibility=Eligibility(shared=None, excluded=batch))
        for row, ranked in zip(rows, answer.ranked, strict=True):
            hit = np.flatnonzero(ranked.items == targets[row])
            gain += float((1.0 / np.log2(hit + 2.0)).sum())
    return gain / len(chosen)
