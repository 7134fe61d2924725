"""The bounds of a log-prior, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.decoding.log_prior import LogPrior
from recsys.decoding.trie import SidTrie
from recsys.errors import InputError

SIZES = (3, 4, 5)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 80))
def test_a_bound_is_the_largest_prior_below(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(size, size=count) for size in SIZES], axis=1)
    trie, values = SidTrie.build(codes, SIZES), rng.standard_normal(count)
    prior = LogPrior(trie, values)
    for depth in range(3):
        expected = [values[trie.item_node[:, depth] == node].max() for node in range(trie.nodes(depth + 1))]
        assert prior.bounds[depth].tolist() == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), r"\(4,\) floating"),
        (np.zeros(4, np.int64), r"\(4,\) floating"),
        (np.array([0.0, np.nan, 0.0, 0.0]), "item 1 is not finite"),
        (np.array([0.0, 0.0, -1e39, 0.0]), "item 2 is not finite in float32"),
        (np.array([0.0, 0.0, 0.0, -np.inf]), "eligibility"),
    ],
)
def test_a_bad_prior_is_refused(values: np.ndarray, message: str) -> None:
    trie = SidTrie.build(np.array([[0, 0, 0], [1, 1, 1], [1, 2, 2], [2, 0, 4]]), SIZES)
    with pytest.raises(InputError, match=message):
        LogPrior(trie, values)
