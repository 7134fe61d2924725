"""Small numbers in few bytes: integers of one to eight bytes each, and sets as one bit per member."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bits = npt.NDArray[np.uint8]
    Bools = npt.NDArray[np.bool_]

_Function = TypeVar("_Function", bound="Callable[..., Any]")


def compiled(function: _Function) -> _Function:
    """Compile at the first call; kept on the disk.

    The interpreter's lock is kept: these loops take about a microsecond, and a thread that gives the lock up may wait
    milliseconds until it has it again.
    """
    return cast("_Function", numba.njit(cache=True)(function))


def compiled_long(function: _Function) -> _Function:
    """The same for a pass over the catalogue, which runs without the interpreter's lock."""
    return cast("_Function", numba.njit(cache=True, nogil=True)(function))


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Non-negative integers, each in as many bytes as the largest needs.

    Attributes:
        data: (n, w) uint8, the lowest byte first.
    """

    data: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, values: npt.NDArray[np.integer], largest: int) -> Packed:
        """Pack (n,) integers that lie in 0..largest."""
        width = max(1, -(-largest.bit_length() // 8))
        whole = np.ascontiguousarray(values, dtype="<i8" if width > 4 else "<u4")
        return cls(whole.view(np.uint8).reshape(len(whole), -1)[:, :width].copy())

    def __len__(self) -> int:
        return len(self.data)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.data.nbytes

    def take(self, places: Ints) -> Ints:
        """(m,) int64, the numbers at (m,) places."""
        return unpack(self.data, places)

    def whole(self) -> Ints:
        """(n,) int64, all numbers."""
        return unpack(self.data, np.arange(len(self.data)))


@compiled
def unpack(data: npt.NDArray[np.uint8], places: Ints) -> Ints:
    """(m,) the numbers that stand at places of (n, w) bytes."""
    found = np.empty(len(places), np.int64)
    for at, place in enumerate(places):
        value = np.int64(0)
        for byte in range(data.shape[1]):
            value |= np.int64(data[place, byte]) << (8 * byte)
        found[at] = value
    return found


@compiled
def bits_at(bits: Bits, places: Ints) -> Bools:
    """(m,) whether each place is in a set."""
    found = np.empty(len(places), np.bool_)
    for at, place in enumerate(places):
        found[at] = (bits[place >> 3] >> (place & 7)) & 1
    return found


@compiled
def among(bits: Bits, flags: Bools, first: int, places: Ints) -> Bools:
    """(m,) whether each place is in a set that holds bits below `first` and flags from there on, as far as they go."""
    found = np.zeros(len(places), np.bool_)
    for at, place in enumerate(places):
        if place < first:
            found[at] = (bits[place >> 3] >> (place & 7)) & 1
        elif place - first < len(flags):
            found[at] = flags[place - first]
    return found


@compiled
def put_bits(bits: Bits, places: Ints, values: Bools) -> None:
    """Put places into a set or take them out of it, one after the other."""
    for at, place in enumerate(places):
        one = np.uint8(1 << (place & 7))
        if values[at]:
            bits[place >> 3] |= one
        else:
            bits[place >> 3] &= np.uint8(255) ^ one


def bits_of(members: Bools) -> Bits:
    """A set from (n,) booleans."""
    return np.packbits(members, bitorder="little")


def bools_of(bits: Bits, count: int) -> Bools:
    """(count,) booleans of a set."""
    return np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
