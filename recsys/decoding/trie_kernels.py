"""Compiled loops over a trie's arrays: finding nodes, and counting what is live below them.

Shared words: m numbers in, n_d nodes of a depth, sets as bits (`recsys.decoding.packed`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys.decoding.packed import compiled, compiled_long

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bits = npt.NDArray[np.uint8]
    Bools = npt.NDArray[np.bool_]
    Words = npt.NDArray[np.uint64]
    Start = npt.NDArray[np.integer]
    Counts = npt.NDArray[np.int32]


@compiled
def _ones(word: np.uint64) -> np.int64:
    """Set bits of a word."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def _start(words: Words, sample: Start, leaf: np.int64) -> np.int64:
    """Place of the leaf's bit, counted from the last sample before it."""
    if not len(sample):
        return np.int64(leaf)
    at = np.int64(sample[leaf >> 6])
    return _select(words, at, words[at >> 6], leaf & 63)


@compiled
def _select(words: Words, at: np.int64, word: np.uint64, left: np.int64) -> np.int64:
    """Place of the set bit that stands `left` set bits behind the one at a place; `word` is the place's."""
    place = at >> 6
    word = word >> np.uint64(at & 63)
    count = _ones(word)
    while left >= count:
        left -= count
        place += 1
        at = place << 6
        word = words[place]
        count = _ones(word)
    for _ in range(left):
        word &= word - np.uint64(1)
    return at + _ones((word ^ (word - np.uint64(1))) >> np.uint64(1))


@compiled
def starts(words: Words, sample: Start, leaves: Ints) -> Ints:
    """(m,) where the items of leaves begin."""
    found = np.empty(len(leaves), np.int64)
    for at, leaf in enumerate(leaves):
        found[at] = _start(words, sample, leaf)
    return found


@compiled
def first_items(
    leaves: Ints,
    scores: npt.NDArray[np.floating],
    items: Bits,
    words: Words,
    sample: Start,
    shared: Bits,
    excluded: Ints,
    k: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.floating]]:
    """The first k items of leaves that may be shown, each with its leaf's score.

    Args:
        leaves: (m,) best first.
        scores: (m,) of the leaves.
        items: (I, w) items by leaf, packed.
        words: see `SidTrie.leaf_words`.
        sample: see `SidTrie.leaf_sample`.
        shared: set of items that may be shown; the empty set stands for every item.
        excluded: (e,) ascending items that may not.
        k: at most so many.
    """
    found, values = np.empty(k, np.int32), np.empty(k, scores.dtype)
    count = 0
    for place, leaf in enumerate(leaves):
        for at in range(_start(words, sample, leaf), _start(words, sample, leaf + 1)):
            item = np.int64(0)
            for byte in range(items.shape[1]):
                item |= np.int64(items[at, byte]) << (8 * byte)
            if len(shared) and not (shared[item >> 3] >> (item & 7)) & 1:
                continue
            if len(excluded):
                near = np.searchsorted(excluded, item)
                if near < len(excluded) and excluded[near] == item:
                    continue
            found[count], values[count] = item, scores[place]
            count += 1
            if count == k:
                return found, values
    return found[:count], values[:count]


@compiled
def parents(start: Start, nodes: Ints) -> Ints:
    """(m,) parent of each node; every parent has a child, so that `start` rises strictly."""
    found = np.empty(len(nodes), np.int64)
    for at, node in enumerate(nodes):
        low, left = 0, len(start) - 1
        while left > 1:  # written so that the comparison becomes a choice and not a jump
            half = left >> 1
            low = low + half if start[low + half] <= node else low
            left -= half
        found[at] = low
    return found


@compiled
def children(start: Start, code: npt.NDArray[np.integer], nodes: Ints, codes: Ints) -> Ints:
    """(m,) child of each node by its code, -1 where there is none or the node is -1."""
    found = np.empty(len(nodes), np.int64)
    for at, node in enumerate(nodes):
        found[at] = -1
        if node < 0:
            continue
        low, end = np.int64(start[node]), np.int64(start[node + 1])
        high = end
        while low < high:
            middle = (low + high) >> 1
            if np.int64(code[middle]) < codes[at]:
                low = middle + 1
            else:
                high = middle
        if low < end and np.int64(code[low]) == codes[at]:
            found[at] = low
    return found


@compiled
def live_below(shared: Bits, items: Bits, words: Words, sample: Start, leaves: Ints) -> Counts:
    """(m,) items of leaves that are in a set; the empty set stands for every item.

    Args:
        shared: set of items.
        items: (I, w) items by leaf, packed.
        words: see `SidTrie.leaf_words`.
        sample: see `SidTrie.leaf_sample`.
        leaves: (m,).
    """
    count = len(leaves)
    found, first = np.empty(count, np.int32), leaves.copy()
    # pass after pass: the loads of one do not wait for each other, as those of one leaf do
    if len(sample):
        word = np.empty(count, np.uint64)
        for at in range(count):
            first[at] = sample[leaves[at] >> 6]
        for at in range(count):
            word[at] = words[first[at] >> 6]
        for at in range(count):
            first[at] = _select(words, first[at], word[at], leaves[at] & 63)
    item = np.zeros(count, np.int64)
    for at in range(count):
        for byte in range(items.shape[1]):
            item[at] |= np.int64(items[first[at], byte]) << (8 * byte)
    for at in range(count):
        found[at] = (shared[item[at] >> 3] >> (item[at] & 7)) & 1 if len(shared) else 1
    if len(words):
        for at in range(count):
            place = first[at] + 1
            while not (words[place >> 6] >> np.uint64(place & 63)) & np.uint64(1):
                more = np.int64(0)
                for byte in range(items.shape[1]):
                    more |= np.int64(items[place, byte]) << (8 * byte)
                found[at] += (shared[more >> 3] >> (more & 7)) & 1 if len(shared) else 1
                place += 1
    return found


@compiled_long
def count_live(shared: Bits, items: Bits, words: Words, parent: Start, counts: Counts, alive: Bits) -> None:
    """One pass over the items by leaf: fill the live items per node one above the leaves, and the live leaves.

    Args:
        shared: set of items.
        items: (I, w) items by leaf, packed.
        words: see `SidTrie.leaf_words`.
        parent: (n_{L-1} + 1,) where the leaves of each node begin.
        counts: (n_{L-1},) zeros, filled.
        alive: set of leaves, empty, filled.
    """
    leaf, above = -1, 0
    for place in range(len(items)):
        if not len(words) or (words[place >> 6] >> np.uint64(place & 63)) & np.uint64(1):
            leaf += 1
            if leaf >= parent[above + 1]:
                above += 1
        item = np.int64(0)
        for byte in range(items.shape[1]):
            item |= np.int64(items[place, byte]) << (8 * byte)
        if (shared[item >> 3] >> (item & 7)) & 1:
            counts[above] += 1
            alive[leaf >> 3] |= np.uint8(1 << (leaf & 7))


@compiled
def matches(ordered: Ints, keys: Ints) -> tuple[Ints, Ints]:
    """(h,) places in `keys` and (h,) in the ascending numbers, wherever they agree."""
    low = np.empty(len(keys), np.int64)
    total = 0
    for at, key in enumerate(keys):
        first, end = 0, len(ordered)
        while first < end:
            middle = (first + end) >> 1
            if ordered[middle] < key:
                first = middle + 1
            else:
                end = middle
        low[at] = first
        while first < len(ordered) and ordered[first] == key:
            first += 1
            total += 1
    which, where = np.empty(total, np.int64), np.empty(total, np.int64)
    found = 0
    for at, key in enumerate(keys):
        place = low[at]
        while place < len(ordered) and ordered[place] == key:
            which[found], where[found] = at, place
            found += 1
            place += 1
    return which, where


@compiled
def recount(counts: Counts, alive: Bits, nodes: Ints, step: Ints) -> None:
    """Add a step to the count of each node, one after the other, and keep the set `alive` at counts > 0.

    Args:
        counts: (n_d,).
        alive: set of nodes.
        nodes: (m,); -1 stands for none.
        step: (m,).
    """
    for at, node in enumerate(nodes):
        if node >= 0:
            counts[node] += step[at]
            one = np.uint8(1 << (node & 7))
            if counts[node] > 0:
                alive[node >> 3] |= one
            else:
                alive[node >> 3] &= np.uint8(255) ^ one


@compiled
def distinct(items: npt.NDArray[np.integer]) -> Ints:
    """Each once, ascending."""
    found = np.sort(items.astype(np.int64))
    at = 0
    for item in found:
        if not at or found[at - 1] != item:
            found[at] = item
            at += 1
    return found[:at]


@compiled
def leaves_of_live(items: Ints, shared: Bits, item_leaf: npt.NDArray[np.uint8]) -> Ints:
    """The leaves of those items that are in a set, ascending, with repetition.

    Args:
        items: (m,).
        shared: set of items; the empty set stands for every item.
        item_leaf: (I, w) packed.
    """
    found = np.empty(len(items), np.int64)
    at = 0
    for item in items:  # no jump depends on what is loaded, so that the loads do not wait for each other
        leaf = np.int64(0)
        for byte in range(item_leaf.shape[1]):
            leaf |= np.int64(item_leaf[item, byte]) << (8 * byte)
        found[at] = leaf
        at += (shared[item >> 3] >> (item & 7)) & 1 if len(shared) else 1
    return np.sort(found[:at])


@compiled
def emptied(nodes: Ints, counts: npt.NDArray[np.integer]) -> Ints:
    """The nodes that are named as often as they have live items.

    Args:
        nodes: (m,) ascending, with repetition.
        counts: (m,) live items of each.
    """
    found = np.empty(len(nodes), np.int64)
    at = run = 0
    for place, node in enumerate(nodes):
        run += 1
        if place + 1 == len(nodes) or nodes[place + 1] != node:
            if counts[place] == run:
                found[at] = node
                at += 1
            run = 0
    return found[:at]


@compiled
def above(start: Start, nodes: Ints, counts: Counts) -> tuple[Ints, Ints]:
    """`parents`, and `emptied` of them by the counts of all nodes of their depth.

    Args:
        start: (n_d + 1,) where the children of each node begin.
        nodes: (m,) of the depth below, ascending, with repetition.
        counts: (n_d,) live items.
    """
    found = parents(start, nodes)
    return found, emptied(found, counts[found])


@compiled
def shown(shared: Bits, excluded: Ints, items: Ints) -> Bools:
    """(n,) whether each item is in a set, the empty set standing for every item, and not among (m,) ascending ones."""
    found = np.empty(len(items), np.bool_)
    for at, item in enumerate(items):
        found[at] = not len(shared) or (shared[item >> 3] >> (item & 7)) & 1
        if len(excluded):
            near = np.searchsorted(excluded, item)
            if near < len(excluded) and excluded[near] == item:
                found[at] = False
    return found
