"""Verifiers: which codes may follow a prefix, and whether a code may, without a model call.

Three structures hold the same children of the same trie nodes and give the same answers:

    CSR children   ranges of node numbers        4 bytes per node of the upper depth, 1 or 2 per child
    bitmap         T bits per node, and ranges   T / 8 + 4 bytes per node of the upper depth
    sorted keys    node * T + code, ascending    4 or 8 bytes per child: a hash set's answers by binary search

`rows` lists the children of prefixes, which is what the decoders ask; `find` asks for one child each, which is what a
draft that was written without looking is checked by. Measured by `windfire bench decoding`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

import numpy as np

from recsys.decoding import kernels, trie_kernels
from recsys.decoding.ragged import ranges

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.decoding.trie import SidTrie

    Ints = npt.NDArray[np.int64]

Structure = Literal["csr", "bitmap", "sorted_keys"]


class Rows(NamedTuple):
    """The children of some prefixes, one row behind the other.

    Attributes:
        degree: (M,) int64 children of each prefix.
        child: (degree.sum(),) int64 trie nodes of the next depth, ascending inside a row.
        codes: (degree.sum(),) int64 their last codes.
    """

    degree: Ints
    child: Ints
    codes: Ints


class Verifier(Protocol):
    """The children of one depth's nodes."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    def rows(self, nodes: Ints) -> Rows:
        """The children of (M,) nodes."""

    def find(self, nodes: Ints, codes: Ints) -> Ints:
        """(M,) int64 child of each (node, code), -1 where there is none; codes lie in 0..T-1."""


class CsrChildren:
    """Ranges of child nodes and the last code of each.

    Args:
        trie: the prefixes.
        level: depth of the upper nodes, 0..L-1.
    """

    def __init__(self, trie: SidTrie, level: int) -> None:
        self._start = trie.child_start[level]
        self._code = trie.node_code[level]

    @property
    def nbytes(self) -> int:
        """See `Verifier.nbytes`."""
        return self._start.nbytes + self._code.nbytes

    def rows(self, nodes: Ints) -> Rows:
        """See `Verifier.rows`."""
        return Rows(*kernels.csr_rows(self._start, self._code, nodes))

    def find(self, nodes: Ints, codes: Ints) -> Ints:
        """See `Verifier.find`: a binary search inside every row."""
        return trie_kernels.children(self._start, self._code, nodes, codes)


class Bitmap:
    """One bit per (node, code); a child's number is the rank of its bit.

    Args:
        trie: the prefixes.
        level: depth of the upper nodes, 0..L-1.
    """

    def __init__(self, trie: SidTrie, level: int) -> None:
        self._start = trie.child_start[level]
        parent = np.repeat(np.arange(trie.nodes(level)), np.diff(self._start))
        self._words = np.zeros((trie.nodes(level), _words(trie.sizes[level])), dtype=np.uint64)  # (n, ceil(T / 64))
        code = trie.node_code[level].astype(np.uint64)
        np.bitwise_or.at(self._words, (parent, code >> np.uint64(6)), np.uint64(1) << (code & np.uint64(63)))

    @property
    def nbytes(self) -> int:
        """See `Verifier.nbytes`."""
        return self._start.nbytes + self._words.nbytes

    def rows(self, nodes: Ints) -> Rows:
        """See `Verifier.rows`."""
        bits = np.unpackbits(self._words[nodes].view(np.uint8), axis=1, bitorder="little")
        first = self._start.take(nodes).astype(np.int64)
        degree = self._start.take(nodes + 1) - first
        codes = np.flatnonzero(bits) % bits.shape[1]
        return Rows(degree, ranges(first, degree), codes)

    def find(self, nodes: Ints, codes: Ints) -> Ints:
        """See `Verifier.find`: one bit, and the number of bits before it."""
        words = self._words[nodes]  # (M, W)
        word, bit = codes >> 6, (codes & 63).astype(np.uint64)
        own = np.take_along_axis(words, word[:, None], axis=1)[:, 0]
        hit = (own >> bit) & np.uint64(1)
        before = np.where(np.arange(words.shape[1]) < word[:, None], np.bitwise_count(words), 0).sum(axis=1)
        rank = before + np.bitwise_count(own & ((np.uint64(1) << bit) - np.uint64(1)))
        return np.where(hit.astype(bool), self._start.take(nodes) + rank.astype(np.int64), -1)


class SortedKeys:
    """The set of all (node, code) as ascending keys; a child's number is its key's place.

    Args:
        trie: the prefixes.
        level: depth of the upper nodes, 0..L-1.
    """

    def __init__(self, trie: SidTrie, level: int) -> None:
        self._size = trie.sizes[level]
        parent = np.repeat(np.arange(trie.nodes(level)), np.diff(trie.child_start[level]))
        keys = parent * self._size + trie.node_code[level]  # (n,)
        highest = trie.nodes(level) * self._size
        self._keys: npt.NDArray[np.signedinteger] = keys.astype(
            np.int32 if highest <= np.iinfo(np.int32).max else np.int64
        )

    @property
    def nbytes(self) -> int:
        """See `Verifier.nbytes`."""
        return self._keys.nbytes

    def rows(self, nodes: Ints) -> Rows:
        """See `Verifier.rows`."""
        lowest = nodes * self._size
        first = self._place(lowest)
        degree = self._place(lowest + self._size) - first
        child = ranges(first, degree)
        codes = self._keys.take(child).astype(np.int64) - np.repeat(lowest, degree)
        return Rows(degree, child, codes)

    def find(self, nodes: Ints, codes: Ints) -> Ints:
        """See `Verifier.find`."""
        wanted = nodes * self._size + codes
        at = self._place(wanted)
        return np.where(self._keys.take(at, mode="clip") == wanted, at, -1)

    def _place(self, keys: Ints) -> Ints:
        # of one type: else all keys would be converted for every search
        return np.searchsorted(self._keys, keys.astype(self._keys.dtype))


STRUCTURES: Final[dict[Structure, type[CsrChildren | Bitmap | SortedKeys]]] = {
    "csr": CsrChildren,
    "bitmap": Bitmap,
    "sorted_keys": SortedKeys,
}


def listing(trie: SidTrie, structure: Structure = "csr") -> tuple[Verifier, ...]:
    """One verifier per depth 0..L-1 for decoders, which list children.

    CSR children list fastest at every catalog size that was measured; the others are there to be measured against.
    """
    return tuple(STRUCTURES[structure](trie, level) for level in range(trie.levels))


def finding(trie: SidTrie) -> tuple[Verifier, ...]:
    """One verifier per depth 0..L-1 for `find` alone, chosen by size: the smaller of bitmap and sorted keys.

    Dense depths (the first two) become bitmaps, sparse ones sorted keys; the trie's own children are not needed for it.
    """
    return tuple(_smaller(trie, level) for level in range(trie.levels))


def _smaller(trie: SidTrie, level: int) -> Verifier:
    nodes, size = trie.nodes(level), trie.sizes[level]
    bitmap = trie.child_start[level].nbytes + 8 * nodes * _words(size)
    keys = (4 if nodes * size <= np.iinfo(np.int32).max else 8) * trie.nodes(level + 1)
    return Bitmap(trie, level) if bitmap <= keys else SortedKeys(trie, level)


def _words(size: int) -> int:
    """64-bit words that hold `size` bits."""
    return -(-size // 64)
