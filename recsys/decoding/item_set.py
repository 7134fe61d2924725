"""A set of items, one bit for each that the trie was frozen with and one flag for each that was added since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys.decoding.packed import among, bits_of, bools_of, put_bits

if TYPE_CHECKING:
    import numpy.typing as npt

    from recsys.decoding.packed import Bits, Bools, Ints

_ROOM = 64  # flags that a first added item makes room for


class ItemSet:
    """Changed in place by one writer at a time; may be read meanwhile.

    Args:
        bits: of the frozen items; the set's own from now on.
        first: I, the index of the first added item.
        flags: of the first added items; what lies behind them is not in the set.

    Attributes:
        bits: (ceil(I / 8),) uint8.
        flags: (room,) bool of items I, I + 1, ..; another array after it had to grow.
    """

    __slots__ = ("bits", "first", "flags")

    def __init__(self, bits: Bits, first: int, flags: Bools | None = None) -> None:
        self.bits, self.first = bits, first
        self.flags = np.zeros(0, dtype=np.bool_) if flags is None else flags

    @classmethod
    def of(cls, members: Bools, first: int) -> ItemSet:
        """From (I,) booleans, or more where they speak of added items too."""
        return cls(bits_of(members[:first]), first, members[first:].copy())

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.bits.nbytes + self.flags.nbytes

    def copy(self) -> ItemSet:
        """A set of its own with the same members."""
        return ItemSet(self.bits.copy(), self.first, self.flags.copy())

    def intersect(self, other: ItemSet) -> None:
        """Keep what is in the other set too."""
        self.bits &= other.bits
        both = min(len(self.flags), len(other.flags))
        self.flags = self.flags[:both] & other.flags[:both]

    def holds(self, items: Ints) -> Bools:
        """(m,) whether each item is a member."""
        return among(self.bits, self.flags, self.first, items)

    def put(self, items: Ints, values: Bools) -> None:
        """Make items members or not, one after the other."""
        if not len(items) or int(items.max()) < self.first:
            put_bits(self.bits, items, values)
            return
        added = items >= self.first
        put_bits(self.bits, items[~added], values[~added])
        place = items[added] - self.first
        if place.max() >= len(self.flags):
            grown = np.zeros(max(_ROOM, 2 * int(place.max() + 1)), dtype=np.bool_)
            grown[: len(self.flags)] = self.flags
            self.flags = grown
        self.flags[place] = values[added]

    def added(self) -> npt.NDArray[np.int64]:
        """The members among the added items, ascending."""
        return np.flatnonzero(self.flags) + self.first

    def bools(self) -> Bools:
        """(I,) booleans of the frozen items."""
        return bools_of(self.bits, self.first)
