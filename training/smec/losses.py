"""The losses of SMEC and of the adaptors, each a mean so that learning rates do not depend on the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def rank_loss(scores: Tensor, labels: Tensor, *, scale: float) -> Tensor:
    """Every document is to score above those with a smaller label (SMEC, L_rank).

    sum over i, j, k with y_ij > y_ik of (y_ij - y_ik) log(1 + exp(scale (s_ik - s_ij))), over the sum of the weights.

    Args:
        scores: (B, C) cosines of queries and documents.
        labels: (B, C) at least 0; a negative one takes a document out of the query's pairs.
        scale: of the cosines; they differ by less than 2, where the logarithm is still almost straight.

    Returns:
        a scalar; 0 where no two labels differ.
    """
    queries, right = torch.nonzero(labels > 0, as_tuple=True)  # (P,) each
    margins = scores[queries] - scores[queries, right][:, None]  # (P, C)
    weights = (labels[queries, right][:, None] - labels[queries]).clamp(min=0) * (labels[queries] >= 0)  # (P, C)
    return (weights * functional.softplus(scale * margins)).sum() / weights.sum().clamp(min=1e-12)


def neighbour_loss(frozen: Tensor, short: Tensor) -> Tensor:
    """Similarities of neighbours are to stay (SMEC, L_unsup): the mean of |Sim(e_i, e_j) - Sim(short_i, short_j)|.

    The first similarity is the frozen encoder's. Were it the trained layer's, equal vectors would have no loss.

    Args:
        frozen: similarities by the encoder.
        short: the same pairs' by the shorter vectors.
    """
    return (frozen - short).abs().mean()


def recovery_loss(moved: Tensor, original: Tensor) -> Tensor:
    """How far vectors were moved: the mean length of the difference (the adaptors' L_rec).

    Args:
        moved: (B, d).
        original: (B, d).
    """
    return (moved - original).square().sum(dim=1).add(1e-12).sqrt().mean()
