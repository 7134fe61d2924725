"""Losses against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.smec.losses import neighbour_loss, rank_loss, recovery_loss


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5), st.floats(0.5, 20))
def test_rank_loss_is_the_sum_over_ordered_pairs(seed: int, rows: int, columns: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.randint(0, 3, (rows, columns), generator=generator).double()
    total = weight = 0.0
    for i in range(rows):
        for j in range(columns):
            for k in range(columns):
                margin = max(float(labels[i, j] - labels[i, k]), 0.0)
                total += margin * math.log1p(math.exp(scale * float(scores[i, k] - scores[i, j])))
                weight += margin
    assert float(rank_loss(scores, labels, scale=scale)) == pytest.approx(total / max(weight, 1e-12), rel=1e-9)


def test_rank_loss_falls_when_a_right_document_rises() -> None:
    labels = torch.tensor([[1.0, 0.0, 0.0]])
    worse, better = (rank_loss(torch.tensor([[s, 0.5, 0.1]]), labels, scale=10.0) for s in (0.2, 0.8))
    assert better < worse


def test_neighbour_loss_is_the_mean_absolute_difference() -> None:
    assert float(neighbour_loss(torch.tensor([[0.5, 1.0]]), torch.tensor([[0.25, 1.5]]))) == pytest.approx(0.375)


def test_recovery_loss_is_a_mean_length_with_a_gradient_at_zero() -> None:
    moved = torch.zeros(2, 3, requires_grad=True)
    loss = recovery_loss(moved, torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]))
    assert float(loss.detach()) == pytest.approx(2.5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert moved.grad is not None
    assert bool(moved.grad.isfinite().all())


def test_a_document_taken_out_changes_no_rank_loss() -> None:
    generator = torch.Generator().manual_seed(3)
    scores, labels = torch.randn(4, 6, generator=generator), torch.zeros(4, 6)
    labels[:, 0] = 1
    labels[1, 4] = 1
    labels[:, 5] = -1
    torch.testing.assert_close(rank_loss(scores, labels, scale=3.0), rank_loss(scores[:, :5], labels[:, :5], scale=3.0))
