"""What a request asks of the items it may be shown."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import chain
from sys import getsizeof
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable

    import numpy.typing as npt


_OVERHEAD_BYTES: Final = 1_000  # of a filter, an array and their place in a dictionary


@dataclass(frozen=True, slots=True)
class CatalogFilter:
    """Conditions on attributes: alternatives inside one field, all fields together.

    Attributes:
        categories: category paths from the root; an item matches below any of them.
        brands: exact brand names.
        price_min_micros: lowest price, inclusive; items without a price do not match.
        price_max_micros: highest price, inclusive; items without a price do not match.
    """

    categories: tuple[tuple[str, ...], ...] = ()
    brands: tuple[str, ...] = ()
    price_min_micros: int | None = None
    price_max_micros: int | None = None

    @property
    def empty(self) -> bool:
        """Whether every item matches."""
        prices = self.price_min_micros, self.price_max_micros
        return not self.categories and not self.brands and prices == (None, None)

    @property
    def nbytes(self) -> int:
        """About the memory that it takes: its names come from the request and may be larger than the catalog."""
        return _OVERHEAD_BYTES + sum(map(getsizeof, chain(self.brands, *self.categories)))


class MaskCache:
    """The masks of the filters asked for last, bounded in bytes; safe to share between threads.

    Args:
        capacity_bytes: total size of what is kept.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._size = 0
        self._masks: OrderedDict[Hashable, tuple[npt.NDArray[np.bool_], int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> npt.NDArray[np.bool_] | None:
        """The mask, or None where it is not kept."""
        with self._lock:
            if key not in self._masks:
                return None
            self._masks.move_to_end(key)
            return self._masks[key][0]

    def put(self, key: Hashable, mask: npt.NDArray[np.bool_], *, key_bytes: int = 0) -> None:
        """Keep a mask; the least recently used ones make room."""
        size = mask.nbytes + key_bytes
        with self._lock:
            if key in self._masks or size > self._capacity:
                return
            self._masks[key] = (mask, size)
            self._size += size
            while self._size > self._capacity:
                _, (_, gone) = self._masks.popitem(last=False)
                self._size -= gone
