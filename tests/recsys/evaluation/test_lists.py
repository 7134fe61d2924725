from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.evaluation.lists import coverage, gini, invalid_rate, mean_popularity, popularity_groups

LISTS = np.asarray([[0, 1, 2], [0, 1, -1], [0, -1, -1]], dtype=np.int32)
NOTHING = np.full((2, 3), -1, dtype=np.int32)


def test_coverage_counts_each_item_once() -> None:
    assert coverage(LISTS, 4) == 0.75
    assert coverage(NOTHING, 4) == 0.0


def test_mean_popularity_is_over_all_entries() -> None:
    assert mean_popularity(LISTS, np.asarray([6, 3, 0, 9])) == (3 * 6 + 2 * 3 + 0) / 6
    assert mean_popularity(NOTHING, np.asarray([1, 1, 1, 1])) == 0.0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(6, 9))
def test_gini_is_half_the_relative_mean_difference(entries: list[int], num_items: int) -> None:
    counts = np.bincount(entries, minlength=num_items).astype(float)
    naive = np.abs(counts[:, None] - counts[None, :]).sum() / (2 * num_items * counts.sum())
    assert np.isclose(gini(np.asarray([entries], dtype=np.int32), num_items), naive)


def test_gini_at_its_ends() -> None:
    assert gini(np.asarray([[0, 1, 2, 3]], dtype=np.int32), 4) == 0.0
    assert gini(np.asarray([[2], [2]], dtype=np.int32), 4) == 0.75
    assert gini(NOTHING, 4) == 0.0


def test_invalid_entries_are_foreign_repeated_or_masked() -> None:
    lists = np.asarray([[0, 1, 1, -1], [2, 9, 3, -2]], dtype=np.int32)
    mask = [np.asarray([7]), np.asarray([3])]
    assert invalid_rate(lists, 9) == 3 / 7
    assert invalid_rate(lists, 9, mask) == 4 / 7
    assert invalid_rate(NOTHING, 9) == 0.0


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_groups_fall_in_popularity_and_hold_their_share(counts: list[int]) -> None:
    array = np.asarray(counts, dtype=np.int64)
    groups = popularity_groups(array)
    order = np.argsort(-array, kind="stable")
    assert (np.diff(groups[order]) >= 0).all()
    assert (groups[array == 0] == 2).all()
    assert 3 * array[groups == 0].sum() >= array.sum()
    assert 3 * array[groups <= 1].sum() >= 2 * array.sum()
    head = array[order][groups[order] == 0]
    assert 3 * head[:-1].sum() < max(array.sum(), 1)  # without its last item it would be too short


def test_groups_of_an_even_catalogue() -> None:
    assert popularity_groups(np.asarray([1, 1, 1, 0])).tolist() == [0, 1, 2, 2]
