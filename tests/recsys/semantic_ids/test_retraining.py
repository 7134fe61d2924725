from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.semantic_ids.retraining import changed_prefixes, match_codes


def renamed(codes: np.ndarray, order: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.argsort(order[level])[codes[:, level]] for level in range(codes.shape[1])], axis=1)


@given(st.integers(0, 10_000), st.integers(0, 20))
def test_a_mere_renaming_is_undone(seed: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.integers(0, 5, (items, 3)).astype(np.int32)
    names = [rng.permutation(5) for _ in range(3)]
    after = np.stack([names[level][before[:, level]] for level in range(3)], axis=1).astype(np.int32)
    order = match_codes(before, after, (5, 5, 5))
    np.testing.assert_array_equal(renamed(after, order), before)
    assert changed_prefixes(before, renamed(after, order)).tolist() == [0, 0, 0]


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_the_first_level_keeps_as_many_items_as_any_renaming_can(seed: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.integers(0, 4, (2, items, 1)).astype(np.int32)
    best = max(
        sum(name[a] == b for a, b in zip(after[:, 0], before[:, 0], strict=True))
        for name in itertools.permutations(range(4))
    )
    (order,) = match_codes(before, after, (4,))
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert (renamed(after, [order]) == before).sum() == best


def test_later_levels_are_matched_where_the_prefix_is_the_same() -> None:
    # Three items moved to another first code; the second level must be named by the two that stayed.
    before = np.array([[0, 0], [0, 1], [1, 0], [1, 0], [1, 0]] + [[1, 2]] * 4, np.int32)
    after = np.array([[0, 1], [0, 0], [2, 0], [2, 0], [2, 0]] + [[1, 2]] * 4, np.int32)
    order = match_codes(before, after, (3, 3))
    assert [level.tolist() for level in order] == [[0, 1, 2], [1, 0, 2]]


def test_codes_without_items_keep_their_number_where_it_is_free() -> None:
    order = match_codes(np.array([[0]], np.int32), np.array([[3]], np.int32), (5,))
    assert order[0].tolist() == [3, 1, 2, 0, 4]


def test_a_changed_code_changes_every_longer_prefix() -> None:
    before = np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]], np.int32)
    after = np.array([[0, 0, 0], [1, 1, 0], [2, 0, 2], [0, 3, 3]], np.int32)
    assert changed_prefixes(before, after).tolist() == [0.25, 0.5, 0.75]
    assert changed_prefixes(before[:0], after[:0]).tolist() == [0, 0, 0]
