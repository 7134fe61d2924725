from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import InputError
from recsys.evaluation.metrics import (
    KS,
    MISSED,
    mrr,
    ndcg,
    padded_lists,
    ranks_from_ranked,
    ranks_from_scores,
    recall,
    top_items,
)


class Answer(NamedTuple):
    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.floating]


def naive_rank(scores: list[float], target: int, masked: set[int]) -> int:
    before = [item for item, score in enumerate(scores) if item != target and item not in masked]
    return MISSED if target in masked else 1 + sum(scores[item] >= scores[target] for item in before)


# few distinct values, so that ties are common
cases = st.integers(2, 8).flatmap(
    lambda items: st.lists(
        st.tuples(
            st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, -math.inf]), min_size=items, max_size=items),
            st.integers(0, items - 1),
            st.lists(st.integers(0, items - 1), max_size=6),
        ),
        min_size=1,
        max_size=5,
    )
)


@given(cases)
def test_ranks_equal_the_naive_oracle(rows: list[tuple[list[float], int, list[int]]]) -> None:
    scores = np.asarray([row[0] for row in rows], dtype=np.float32)
    kept = scores.copy()
    targets = np.asarray([row[1] for row in rows])
    mask = [np.asarray(row[2], dtype=np.int32) for row in rows]
    found = ranks_from_scores(scores, targets, mask)
    assert found.tolist() == [naive_rank(s, t, set(m)) for s, t, m in rows]
    assert ranks_from_scores(scores, targets).tolist() == [naive_rank(s, t, set()) for s, t, _ in rows]
    assert np.array_equal(scores, kept)


@given(cases, st.integers(1, 9))
def test_a_complete_list_gives_the_same_rank_as_the_scores(
    rows: list[tuple[list[float], int, list[int]]], k: int
) -> None:
    scores = np.asarray([[max(value, -9.0) for value in row[0]] for row in rows], dtype=np.float32)
    targets = np.asarray([row[1] for row in rows])
    mask = [np.asarray(row[2], dtype=np.int32) for row in rows]
    lists = top_items(scores, scores.shape[1], mask)
    answers = [Answer(line[line >= 0], row[line[line >= 0]]) for line, row in zip(lists, scores, strict=True)]
    assert ranks_from_ranked(answers, targets).tolist() == ranks_from_scores(scores, targets, mask).tolist()
    assert np.array_equal(padded_lists(answers, k)[:, : scores.shape[1]], lists[:, :k])
    assert np.array_equal(top_items(scores, k, mask)[:, : scores.shape[1]], lists[:, :k])


def test_top_items_orders_equal_scores_by_index_and_stops_at_masked_ones() -> None:
    scores = np.asarray([[1.0, 3.0, 3.0, 2.0]])
    assert top_items(scores, 3, [np.asarray([3, 3])]).tolist() == [[1, 2, 0]]
    assert top_items(scores, 6, [np.asarray([0])]).tolist() == [[1, 2, 3, -1, -1, -1]]


def test_what_is_not_a_number_never_helps() -> None:
    nan = math.nan
    scores = np.asarray([[nan, 1.0, 0.0], [nan, nan, 0.0], [2.0, 1.0, 0.0]])
    assert ranks_from_scores(scores, np.asarray([1, 0, 0])).tolist() == [2, 3, 1]


def test_a_target_that_is_not_listed_is_missed() -> None:
    answer = Answer(np.asarray([4, 2], dtype=np.int32), np.asarray([0.5, 0.5]))
    assert ranks_from_ranked([answer, answer], np.asarray([4, 7])).tolist() == [2, MISSED]


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match="one target"):
        ranks_from_scores(np.zeros((2, 3)), np.zeros(3, dtype=int))
    with pytest.raises(InputError, match="mask"):
        ranks_from_scores(np.zeros((2, 3)), np.zeros(2, dtype=int), [np.zeros(0, dtype=int)])


@given(st.lists(st.one_of(st.integers(1, 60), st.just(MISSED)), min_size=1), st.sampled_from(KS))
def test_gains_equal_their_definitions(ranks: list[int], k: int) -> None:
    array = np.asarray(ranks, dtype=np.int64)
    assert recall(array, k).tolist() == [float(rank <= k) for rank in ranks]
    assert np.allclose(ndcg(array, k), [1 / math.log2(rank + 1) if rank <= k else 0 for rank in ranks])
    assert np.allclose(mrr(array, k), [1 / rank if rank <= k else 0 for rank in ranks])
