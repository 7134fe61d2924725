"""Masks of a request against sets of items in Python."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.decoding.eligibility import Eligibility, EligibilityIndex
from recsys.decoding.trie import SidTrie
from recsys.errors import InputError

SIZES = [(7,), (3, 4), (2, 30, 5), (4, 3, 2, 3)]


@st.composite
def requests(draw: st.DrawFn) -> tuple[SidTrie, list[tuple[int, ...]], np.ndarray | None, np.ndarray]:
    """A trie whose leaves hold one item or many, its semantic IDs, a shared set or none, and an excluded list."""
    sizes = draw(st.sampled_from(SIZES))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    count = draw(st.integers(1, 150))
    codes = np.stack([rng.integers(size, size=count) for size in sizes], axis=1)
    sets = [None, *(rng.random(count) < share for share in (0.0, 0.4, 1.0))]
    shared = draw(st.sampled_from(range(4)).map(lambda choice: sets[choice]))
    excluded = rng.integers(count, size=draw(st.integers(0, 2 * count)))
    return SidTrie.build(codes, sizes), [tuple(row) for row in codes.tolist()], shared, excluded


@given(requests())
def test_a_mask_hides_what_has_no_item_left(
    request_: tuple[SidTrie, list[tuple[int, ...]], np.ndarray | None, np.ndarray],
) -> None:
    trie, codes, shared, excluded = request_
    live = set(range(len(codes))) if shared is None else set(np.flatnonzero(shared).tolist())
    kept = live - set(excluded.tolist())
    mask = EligibilityIndex(trie).masks(Eligibility(shared, [excluded]), 1)[0]

    assert mask.eligible == len(kept)
    assert mask.excluded.tolist() == sorted(set(excluded.tolist()))
    every = np.arange(len(codes))
    assert mask.keeps(every).tolist() == [item in kept for item in every.tolist()]
    for depth in range(1, trie.levels + 1):
        prefixes = sorted({row[:depth] for row in codes})
        led, stays = ({codes[item][:depth] for item in items} for items in (live, kept))
        expected = [node for node, prefix in enumerate(prefixes) if prefix in led - stays]
        assert mask.dead[depth - 1].tolist() == expected


def test_a_request_without_a_list_hides_nothing() -> None:
    trie = SidTrie.build(np.array([[0, 1], [1, 0], [1, 1]]), (2, 2))
    first, second = EligibilityIndex(trie).masks(Eligibility(), 2)
    assert (first.eligible, second.eligible) == (3, 3)
    assert first.keeps(np.array([2, 0])).tolist() == [True, True]


@pytest.mark.parametrize("item", [-1, 3])
def test_an_excluded_item_outside_the_catalogue_is_refused(item: int) -> None:
    trie = SidTrie.build(np.array([[0, 1], [1, 0], [1, 1]]), (2, 2))
    with pytest.raises(InputError, match="excluded"):
        EligibilityIndex(trie).masks(Eligibility(None, [np.array([0, item])]), 1)
