"""The trie of semantic IDs as CSR arrays: node ids in, contiguous child ranges out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from recsys.decoding import trie_kernels
from recsys.decoding.packed import Packed
from recsys.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

_STRIDE = 64  # leaves per sample of their starts
_KEY_BITS = 63


@dataclass(frozen=True, slots=True, eq=False)
class SidTrie:
    """All prefixes of a catalog's semantic IDs.

    The nodes of one depth are numbered in lexicographic order of their prefixes, so the children of a node are a
    contiguous range of the next depth. Depth 0 is the root, depth L the complete semantic IDs (leaves). Items stand in
    the order of their leaves; what is held beside the children is one number per item in either direction, and one bit
    per item that tells where a leaf begins.

    Attributes:
        sizes: codebook sizes T_1..T_L.
        child_start: for depth d in 0..L-1, (n_d + 1,) int32 (int64 beyond 2^31 nodes); node r's children are
            child_start[d][r : r + 2].
        node_code: for depth d in 1..L (index d - 1), (n_d,) last code of each node in the smallest unsigned type.
        item_leaf: (I,) the leaf of each item.
        leaf_item: (I,) items by leaf, inside a leaf by preference (`preferring`), else by item index.
        leaf_words: (I // 64 + 1,) uint64, a bit where a leaf begins in `leaf_item` and one behind the last item;
            empty where every leaf holds one item.
        leaf_sample: where every 64th leaf begins; empty as above.
    """

    sizes: tuple[int, ...]
    child_start: tuple[npt.NDArray[np.integer], ...]
    node_code: tuple[npt.NDArray[np.unsignedinteger], ...]
    item_leaf: Packed
    leaf_item: Packed
    leaf_words: npt.NDArray[np.uint64]
    leaf_sample: npt.NDArray[np.integer]

    @property
    def levels(self) -> int:
        """L, the number of codes of a semantic ID."""
        return len(self.sizes)

    @property
    def items(self) -> int:
        """I, the number of items."""
        return len(self.leaf_item)

    @property
    def nbytes(self) -> int:
        """Bytes held, children and items."""
        arrays = (*self.child_start, *self.node_code, self.leaf_words, self.leaf_sample)
        return sum(array.nbytes for array in arrays) + self.item_leaf.nbytes + self.leaf_item.nbytes

    @property
    def item_node(self) -> Ints:
        """(I, L) int64, the node of each item at depths 1..L; computed at every call, for training and building."""
        return self.paths(np.arange(self.items))

    @property
    def bucket_items(self) -> npt.NDArray[np.int32]:
        """(I,) int32 items by leaf; computed at every call."""
        return self.leaf_item.whole().astype(np.int32)

    @property
    def bucket_start(self) -> Ints:
        """(n_L + 1,) int64, where the items of each leaf begin; computed at every call."""
        return self.starts(np.arange(self.nodes(self.levels) + 1))

    def nodes(self, depth: int) -> int:
        """Number of nodes at a depth in 0..L."""
        return 1 if depth == 0 else len(self.node_code[depth - 1])

    def starts(self, leaves: Ints) -> Ints:
        """(m,) int64, where the items of leaves begin among the items by leaf; leaf n_L stands for the end."""
        return trie_kernels.starts(self.leaf_words, self.leaf_sample, leaves)

    def first_items(
        self,
        leaves: Ints,
        scores: npt.NDArray[np.floating],
        shared: npt.NDArray[np.uint8],
        excluded: Ints,
        k: int,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.floating]]:
        """See `trie_kernels.first_items`."""
        return trie_kernels.first_items(
            leaves, scores, self.leaf_item.data, self.leaf_words, self.leaf_sample, shared, excluded, k
        )

    def leaves(self, items: Ints) -> Ints:
        """(m,) int64 leaf of each item."""
        return self.item_leaf.take(items)

    def paths(self, items: Ints) -> Ints:
        """(m, L) int64, the nodes of items at depths 1..L."""
        return np.stack(list(self.ascend(self.leaves(items)))[::-1], axis=1)

    def ascend(self, leaves: Ints) -> Iterator[Ints]:
        """The (m,) nodes above leaves at depths L, L - 1, .., 1."""
        nodes = leaves
        yield nodes
        for start in self.child_start[:0:-1]:
            nodes = trie_kernels.parents(start, nodes)
            yield nodes

    def leaf_ranges(self) -> tuple[npt.NDArray[np.integer], ...]:
        """For depth 0..L-1, (n_d + 1,): the leaves below node r are range(start[r], start[r + 1])."""
        ranges = [self.child_start[-1]]
        for start in self.child_start[-2::-1]:
            ranges.append(ranges[-1][start])
        return tuple(reversed(ranges))

    def preferring(self, prior: npt.NDArray[np.number]) -> SidTrie:
        """The same trie with the items inside a leaf by falling preference, ties to the smaller item index.

        Args:
            prior: (I,).

        Returns:
            This very trie where that is their order already.
        """
        start = self.bucket_start
        counts = np.diff(start)
        place = np.flatnonzero(np.repeat(counts > 1, counts))  # only these can move
        items = self.leaf_item.take(place)
        leaf = np.repeat(np.arange(len(counts)), counts)[place]
        order = np.lexsort((items, -np.asarray(prior)[items], leaf))
        if (items[order] == items).all():
            return self
        whole = self.leaf_item.whole()
        whole[place] = items[order]
        return replace(self, leaf_item=Packed.of(whole, self.items))

    @classmethod
    def build(cls, codes: npt.NDArray[np.integer], sizes: tuple[int, ...]) -> SidTrie:
        """Build the trie of a catalog.

        Args:
            codes: (I, L) integers, 0 <= codes[:, l] < sizes[l].
            sizes: codebook sizes.

        Raises:
            DataError: no items, wrong shape or a code out of range.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != len(sizes):
            raise DataError(f"codes must have {len(sizes)} columns", field="codes", value=codes.shape)
        if not len(codes):
            raise DataError("a catalogue without items has no trie", field="codes", value=codes.shape)
        if codes.size and ((codes < 0).any() or (codes >= np.asarray(sizes)).any()):
            raise DataError(f"a code lies outside its codebook {sizes}", field="codes", value=int(codes.max()))
        order = _sorted(codes, sizes)  # (I,)
        count = len(order)
        child_start: list[npt.NDArray[np.integer]] = []
        node_code: list[npt.NDArray[np.unsignedinteger]] = []
        new = np.zeros(count, dtype=bool)
        new[:1] = True
        above = np.zeros(1, dtype=np.int64)  # where each node one depth up begins among the ordered items
        rank = np.zeros(count, dtype=np.int64)
        for level, size in enumerate(sizes):
            ordered = codes[:, level].astype(_unsigned(size))[order]
            new[1:] |= ordered[1:] != ordered[:-1]
            first = np.flatnonzero(new)
            np.cumsum(new, out=rank)
            rank -= 1  # (I,) node of each ordered item
            node_code.append(ordered[first])
            starts = rank[above] if count else above[:0]
            child_start.append(_narrow(np.append(starts, len(first)), len(first)))
            above = first
        item_leaf = np.empty(count, dtype=np.int64)
        item_leaf[order] = rank
        words, sample = np.empty(0, dtype=np.uint64), _narrow(above[:0], 0)
        if len(above) < count:  # some items share a leaf
            words, sample = _marks(np.append(new, True)), _narrow(np.append(above, count)[::_STRIDE], count)
        return cls(
            sizes=tuple(int(size) for size in sizes),
            child_start=tuple(child_start),
            node_code=tuple(node_code),
            item_leaf=Packed.of(item_leaf, count),
            leaf_item=Packed.of(order, count),
            leaf_words=words,
            leaf_sample=sample,
        )


def _sorted(codes: npt.NDArray[np.integer], sizes: tuple[int, ...]) -> Ints:
    """(I,) items by semantic ID, equal ones by item index."""
    count = len(codes)
    widths = [max(1, (size - 1).bit_length()) for size in sizes]
    room = max(1, (count - 1).bit_length())
    if sum(widths) + room > _KEY_BITS:
        return np.lexsort(codes.T[::-1])
    key = np.zeros(count, dtype=np.int64)  # code after code, and the item: sorting plain numbers is the fastest way
    for level, width in enumerate(widths):
        key <<= width
        key |= codes[:, level].astype(np.int64)
    key <<= room
    key |= np.arange(count)
    key.sort()
    key &= (1 << room) - 1
    return key


def _unsigned(size: int) -> type[np.unsignedinteger]:
    """The smallest type for codes below a size."""
    return next(kind for kind in (np.uint8, np.uint16, np.uint32) if size - 1 <= np.iinfo(kind).max)


def _narrow(values: Ints, largest: int) -> npt.NDArray[np.integer]:
    return values.astype(np.int32 if largest <= np.iinfo(np.int32).max else np.int64)


def _marks(marks: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """64 booleans to a word."""
    packed = np.packbits(marks, bitorder="little")
    words = np.zeros(-(-len(marks) // 64), dtype="<u8")
    words.view(np.uint8)[: len(packed)] = packed
    return words
