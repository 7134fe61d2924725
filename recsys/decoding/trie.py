"""The trie of semantic IDs as CSR arrays: node ids in, contiguous child ranges out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recsys.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class SidTrie:
    """All prefixes of a catalog's semantic IDs.

    The nodes of one depth are numbered in lexicographic order of their prefixes, so the children of a node are a
    contiguous range of the next depth. Depth 0 is the root, depth L the complete semantic IDs (leaves).

    Attributes:
        sizes: codebook sizes T_1..T_L.
        child_start: for depth d in 0..L-1, (n_d + 1,) int64; node r's children are child_start[d][r : r + 2].
        node_code: for depth d in 1..L (index d - 1), (n_d,) int32 last code of each node.
        item_node: (I, L) int64, the node of each item at depths 1..L.
        bucket_start: (n_L + 1,) int64 into `bucket_items`.
        bucket_items: (I,) int32 items by leaf, inside a leaf by item index.
    """

    sizes: tuple[int, ...]
    child_start: tuple[npt.NDArray[np.int64], ...]
    node_code: tuple[npt.NDArray[np.int32], ...]
    item_node: npt.NDArray[np.int64]
    bucket_start: npt.NDArray[np.int64]
    bucket_items: npt.NDArray[np.int32]

    @property
    def levels(self) -> int:
        """L, the number of codes of a semantic ID."""
        return len(self.sizes)

    @property
    def items(self) -> int:
        """I, the number of items."""
        return len(self.bucket_items)

    def nodes(self, depth: int) -> int:
        """Number of nodes at a depth in 0..L."""
        return 1 if depth == 0 else len(self.node_code[depth - 1])

    @classmethod
    def build(cls, codes: npt.NDArray[np.integer], sizes: tuple[int, ...]) -> SidTrie:
        """Build the trie of a catalog.

        Args:
            codes: (I, L) integers, 0 <= codes[:, l] < sizes[l].
            sizes: codebook sizes.

        Raises:
            DataError: wrong shape or a code out of range.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != len(sizes):
            raise DataError(f"codes must have {len(sizes)} columns", field="codes", value=codes.shape)
        if codes.size and ((codes < 0).any() or (codes >= np.asarray(sizes)).any()):
            raise DataError(f"a code lies outside its codebook {sizes}", field="codes", value=int(codes.max()))
        count, levels = codes.shape
        order = np.lexsort(codes.T[::-1])  # (I,) stable: ties keep the order of item index
        ordered = codes[order]  # (I, L)
        item_node = np.empty((count, levels), dtype=np.int64)
        child_start: list[npt.NDArray[np.int64]] = []
        node_code: list[npt.NDArray[np.int32]] = []
        new = np.zeros(count, dtype=bool)
        new[:1] = True
        parent = np.zeros(count, dtype=np.int64)  # node of each ordered item one depth up
        parents = 1
        for level in range(levels):
            new = new.copy()
            new[1:] |= ordered[1:, level] != ordered[:-1, level]
            node = np.cumsum(new) - 1  # (I,)
            first = np.flatnonzero(new)
            node_code.append(ordered[first, level].astype(np.int32))
            counts = np.bincount(parent[first], minlength=parents)
            child_start.append(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
            item_node[order, level] = node
            parent, parents = node, len(first)
        bucket = np.bincount(parent, minlength=parents)
        return cls(
            sizes=tuple(int(size) for size in sizes),
            child_start=tuple(child_start),
            node_code=tuple(node_code),
            item_node=item_node,
            bucket_start=np.concatenate([[0], np.cumsum(bucket)]).astype(np.int64),
            bucket_items=order.astype(np.int32),
        )
