"""Measures with several right answers, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.evaluation.intervals import Interval, smallest_detectable
from recsys.evaluation.judged import Judgements, judged_gains, kept_neighbours, nearest


@given(
    st.permutations(range(12)),
    st.sets(st.integers(0, 11), min_size=1, max_size=6),
    st.integers(1, 14),
    st.lists(st.integers(1, 14), min_size=1, max_size=3),
    st.integers(-1, 11),
)
def test_gains_equal_their_definitions(
    order: list[int], right: set[int], ndcg_at: int, recall_at: list[int], own: int
) -> None:
    scores = np.zeros((1, 12))
    scores[0, order] = np.arange(12, 0, -1)
    ndcg, recall = judged_gains(
        scores, Judgements.of([sorted(right)]), ndcg_at=ndcg_at, recall_at=recall_at, own=np.array([own])
    )
    order = [item for item in order if item != own]
    gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(order[:ndcg_at]) if item in right)
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(ndcg_at, len(right))))
    assert ndcg[0] == pytest.approx(gain / ideal)
    assert recall[:, 0].tolist() == pytest.approx([len(right & set(order[:k])) / len(right) for k in recall_at])


def test_all_right_ones_first_is_worth_one() -> None:
    ndcg, recall = judged_gains(np.array([[3.0, 2.0, 1.0, 0.0]]), Judgements.of([[1, 0]]), ndcg_at=10, recall_at=[2])
    assert ndcg[0] == recall[0, 0] == 1.0


def test_judgements_are_distinct_and_never_empty() -> None:
    found = Judgements.of([[4, 2, 4], [1]])
    assert [found[query].tolist() for query in range(len(found))] == [[2, 4], [1]]
    assert found.some(np.array([1, 0]))[1].tolist() == [2, 4]
    with pytest.raises(InputError, match="query 1"):
        Judgements.of([[1], []])
    with pytest.raises(InputError, match=r"\(Q, D\)"):
        judged_gains(np.zeros((1, 4)), found, ndcg_at=1, recall_at=[1])


def test_kept_neighbours_against_enumeration() -> None:
    rng = np.random.default_rng(3)
    full, short = (rng.normal(size=(20, width)).astype(np.float32) for width in (8, 3))
    rows = np.array([0, 7, 19])
    expected = []
    for row in rows:
        sets = []
        for vectors in (full, short):
            others = sorted(
                (other for other in range(20) if other != row), key=lambda o: -float(vectors[row] @ vectors[o])
            )
            sets.append(set(others[:5]))
        expected.append(len(sets[0] & sets[1]) / 5)
    np.testing.assert_allclose(kept_neighbours(full, short, rows, 5), expected)
    assert (kept_neighbours(full, full, rows, 5) == 1).all()
    assert all(row not in found for row, found in zip(rows, nearest(full, rows, 19), strict=True))


def test_more_neighbours_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="neighbours"):
        nearest(np.eye(4, dtype=np.float32), np.array([0]), 4)


def test_the_smallest_detectable_difference_is_found_in_four_of_five_repetitions() -> None:
    rng = np.random.default_rng(1)
    error = 0.02
    difference = smallest_detectable(Interval(0.0, -1.959964 * error, 1.959964 * error))
    found = rng.normal(difference, error, 20_000) > 1.959964 * error
    assert found.mean() == pytest.approx(0.8, abs=0.01)
