from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.collaborative.cooccurrence import count_pairs
from recsys.collaborative.vectors import collaborative_vectors

SEQUENCES = st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=6)


def flatten(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, sequences)])
    return offsets, np.asarray([item for sequence in sequences for item in sequence], dtype=np.int32)


@given(SEQUENCES, st.integers(1, 4))
def test_pair_counts_equal_a_naive_count(sequences: list[list[int]], window: int) -> None:
    offsets, items = flatten(sequences)
    naive: Counter[tuple[int, int]] = Counter()
    for sequence in sequences:
        for p, left in enumerate(sequence):
            for q in range(p + 1, min(p + window, len(sequence) - 1) + 1):
                naive[min(left, sequence[q]), max(left, sequence[q])] += window + 1 - (q - p)
    expected = {pair: count for pair, count in naive.items() if pair[0] != pair[1]}
    found = count_pairs(offsets, items, window=window, num_items=7)
    assert (
        dict(zip(zip(found.a.tolist(), found.b.tolist(), strict=True), found.weight.tolist(), strict=True)) == expected
    )


def test_items_seen_together_lie_close() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.permutation(5) + 5 * (u % 4) for u in range(200)]
    offsets, items = flatten([group.tolist() for group in groups])
    vectors = collaborative_vectors(
        count_pairs(offsets, items, window=3, num_items=21), num_items=21, dimension=4, seed=0
    )
    cosine = vectors @ vectors.T
    assert cosine[0, 4] > 0.9
    assert cosine[0, 5] < 0.1
    assert not vectors[20].any()


def test_vectors_are_deterministic_and_unit_length() -> None:
    offsets, items = flatten([[0, 1, 2, 3], [3, 2, 1], [4, 0, 1]])
    pairs = count_pairs(offsets, items, window=2, num_items=5)
    one, two = (collaborative_vectors(pairs, num_items=5, dimension=3, seed=7) for _ in range(2))
    assert (one == two).all()
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1.0, rtol=1e-5)


def test_no_pairs_give_zero_vectors() -> None:
    offsets, items = flatten([[0], [1]])
    pairs = count_pairs(offsets, items, window=2, num_items=3)
    assert not collaborative_vectors(pairs, num_items=3, dimension=4, seed=0).any()
