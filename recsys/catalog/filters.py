"""What a request asks of the items it may be shown."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable

    import numpy.typing as npt


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
        return self == CatalogFilter()


class MaskCache:
    """The masks of the filters asked for last, bounded in bytes; safe to share between threads.

    Args:
        capacity_bytes: total size of the masks that are kept.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._size = 0
        self._masks: OrderedDict[Hashable, npt.NDArray[np.bool_]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> npt.NDArray[np.bool_] | None:
        """The mask, or None where it is not kept."""
        with self._lock:
            mask = self._masks.get(key)
            if mask is not None:
                self._masks.move_to_end(key)
            return mask

    def put(self, key: Hashable, mask: npt.NDArray[np.bool_]) -> None:
        """Keep a mask; the least recently used ones make room."""
        with self._lock:
            if key in self._masks or mask.nbytes > self._capacity:
                return
            self._masks[key] = mask
            self._size += mask.nbytes
            while self._size > self._capacity:
                self._size -= self._masks.popitem(last=False)[1].nbytes
