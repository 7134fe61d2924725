"""Brand and category of every item as numbers: equal numbers, equal names."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from recsys.catalog.catalog import Catalog

    Ints = npt.NDArray[np.integer]
    Numbers = npt.NDArray[np.int32]

Name = TypeVar("Name", str, tuple[str, ...])


class Labels:
    """The snapshot's own arrays until an item changes, then copies of them; one thread at a time.

    Args:
        catalog: the snapshot.

    Attributes:
        deepest: names of the longest path there ever was.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._brand, self._category = catalog.brand, catalog.category
        self._brands: dict[str, int] = {}  # names that the snapshot does not have
        self._paths: dict[tuple[str, ...], int] = {}
        self._above: dict[int, Numbers] = {}  # by depth: of every path's number, the number of its beginning
        self.deepest = max(map(len, catalog.categories), default=0)

    def brand(self, items: Ints) -> Numbers:
        """(m,) number of each item's brand; -1 = none."""
        return self._brand[items]

    def category(self, items: Ints, depth: int | None = None) -> Numbers:
        """(m,) number of each item's category; -1 = none.

        Args:
            items: (m,) item indices.
            depth: names from the root that count; None = the whole path.
        """
        whole = self._category[items]
        if depth is None:
            return whole
        above = self._above.get(depth)
        if above is None:
            above = self._above[depth] = self._cut_at(depth)
        return above[whole]

    def put(self, item: int, brand: str | None, path: tuple[str, ...]) -> None:
        """Give an item other names, or a new one its first."""
        self._brand = _with_room(self._brand, item, self._catalog.brand)
        self._category = _with_room(self._category, item, self._catalog.category)
        self._brand[item] = _number(brand, self._catalog.brands, self._brands) if brand else -1
        known, self.deepest = len(self._paths), max(self.deepest, len(path))
        numbers = [_number(path[:depth], self._catalog.categories, self._paths) for depth in range(1, len(path) + 1)]
        self._category[item] = numbers[-1] if numbers else -1
        if len(self._paths) > known:
            self._above.clear()

    def _cut_at(self, depth: int) -> Numbers:
        """(V + 1,) by the number of a path; at the end, where -1 points to, -1."""
        cut, last = [], -1
        for number, path in enumerate(self._catalog.categories):  # sorted, every beginning before what begins with it
            last = number if len(path) <= depth else last
            cut.append(last)
        cut += [_number(path[:depth], self._catalog.categories, self._paths) for path in list(self._paths)]
        return np.array([*cut, -1], dtype=np.int32)


def _number(name: Name, known: Sequence[Name], later: dict[Name, int]) -> int:
    place = bisect_left(known, name)
    if place < len(known) and known[place] == name:
        return place
    return later.setdefault(name, len(known) + len(later))


def _with_room(values: Numbers, item: int, shared: Numbers) -> Numbers:
    """An array of this process's own that has a place for an item."""
    if values is not shared and item < len(values):
        return values
    grown = np.full(max(len(values), item + 1 + item // 8), -1, dtype=np.int32)
    grown[: len(values)] = values
    return grown
