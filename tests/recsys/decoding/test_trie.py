"""The trie, its packed numbers and its loops against Python's own sorting and dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.decoding import trie_kernels
from recsys.decoding.item_set import ItemSet
from recsys.decoding.packed import Packed, among, bits_at, bits_of, bools_of, put_bits
from recsys.decoding.trie import SidTrie
from recsys.errors import DataError

SIZES = [(7,), (3, 4), (2, 300, 5), (70_000,) * 4, (1, 2, 1)]  # the widest do not fit into one sorting key


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    sizes = draw(st.sampled_from(SIZES))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    count, used = draw(st.integers(1, 300)), draw(st.sampled_from([2, 5, 300]))
    return np.stack([rng.integers(min(size, used), size=count) for size in sizes], axis=1), sizes


@given(catalogues())
def test_nodes_are_numbered_as_prefixes_are_sorted(given: tuple[np.ndarray, tuple[int, ...]]) -> None:
    codes, sizes = given
    trie = SidTrie.build(codes, sizes)
    rows = [tuple(row) for row in codes.tolist()]
    for depth in range(1, len(sizes) + 1):
        prefixes = sorted({row[:depth] for row in rows})
        assert trie.nodes(depth) == len(prefixes)
        assert trie.node_code[depth - 1].tolist() == [prefix[-1] for prefix in prefixes]
        assert trie.item_node[:, depth - 1].tolist() == [prefixes.index(row[:depth]) for row in rows]
        above = sorted({row[: depth - 1] for row in rows})
        first = [next(n for n, prefix in enumerate(prefixes) if prefix[:-1] == parent) for parent in above]
        assert trie.child_start[depth - 1].tolist() == [*first, len(prefixes)]


@given(catalogues(), st.integers(0, 99))
def test_leaves_hold_their_items_by_preference(given: tuple[np.ndarray, tuple[int, ...]], seed: int) -> None:
    codes, sizes = given
    trie, prior = SidTrie.build(codes, sizes), np.random.default_rng(seed).integers(3, size=len(codes))
    rows = [tuple(row) for row in codes.tolist()]
    preferring = trie.preferring(prior)
    assert trie.bucket_items.tolist() == sorted(range(len(rows)), key=lambda item: (rows[item], item))
    assert preferring.bucket_items.tolist() == sorted(
        range(len(rows)), key=lambda item: (rows[item], -prior[item], item)
    )
    assert preferring.preferring(prior) is preferring
    starts = [sum(row < leaf for row in rows) for leaf in sorted(set(rows))]
    assert trie.bucket_start.tolist() == [*starts, len(rows)]


@given(catalogues(), st.integers(0, 99))
def test_live_items_are_counted_below_leaves(given: tuple[np.ndarray, tuple[int, ...]], seed: int) -> None:
    codes, sizes = given
    trie = SidTrie.build(codes, sizes)
    shown = np.random.default_rng(seed).random(len(codes)) < 0.5
    leaves = np.arange(trie.nodes(len(sizes)))
    held = (trie.leaf_item.data, trie.leaf_words, trie.leaf_sample, leaves)
    own = trie.item_node[:, -1]
    assert (
        trie_kernels.live_below(bits_of(shown), *held).tolist()
        == np.bincount(own[shown], minlength=len(leaves)).tolist()
    )
    assert trie_kernels.live_below(bits_of(shown[:0]), *held).tolist() == np.bincount(own).tolist()


def test_long_runs_of_items_in_one_leaf_are_found() -> None:
    """More items in a leaf than bits in many words, so that most words hold no mark."""
    counts = np.array([1, 5000, 1, 1, 700] * 40)
    codes = np.repeat(np.arange(len(counts)), counts)[:, None]
    trie = SidTrie.build(codes, (256,))
    np.testing.assert_array_equal(trie.bucket_start, np.concatenate([[0], np.cumsum(counts)]))


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_packed_numbers_come_back(numbers: list[int]) -> None:
    packed = Packed.of(np.array(numbers), max(numbers))
    assert packed.whole().tolist() == numbers
    assert packed.take(np.array([len(numbers) - 1, 0])).tolist() == [numbers[-1], numbers[0]]
    assert packed.nbytes == len(packed) * max(1, -(-max(numbers).bit_length() // 8))


@settings(max_examples=50)
@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 59), st.booleans()), max_size=30), st.integers(0, 20))
def test_a_set_holds_what_was_put(first: int, puts: list[tuple[int, bool]], room: int) -> None:
    members = set(range(0, first, 2))
    found = ItemSet.of(np.arange(first) % 2 == 0, first)
    for item, value in puts:
        found.put(np.array([item]), np.array([value]))
        members = members | {item} if value else members - {item}
    items = np.arange(80)
    assert found.holds(items).tolist() == [item in members for item in items.tolist()]
    assert found.added().tolist() == sorted(item for item in members if item >= first)
    other = ItemSet.of(np.ones(first + room, dtype=bool), first)
    other.intersect(found)
    assert np.flatnonzero(other.holds(items)).tolist() == sorted(item for item in members if item < first + room)


def test_bits_and_booleans_say_the_same() -> None:
    members = np.random.default_rng(0).random(77) < 0.5
    bits = bits_of(members)
    np.testing.assert_array_equal(bools_of(bits, 77), members)
    np.testing.assert_array_equal(bits_at(bits, np.arange(77)), members)
    put_bits(bits, np.array([3, 3, 76]), np.array([True, False, True]))
    assert bits_at(bits, np.array([3, 76])).tolist() == [False, True]
    assert among(bits, np.array([True, False]), 77, np.array([76, 77, 78, 79])).tolist() == [True, True, False, False]


@pytest.mark.parametrize("codes", [np.zeros((3, 2), int), np.array([[0, 3]]), np.array([[-1, 0]])])
def test_codes_outside_their_codebooks_are_refused(codes: np.ndarray) -> None:
    with pytest.raises(DataError, match="codes"):
        SidTrie.build(codes, (2, 3) if codes.shape[0] == 1 else (2, 3, 4))


def test_codes_of_any_integer_type_make_the_same_trie_and_none_make_none() -> None:
    codes = np.array([[1, 0], [0, 2]], dtype=np.uint64)
    np.testing.assert_array_equal(SidTrie.build(codes, (2, 3)).leaves(np.arange(2)), [1, 0])
    with pytest.raises(DataError, match="without items"):
        SidTrie.build(codes[:0], (2, 3))
