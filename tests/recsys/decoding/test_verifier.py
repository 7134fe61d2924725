"""The three structures against a Python dictionary, and inside the decoder against each other."""

from __future__ import annotations

from random import Random
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.decoding.eligibility import Eligibility, EligibilityIndex
from recsys.decoding.head_beam import HeadBeam
from recsys.decoding.head_weights import HeadWeights
from recsys.decoding.trie import SidTrie
from recsys.decoding.verifier import STRUCTURES, Bitmap, SortedKeys, Structure, Verifier, finding, listing

SIZES = (3, 70, 130)  # one, two and three words of a bitmap
Prefix = tuple[int, ...]

catalogues = st.lists(st.tuples(*(st.integers(0, size - 1) for size in SIZES)), min_size=1, max_size=60)


def built(items: list[Prefix]) -> tuple[SidTrie, list[list[Prefix]]]:
    """A trie, and the prefixes of each depth in the order of its nodes."""
    trie = SidTrie.build(np.array(items, dtype=np.int32), SIZES)
    return trie, [sorted({item[:depth] for item in items}) for depth in range(len(SIZES) + 1)]


def every_verifier(trie: SidTrie) -> list[tuple[Verifier, ...]]:
    return [finding(trie), *(listing(trie, structure) for structure in STRUCTURES)]


@given(items=catalogues, rng=st.randoms(use_true_random=False))
def test_rows_are_the_children_in_order(items: list[Prefix], rng: Random) -> None:
    trie, prefixes = built(items)
    for per_level in every_verifier(trie):
        for level, verifier in enumerate(per_level):
            parents = [rng.randrange(len(prefixes[level])) for _ in range(5)]
            rows = verifier.rows(np.array(parents, dtype=np.int64))
            wanted = [
                [place for place, prefix in enumerate(prefixes[level + 1]) if prefix[:-1] == prefixes[level][parent]]
                for parent in parents
            ]
            assert rows.degree.tolist() == [len(row) for row in wanted]
            assert rows.child.tolist() == [place for row in wanted for place in row]
            assert rows.codes.tolist() == [prefixes[level + 1][place][-1] for row in wanted for place in row]


@given(items=catalogues)
def test_find_answers_every_code_of_every_node(items: list[Prefix]) -> None:
    trie, prefixes = built(items)
    for per_level in every_verifier(trie):
        for level, verifier in enumerate(per_level):
            place = {prefix: number for number, prefix in enumerate(prefixes[level + 1])}
            nodes, codes = np.divmod(np.arange(len(prefixes[level]) * SIZES[level]), SIZES[level])
            found = verifier.find(nodes, codes)
            assert found.dtype == np.int64
            wanted = [place.get((*prefixes[level][node], code), -1) for node, code in zip(nodes, codes, strict=True)]
            assert found.tolist() == wanted


@pytest.mark.parametrize("structure", get_args(Structure))
def test_no_prefix_has_no_children(structure: Structure) -> None:
    trie, _ = built([(0, 1, 2)])
    nothing = np.empty(0, dtype=np.int64)
    rows = listing(trie, structure)[1].rows(nothing)
    assert [len(part) for part in rows] == [0, 0, 0]
    assert len(listing(trie, structure)[1].find(nothing, nothing)) == 0


def test_the_finder_is_chosen_by_size() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(256, size=(40_000, 3))
    trie = SidTrie.build(codes.astype(np.int32), (256, 256, 256))
    chosen = finding(trie)
    assert [type(verifier) for verifier in chosen] == [Bitmap, Bitmap, SortedKeys]
    for level, verifier in enumerate(chosen):
        assert verifier.nbytes == min(Bitmap(trie, level).nbytes, SortedKeys(trie, level).nbytes)


@given(seed=st.integers(0, 10_000), width=st.integers(1, 40))
def test_the_decoder_answers_the_same_from_every_structure(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = (4, 6, 5)
    codes = np.stack([rng.integers(size, size=50) for size in sizes], axis=1)
    trie = SidTrie.build(codes, sizes)
    weights = HeadWeights("none", "add", tuple(rng.standard_normal((size, 8)) for size in sizes))
    hidden = rng.standard_normal((4, 8))
    excluded = [rng.choice(50, size=10, replace=False)]
    mask = EligibilityIndex(trie).masks(Eligibility(excluded=excluded), 1)[0]
    answers = [
        HeadBeam(weights, trie, structure=structure).search(hidden, width=width, leaves=width, mask=mask)
        for structure in STRUCTURES
    ]
    for leaves, scores in answers[1:]:
        np.testing.assert_array_equal(leaves, answers[0][0])
        np.testing.assert_array_equal(scores, answers[0][1])
